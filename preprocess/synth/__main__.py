"""python -m preprocess.synth: write a generated nuScenes folder."""

import sys
from pathlib import Path

import click

from common.interrupts import Interruptible
from common.progress import progress
from common.spelling import EITHER, parsed, spelled
from preprocess.datasets.nuscenes import official_splits
from preprocess.errors import SourceError
from preprocess.options import parse_image_size
from preprocess.splits import read_split_file
from preprocess.synth.folder import Folder


@click.command(cls=Interruptible, context_settings={**EITHER, "show_default": True})
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--scenes", default=4, type=click.IntRange(2), help="a fifth of them, at least one, in the val split")
@click.option("--samples", default=4, type=click.IntRange(1), help="keyframes per scene")
@click.option("--sweeps", default=2, type=click.IntRange(0), help="lidar and radar sweeps between keyframes")
@click.option("--version", default="v1.0-mini", type=click.Choice(["v1.0-mini", "v1.0-trainval"]))
@click.option("--seed", default=0, type=click.IntRange(0))
@click.option(
    "--image-size", default="900x1600", callback=parsed(parse_image_size), help="HEIGHTxWIDTH of every camera"
)
@click.option("--tables-only", is_flag=True, help="no sensor files")
@click.option("--occluders", is_flag=True, help="hoardings, which hide from time to time what was seen before")
@click.option(
    "--split-file", type=click.Path(path_type=Path), help='JSON {"train": [scenes], "val": [scenes]}; no devkit needed'
)
def main(out, scenes, samples, sweeps, version, seed, image_size, tables_only, occluders, split_file):
    """Write a generated world that nuscenes-devkit loads: cameras, lidar and radars of one geometry."""
    try:
        splits = read_split_file(split_file) if split_file else official_splits(version)
        names = _names(splits, scenes, split_file or version)
        if (out / version).exists():
            raise SourceError(f"{out / version} exists already; remove it or choose another --out")
        folder = Folder(out, version, seed, image_size, tables_only, occluders)
        for number, name in enumerate(progress(names, "scenes", "world")):
            folder.add_scene(number, name, samples, sweeps)
        folder.close()
    except SourceError as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename or out}: {error.strerror or error}; choose another --out")


def _names(splits, scenes, source):
    """Of the scenes: from the train split, a fifth of them from the val split. Raises SourceError for too few."""
    train, held = splits.get("train", []), splits.get("val", [])
    val = min(max(1, scenes // 5), len(held))
    names = train[: scenes - val] + held[:val]
    if len(names) < scenes:
        raise SourceError(f"{source} has fewer than {scenes} scenes; lower --scenes, or take a split that has more")
    return names


def _fail(error):
    click.echo(f"error: {error}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main(prog_name=spelled("preprocess.synth"))
