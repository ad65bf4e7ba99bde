"""python -m preprocess.run: nuScenes -> shards."""

import os
import re
import sys
import time
from pathlib import Path

import click
from tqdm import tqdm

from common.shard_index import ShardError, parse_index
from common.stores import open_store
from preprocess.errors import SourceError
from preprocess.keyframe import build_record
from preprocess.manifest import read_skipped, write_manifests
from preprocess.plan import DEFAULT_SHARDS, Options, Planner, read_splits
from preprocess.pool import DaskPool, LocalPool
from preprocess.shard_writer import KINDS

PROBED_KEYFRAMES = 24  # what --dry-run makes in memory to know how large the rest will be


def _image_size(_context, _parameter, value):
    if not value:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH, for example 540x960")
    return int(match[1]), int(match[2])


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--version", required=True, help="v1.0-mini, v1.0-trainval, v1.0-test; others with --split-file")
@click.option("--dataroot", default="data/nuscenes", type=click.Path(path_type=Path), help="nuScenes folder")
@click.option("--out", default="shards", help="folder for the shards, or an fsspec address (s3://..., gs://...)")
@click.option("--sweeps", default=5, help="largest nsweeps the shards will serve, keyframe included")
@click.option("--image-size", callback=_image_size, help="re-encode images, e.g. 540x960  [default: source bytes]")
@click.option("--jpeg-quality", default=90, help="with --image-size")
@click.option("--split-file", type=click.Path(path_type=Path), help='JSON {"train": [scenes], "val": [scenes]}')
@click.option("--workers", default=os.cpu_count(), type=click.IntRange(1), help="processes")
@click.option("--scheduler", help="a Dask scheduler (tcp://host:8786) that runs the work instead")
@click.option("--train-shards", default=DEFAULT_SHARDS["train"], type=click.IntRange(1), help="at most")
@click.option("--val-shards", default=DEFAULT_SHARDS["val"], type=click.IntRange(1), help="at most; test too")
@click.option("--on-error", default="stop", type=click.Choice(["stop", "skip"]), help="skip leaves bad samples out")
@click.option("--keep-sequences", is_flag=True, help="with --on-error skip: leave out the bad sample's whole scene")
@click.option("--overwrite", is_flag=True, help="replace finished shards made from other input or options")
@click.option("--dry-run", is_flag=True, help="say what would be written and how large, write nothing")
def main(**values):
    """Turn a nuScenes folder into compressed webdataset shards.

    The same command continues an interrupted run; finished shards are kept.
    """
    try:
        _run(**values)
    except (SourceError, ShardError, ValueError) as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename or values['out']}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", 130)


def _fail(error, code=1):
    click.echo(f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(code)


def _run(version, dataroot, out, sweeps, image_size, jpeg_quality, split_file, workers, scheduler, on_error, **rest):
    started = time.monotonic()
    options = Options(sweeps, image_size, jpeg_quality)
    skip = {"on_error": on_error, "keep_sequences": rest["keep_sequences"]}
    recipes = _plan(version, dataroot, options, split_file, rest, skip)
    pool = DaskPool(scheduler) if scheduler else LocalPool(workers)
    store = open_store(out)
    writing = {"image_hw": options.image_hw, "jpeg_quality": options.jpeg_quality}
    if rest["dry_run"]:
        return _dry_run(recipes, dataroot, store, writing)
    with store.locked():
        digests = {r.name: r.digest() for r in recipes}
        todo = [r for r in recipes if not _finished(store, r, digests[r.name], rest["overwrite"], on_error)]
        for recipe in todo:
            recipe.facts = {**recipe.facts, "recipe_sha256": digests[recipe.name]}
        done = _write(todo, pool, {"dataroot": str(dataroot), "out": str(out), **writing, **skip})
        write_manifests(store, recipes, version, options)
    _summary(recipes, todo, done, store, time.monotonic() - started)


def _plan(version, dataroot, options, split_file, rest, skip):
    planner = Planner(dataroot, version, options, **skip)
    splits = read_splits(version, split_file)
    counts = {split: rest["train_shards"] if split == "train" else rest["val_shards"] for split in splits}
    planner.check_splits(splits, complete=split_file is not None)
    recipes = [r for split in splits for r in planner.shards(split, splits[split], counts[split])]
    if not recipes:
        raise SourceError(f"{dataroot / version}: none of its scenes is in the splits of {version}; see --split-file")
    return recipes


def _finished(store, recipe, digest, overwrite, on_error):
    """True if the shard there is the one that would be written. Refuses any other finished shard."""
    index_name = f"{recipe.name}.idx.json"
    if overwrite or not store.exists(index_name):
        return False
    tar = store.path(f"{recipe.name}.tar")
    facts = parse_index(store.read(index_name), tar).facts
    if not store.exists(f"{recipe.name}.tar"):
        raise SourceError(f"{tar}: is gone, its index is still there; remove {index_name} and run again")
    if facts.get("recipe_sha256") != digest:
        wanted = {**recipe.facts, "recipe_sha256": digest}
        differing = [k for k in wanted if facts.get(k) != wanted[k] and k != "recipe_sha256"]
        what = ", ".join(f"{k} {facts.get(k)!r}, now {wanted[k]!r}" for k in differing) or "other scenes or tables"
        raise SourceError(f"{tar}: made with {what}; give --overwrite or another --out")
    skipped = read_skipped(store, recipe.name)
    if skipped and on_error == "stop":
        raise SourceError(f"{tar}: --on-error skip left {len(skipped)} samples out of it; give --overwrite")
    return True


def _dry_run(recipes, dataroot, store, writing):
    frames = [(recipe, frame) for recipe in recipes for frame in recipe.keyframes]
    probed = frames[:: max(1, len(frames) // PROBED_KEYFRAMES)]
    size = 0
    for recipe, frame in probed:
        members, _ = build_record(dataroot, frame, recipe.facts, **writing)
        # A tar rounds each member up to blocks of 512 bytes and gives it a header of one.
        size += sum(512 + -(-len(data) // 512) * 512 for data in members.values())
    total = size / len(probed) * len(frames)
    for split in dict.fromkeys(r.facts["split"] for r in recipes):
        own = [r for r in recipes if r.facts["split"] == split]
        there = sum(store.exists(f"{r.name}.idx.json") for r in own)
        click.echo(
            f"{split}: {len(own)} shards, {sum(len(r.keyframes) for r in own)} keyframes; {there} are there already"
        )
    click.echo(f"about {total / 1e9:.2f} GB, from {len(probed)} of {len(frames)} keyframes; nothing was written")


def _write(todo, pool, arguments):
    total = sum(len(r.keyframes) for r in todo)
    with tqdm(total=total, unit="keyframe", desc="shards", dynamic_ncols=True, disable=not todo) as bar:
        bar.mininterval = 0.1 if sys.stderr.isatty() else 10.0  # a log wants a line now and then

        def progress(done):
            elapsed = max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{sum(done.read.values()) / elapsed / 1e6:.0f} MB/s", refresh=False)
            bar.update(done.keyframes - bar.n)

        return pool.run(todo, arguments, progress)


def _summary(recipes, todo, done, store, seconds):
    indexes = [parse_index(store.read(f"{r.name}.idx.json"), store.path(f"{r.name}.tar")) for r in recipes]
    size, frames = sum(i.tar_bytes for i in indexes), sum(len(i.keys) for i in indexes)
    click.echo(f"{len(recipes)} shards, {frames} keyframes, {size / 1e6:.1f} MB in {store.path('')} ({seconds:.1f} s)")
    if len(todo) < len(recipes):
        click.echo(f"{len(recipes) - len(todo)} of them were there already and were kept")
    if done.skipped:
        click.echo(
            f"{len(done.skipped)} samples were left out; the manifest lists them, the first: {done.skipped[0]['why']}"
        )
    if todo:
        click.echo(f"{'member':<8}{'read MB':>12}{'written MB':>12}{'ratio':>8}")
        for kind in KINDS:
            read, written = done.read[kind] / 1e6, done.written[kind] / 1e6
            ratio = f"{written / read:8.2f}" if read else " " * 8
            click.echo(f"{kind:<8}{read:>12.1f}{written:>12.1f}{ratio}")


if __name__ == "__main__":
    main()
