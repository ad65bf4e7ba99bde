"""python -m preprocess.run: nuScenes, or another data set -> shards."""

import itertools
import shlex
import time
from functools import partial
from pathlib import Path

import click

from common.interrupts import Interruptible
from common.keys import scene_key
from common.plain import one_line
from common.progress import Progress, counted, say
from common.record import SCHEMA_VERSION
from common.shard_index import parse_index
from common.spelling import EITHER, parsed, spelled
from common.stores import open_store, parse_options
from preprocess.archives.making import FromArchives, say_plan
from preprocess.command import fail_in_one_line, scheduler_option, workers_option
from preprocess.datasets import DATASETS, DEFAULT
from preprocess.errors import SourceError
from preprocess.keyframe import build_record
from preprocess.left_out import by_scene, missing_files
from preprocess.manifest import read_skipped, write_manifests
from preprocess.options import Options, parse_channels, parse_image_size, parse_sensors
from preprocess.plan import DEFAULT_SHARDS, Planner
from preprocess.pointclouds import LIDAR_COLUMNS
from preprocess.pool import DaskPool, LocalPool
from preprocess.shard_writer import KINDS
from preprocess.splits import chosen_scenes, read_split_file

PROBED_KEYFRAMES = 24  # what --dry-run makes in memory to know how large the rest will be


CONTEXT = {**EITHER, "show_default": True, "max_content_width": 100}


@click.command(cls=Interruptible, context_settings=CONTEXT)
@click.option("--dataset", default=DEFAULT, type=click.Choice(list(DATASETS)), help="what --dataroot holds")
@click.option(
    "--version", default="", show_default=False, help="v1.0-mini, v1.0-trainval, v1.0-test; others with --split-file"
)
@click.option("--dataroot", default="data/nuscenes", type=click.Path(path_type=Path), help="its folder")
@click.option("--out", default="shards", help="folder for the shards, or an address (s3://..., gs://...)")
@click.option(
    "--store-options",
    default="",
    show_default=False,
    help="JSON object, or a file with one, for the store of an address",
)
@click.option("--sweeps", default=5, help="largest nsweeps the shards will serve, keyframe included")
@click.option(
    "--image-size", callback=parsed(parse_image_size), help="re-encode images, e.g. 540x960  [default: source bytes]"
)
@click.option("--jpeg-quality", default=90, help="with --image-size")
@click.option("--sensors", callback=parsed(parse_sensors), help="camera[,lidar][,radar]  [default: what is there]")
@click.option(
    "--channels", callback=parsed(parse_channels), help="names of another rig: LIDAR_TOP=LIDAR_CONCAT,CAM_FRONT=..."
)
@click.option(
    "--keep-distortion", is_flag=True, help="of images that are not a pinhole's  [default: they are rectified]"
)
@click.option(
    "--lidar-columns",
    default="5",
    type=click.Choice(list(map(str, LIDAR_COLUMNS))),
    help="float32 values per lidar point",
)
@click.option(
    "--archives", multiple=True, help="tgz, tar, zip instead of a folder: paths, globs, addresses; commas between"
)
@click.option("--work", type=click.Path(path_type=Path), help="with --archives: what is under way  [OUT/.archives]")
@click.option("--scenes", help="this many scenes of the splits, or a file with their names, one a line")
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path), help="list the files that this needs, make nothing"
)
@click.option(
    "--hz", type=click.FloatRange(0, min_open=True), help="keyframes per second, of data that is annotated oftener"
)
@click.option(
    "--split-file",
    type=click.Path(path_type=Path),
    help='JSON {"train": [scenes], "val": [scenes]}; a part of one: {"scene": NAME, "frames": [first, last]}',
)
@workers_option
@scheduler_option
@click.option("--train-shards", default=DEFAULT_SHARDS["train"], type=click.IntRange(1), help="at most")
@click.option("--val-shards", default=DEFAULT_SHARDS["val"], type=click.IntRange(1), help="at most; test too")
@click.option("--on-error", default="stop", type=click.Choice(["stop", "skip"]), help="skip leaves bad samples out")
@click.option("--keep-sequences", is_flag=True, help="with --on-error skip: leave out the bad sample's whole scene")
@click.option("--overwrite", is_flag=True, help="replace finished shards made from other input or options")
@click.option("--dry-run", is_flag=True, help="say what would be written and how large, write nothing")
def main(**values):
    """Turn a folder of nuScenes, or of another data set, into compressed webdataset shards.

    The same command continues an interrupted run; finished shards are kept.
    """
    fail_in_one_line(lambda: _run(**values), values["out"], _skipping)


def _skipping(error):
    """What helps against the fault of a sample."""
    return "; --on-error skip leaves out what needs it" if getattr(error, "of_samples", False) else ""


def _run(version, dataroot, out, sweeps, image_size, jpeg_quality, split_file, workers, scheduler, on_error, **rest):
    started = time.monotonic()
    columns = int(rest["lidar_columns"])
    chosen = rest["sensors"], rest["channels"], columns, rest["dataset"], rest["hz"], rest["keep_distortion"]
    options = Options(sweeps, image_size, jpeg_quality, *chosen)
    skip = {"on_error": on_error, "keep_sequences": rest["keep_sequences"]}
    store = open_store(out, parse_options(rest["store_options"]))
    archives = FromArchives.of(rest, store, scheduler) if rest["archives"] else None
    if archives:
        dataroot = archives.tables(dataroot, version)
    recipes, names = _plan(version, dataroot, options, split_file, rest, skip)
    if rest["plan_file"]:
        return say_plan(recipes, rest["plan_file"])
    pool = DaskPool(scheduler) if scheduler else LocalPool(workers)
    writing = {"image_hw": options.image_hw, "jpeg_quality": options.jpeg_quality}
    if rest["dry_run"]:
        todo = _unfinished(store, recipes, rest["overwrite"], on_error)
        if archives:
            return archives.dry_run(recipes, todo, workers)
        return _dry_run(recipes, todo, dataroot, store, writing, skip, names)
    with store.locked() as alone:
        if not alone and not store.remote:
            click.echo(
                f"note: {store.path('')}: its file system knows no locks; run one preprocess.run at a time there"
            )
        todo = _unfinished(store, recipes, rest["overwrite"], on_error)
        if archives:
            done = _with_progress(todo, partial(archives.make, recipes, todo, writing, skip, workers))
        else:
            done = _write(todo, pool, {"dataroot": str(dataroot), "store": store, **writing, **skip})
        indexes = _indexes(store, recipes)
        if not indexes:
            raise SourceError(f"every sample was left out, nothing was written; the first: {done.skipped[0]['why']}")
        write_manifests(store, recipes, options)
        if archives:
            archives.clear()
    _summary(recipes, todo, done, indexes, store, time.monotonic() - started, names)


def _plan(version, dataroot, options, split_file, rest, skip):
    """The recipes of all shards, and the name of each scene by its part of a key."""
    say(f"reading the tables of {dataroot / version}")
    planner = Planner(dataroot, version, options, **skip, say=say)
    splits = read_split_file(split_file) if split_file else planner.data.splits()
    if rest["scenes"]:
        splits = chosen_scenes(splits, rest["scenes"], {scene["name"] for scene in planner.scenes})
    counts = {split: rest["train_shards"] if split == "train" else rest["val_shards"] for split in splits}
    left = planner.check_splits(splits, complete=split_file is not None, whole=not rest["scenes"])
    if left:
        say(
            f"{counted(len(left), 'scene')} in no split of {planner.version}, left out; the first: {one_line(left[0], 100)}"
        )
    say(f"planning {counted(len(planner.scenes) - len(left), 'scene')}; {', '.join(planner.sensors)}")
    with Progress(len(planner.scenes) - len(left), "scenes", "planning") as bar:
        recipes = [r for split in splits for r in planner.shards(split, splits[split], counts[split], bar.one_more)]
    if not recipes:
        raise SourceError(
            f"{dataroot / version}: none of its scenes is in the splits of {planner.version}; see --split-file"
        )
    return recipes, {scene_key(scene["name"]): scene["name"] for scene in planner.scenes}


def _unfinished(store, recipes, overwrite, on_error):
    """The recipes of the shards that are still to be written, their digests among their facts.

    Raises SourceError for a finished shard of other input or options.
    """
    digests = {r.name: r.digest() for r in recipes}
    todo = [r for r in recipes if not _finished(store, r, digests[r.name], overwrite, on_error)]
    for recipe in todo:
        recipe.facts = {**recipe.facts, "recipe_sha256": digests[recipe.name]}
    return todo


def _finished(store, recipe, digest, overwrite, on_error):
    """True if the shard there is the one that would be written. Refuses any other finished shard."""
    index_name = f"{recipe.name}.idx.json"
    if overwrite or not store.exists(index_name):
        return False
    tar = store.path(f"{recipe.name}.tar")
    index = parse_index(store.read(index_name), tar)
    facts = index.facts
    if not store.exists(f"{recipe.name}.tar"):
        raise SourceError(f"{tar}: is gone, its index is still there; remove {index_name} and run again")
    if index.schema != SCHEMA_VERSION:
        raise SourceError(
            f"{tar}: of schema {index.schema}, this version writes {SCHEMA_VERSION}; give --overwrite or another --out"
        )
    if facts.get("recipe_sha256") != digest:
        wanted = {**recipe.facts, "recipe_sha256": digest}
        differing = [k for k in wanted if facts.get(k) != wanted[k] and k != "recipe_sha256"]
        what = ", ".join(_difference(k, facts.get(k), wanted[k]) for k in differing) or "other scenes or tables"
        raise SourceError(f"{tar}: made with {what}; give --overwrite or another --out")
    skipped = read_skipped(store, recipe.name)
    if skipped and on_error == "stop":
        raise SourceError(f"{tar}: --on-error skip left {len(skipped)} samples out of it; give --overwrite")
    return True


def _difference(name, old, new):
    """What differs in one of the facts, as a clause."""
    if name != "rig" or not isinstance(old, dict):
        return f"{name} {old!r}, now {new!r}"
    return f"a rig of other {' and '.join(part.replace('_', ' ') for part in new if old.get(part) != new[part])}"


def _dry_run(recipes, todo, dataroot, store, writing, skip, names):
    """Say what the run would do. Missing files are found as the run would find them, damaged ones only where probed."""
    why, sizes = _left_out(todo, dataroot, writing, skip)
    skipped, new = [], {}
    for recipe in todo:
        new[recipe.name] = [f.key for f in recipe.keyframes if f.key not in why]
        bad = [f for f in recipe.keyframes if f.key in why]
        skipped += recipe.skipped + [{"key": f.key, "token": f.facts["token"], "why": why[f.key]} for f in bad]
    kept = {Path(i.tar).stem: i.keys for i in _indexes(store, [r for r in recipes if r.name not in new])}
    if not kept and not (sizes and any(new.values())):
        raise SourceError(f"every sample would be left out; the first: {skipped[0]['why']}")
    for split in dict.fromkeys(r.facts["split"] for r in recipes):
        own = [r.name for r in recipes if r.facts["split"] == split]
        there, written = [kept[name] for name in own if name in kept], [new[name] for name in own if new.get(name)]
        click.echo(
            f"{split}: {counted(len(there) + len(written), 'shard')}, {counted(sum(map(len, there + written)), 'keyframe')}; "
            f"{len(there)} are there already"
        )
    _say_skipped(skipped, itertools.chain(*kept.values(), *new.values()), names)
    count = sum(map(len, new.values()))
    size = sum(sizes) / len(sizes) * count if sizes else 0
    click.echo(f"about {size / 1e9:.2f} GB, from {len(sizes)} of {count} keyframes; nothing was written")


def _left_out(todo, dataroot, writing, skip):
    """(key -> why, sizes): the samples that the run would leave out, and the bytes of keyframes made in memory."""
    missing = missing_files(dataroot, todo)
    if missing and skip["on_error"] == "stop":
        frame, name = missing[0]
        raise SourceError(
            f"{Path(dataroot) / name}: sensor file is missing (sample {frame.key}), as are files of {len(missing) - 1} more "
            "samples; --on-error skip leaves them out"
        )
    why, sizes = {frame.key: f"{name} is missing" for frame, name in missing}, []
    frames = [(recipe, f) for recipe in todo for f in recipe.keyframes if f.key not in why]
    for recipe, frame in frames[:: max(1, len(frames) // PROBED_KEYFRAMES)]:
        try:
            members, _ = build_record(dataroot, frame, recipe.facts, **writing)
        except SourceError as error:
            if skip["on_error"] == "stop":
                raise
            why[frame.key] = str(error)
            continue
        # A tar rounds each member up to blocks of 512 bytes and gives it a header of one.
        sizes.append(sum(512 + -(-len(data) // 512) * 512 for data in members.values()))
    if skip["keep_sequences"]:
        for scene in itertools.chain.from_iterable(recipe.scenes() for recipe in todo):
            bad = [why[f.key] for f in scene if f.key in why]
            why |= {f.key: bad[0] for f in scene if bad}
    return why, sizes


def _write(todo, pool, arguments):
    return _with_progress(todo, partial(pool.run, todo, arguments))


def _with_progress(todo, make):
    """What make(on_progress) gives, called with the Written so far while it works."""
    with Progress(sum(len(r.keyframes) for r in todo), "keyframes", "shards") as bar:

        def progress(done):
            elapsed = max(time.monotonic() - bar.started, 1e-9)
            bar.update(done.keyframes, f"{sum(done.read.values()) / elapsed / 1e6:.0f} MB/s")

        return make(progress)


def _indexes(store, recipes):
    """Indexes of the shards that are there: all but those that came out empty."""
    names = [r.name for r in recipes if store.exists(f"{r.name}.idx.json")]
    return [parse_index(store.read(f"{name}.idx.json"), store.path(f"{name}.tar")) for name in names]


def _say_skipped(skipped, kept, names):
    if skipped:
        click.echo(f"{counted(len(skipped), 'sample was', 'samples were')} left out:")
        for line in by_scene(skipped, kept, names):
            click.echo(line)


def _summary(recipes, todo, done, indexes, store, seconds, names):
    size, frames = sum(i.tar_bytes for i in indexes), sum(len(i.keys) for i in indexes)
    what = f"{counted(len(indexes), 'shard')}, {counted(frames, 'keyframe')}, {size / 1e6:.1f} MB"
    click.echo(f"{what} in {store.path('')} ({seconds:.1f} s)")
    written = {r.name for r in todo}
    kept = [r.name for r in recipes if r.name not in written]
    if kept:
        click.echo(f"{len(kept)} of them were there already and were kept")
        lost = sum(len(read_skipped(store, name)) for name in kept)
        if lost:
            left = counted(lost, "sample was", "samples were")
            click.echo(f"{left} left out of those when they were made; --overwrite tries them again")
    if len(indexes) < len(recipes):
        click.echo(
            f"{counted(len(recipes) - len(indexes), 'shard')} came out empty, not written; the next run tries again"
        )
    _say_skipped(done.skipped, [key for index in indexes for key in index.keys], names)
    for name, count in done.found.items():
        if count:
            click.echo(f"{count} {name}")
    if todo:
        click.echo(f"{'member':<8}{'read MB':>12}{'written MB':>12}{'ratio':>8}")
        for kind in KINDS:
            read, written = done.read[kind] / 1e6, done.written[kind] / 1e6
            ratio = f"{written / read:8.2f}" if read else " " * 8
            click.echo(f"{kind:<8}{read:>12.1f}{written:>12.1f}{ratio}")
    out = shlex.quote(str(store.address))
    say(f"next: {spelled('preprocess.show')} {out}\n      {spelled('train.run')} --shards {out}")


if __name__ == "__main__":
    main(prog_name=spelled("preprocess.run"))
