"""python -m train.show: any sample of shards as a picture, a scene as a video or a recording."""

import os

import click

from common.addresses import is_remote
from common.errors import InputError
from common.shard_set import find_shards
from common.spelling import EITHER, Command, spelled
from common.stores import parse_options
from train.classes import parse_classes
from train.command import fail_in_one_line
from train.pictures.formats import DRAWS, DRAWS_PX, SHEET_PX, check_picture, points_of
from train.runs import find_run


@click.command(cls=Command, context_settings={**EITHER, "max_content_width": 100})
@click.argument("shards", nargs=-1, required=True, metavar="SHARDS... [WHAT]")
@click.option("--out", help="picture to write, .png or .jpg  [<key>.png]")
@click.option("--video", help="write the whole scene as .webm or .gif instead")
@click.option("--mcap", help="write the whole scene as .mcap for Foxglove and Rerun instead")
@click.option("--run", help="a run's folder or name, or a checkpoint: show its prediction and errors too")
@click.option(
    "--weights",
    type=click.Choice(("trained", "ema")),
    default="trained",
    help="with --run: ema takes their moving average",
)
@click.option("--predictions", help="with --run: write its maps of the scene, without WHAT of all SHARDS, as .npz")
@click.option("--augment", is_flag=True, help=f"draw it {DRAWS} times as the network gets it in training instead")
@click.option(
    "--points", default="", help="lidar,radar or one of them: draw points into the cameras, coloured by depth"
)
@click.option(
    "--classes", default="", help="without --run: draw the truth of these classes, as train.run --classes takes them"
)
@click.option("--width", type=click.IntRange(400, 8000), help=f"columns  [{SHEET_PX}; {DRAWS_PX} with --augment]")
@click.option("--device", default="", help="cuda or cpu, for --run; without it CUDA where there is one")
@click.option("--store-options", default="", help="JSON object, or a file with one, for the store of an address")
def main(shards, **values):
    """Draw one sample of SHARDS (paths, globs, ranges or a folder; addresses too).

    WHAT is its key, its token, its number from 0 on, or the name of a scene, whose first keyframe is shown; without it, 0.
    """
    asked = fail_in_one_line(lambda: _looked_up(*_split(shards), **values))
    from train.jobs.showing import show  # loads torch, which takes seconds

    fail_in_one_line(lambda: show(*asked))


def _looked_up(shards, what, run, device, store_options, **wanted):
    """The arguments of train.jobs.showing.show, once shards and run are known to be there. Raises ValueError."""
    _check(wanted, run)
    shards = find_shards(shards, options=parse_options(store_options))
    return shards, what, find_run(run, what="--run") if run else run, device, wanted


def _split(words):
    """(shards, what or None): the last of several words is what to show, unless it is a shard or a folder too."""
    *first, last = words
    is_shard = last.endswith(".tar") or is_remote(last) or os.path.exists(last)
    return (words, None) if not first or is_shard else (first, last)


def _check(wanted, run):
    """Take --points apart. Raises ValueError for options that exclude one another."""
    files = [f"--{name}" for name in ("out", "video", "mcap", "predictions") if wanted[name]]
    if len(files) > 1:
        raise InputError(f"{' and '.join(files)} are one file each; give one of them")
    if wanted["augment"] and files not in ([], ["--out"]):
        raise InputError(f"--augment draws one sample; leave out {files[0]}")
    wanted["points"] = points_of(wanted["points"])
    if parse_classes(wanted["classes"]) and run:
        raise InputError("--classes: a run has classes of its own; leave out one of --classes and --run")
    if wanted["points"] and (wanted["augment"] or wanted["mcap"] or wanted["predictions"]):
        raise InputError(
            "--points draws into the pictures of a sample or a video; leave out --augment, --mcap, --predictions"
        )
    if wanted["predictions"] and not (run and wanted["predictions"].endswith(".npz")):
        raise InputError(f"--predictions {wanted['predictions']}: name a .npz, and with --run whose predictions")
    if wanted["weights"] != "trained" and not run:
        raise InputError(f"--weights {wanted['weights']}: say of which run, with --run")
    if wanted["out"]:
        check_picture(wanted["out"])


if __name__ == "__main__":
    main(prog_name=spelled("train.show"))
