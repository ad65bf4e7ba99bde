"""python -m preprocess.run: nuScenes -> shards."""

import fcntl
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import click
from tqdm import tqdm

from common.record import SCHEMA_VERSION, encode_json
from common.shard_index import ShardError, index_path, load_index, write_atomically
from preprocess.errors import SourceError
from preprocess.plan import DEFAULT_SHARDS, Options, Planner, official_splits
from preprocess.pool import KINDS, run_tasks

LICENCE = "nuScenes data: CC BY-NC-SA 4.0, https://www.nuscenes.org/terms-of-use; shards carry the same licence"


def _image_size(_context, _parameter, value):
    if not value:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", value)
    if not match:
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH, for example 540x960")
    return int(match[1]), int(match[2])


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option("--version", required=True, help="v1.0-mini or v1.0-trainval")
@click.option("--dataroot", default="data/nuscenes", type=click.Path(path_type=Path), help="nuScenes folder")
@click.option("--out", default="shards", type=click.Path(path_type=Path), help="folder for the shards")
@click.option("--sweeps", default=5, help="largest nsweeps the shards will serve, keyframe included")
@click.option("--image-size", callback=_image_size, help="re-encode images, e.g. 540x960  [default: source bytes]")
@click.option("--jpeg-quality", default=90, help="with --image-size")
@click.option("--workers", default=os.cpu_count(), type=click.IntRange(1), help="processes")
@click.option("--train-shards", default=DEFAULT_SHARDS["train"], type=click.IntRange(1), help="at most")
@click.option("--val-shards", default=DEFAULT_SHARDS["val"], type=click.IntRange(1), help="at most")
@click.option("--overwrite", is_flag=True, help="replace finished shards made from other input or options")
def main(version, dataroot, out, sweeps, image_size, jpeg_quality, workers, train_shards, val_shards, overwrite):
    """Turn a nuScenes folder into compressed webdataset shards.

    The same command continues an interrupted run; finished shards are kept.
    """
    try:
        options = Options(sweeps, image_size, jpeg_quality)
        counts = {"train": train_shards, "val": val_shards}
        _run(version, dataroot, out, options, workers, counts, overwrite)
    except (SourceError, ShardError, ValueError) as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename or out}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", 130)


def _fail(error, code=1):
    click.echo(f"error: {error}", err=True)
    sys.exit(code)


def _run(version, dataroot, out, options, workers, counts, overwrite):
    started = time.monotonic()
    planner = Planner(dataroot, version, options)
    splits = official_splits(version)
    recipes = [r for split in counts for r in planner.shards(split, splits[split], counts[split])]
    del planner
    if not recipes:
        raise SourceError(f"{dataroot / version}: none of its scenes is in the official splits of {version}")
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        digests = {r.name: r.digest() for r in recipes}
        todo = [r for r in recipes if not _finished(out, r, digests[r.name], overwrite)]
        for recipe in todo:
            recipe.facts = {**recipe.facts, "recipe_sha256": digests[recipe.name]}
        results = _write(todo, dataroot, out, options, workers)
        _write_manifests(out, recipes, version, options)
    _summary(recipes, todo, results, out, time.monotonic() - started)


@contextmanager
def _lock(out):
    with open(out / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceError(f"{out}: another preprocess.run is writing there; wait for it") from None
        yield


def _finished(out, recipe, digest, overwrite):
    """True if the shard on disk is the one that would be written. Refuses any other finished shard."""
    tar = out / f"{recipe.name}.tar"
    if overwrite or not index_path(tar).exists():
        return False
    facts = load_index(tar).facts
    if facts.get("recipe_sha256") == digest:
        return True
    wanted = {**recipe.facts, "recipe_sha256": digest}
    differing = [k for k in wanted if facts.get(k) != wanted[k] and k != "recipe_sha256"]
    what = ", ".join(f"{k} {facts.get(k)!r}, now {wanted[k]!r}" for k in differing) or "other scenes or tables"
    raise SourceError(f"{tar}: made with {what}; give --overwrite or another --out")


def _write(todo, dataroot, out, options, workers):
    total = sum(len(r.keyframes) for r in todo)
    arguments = {
        "dataroot": str(dataroot),
        "out": str(out),
        "image_hw": options.image_hw,
        "jpeg_quality": options.jpeg_quality,
    }
    state = [0] * (1 + 2 * len(KINDS))
    with tqdm(total=total, unit="keyframe", desc="shards", dynamic_ncols=True, disable=not todo) as bar:
        bar.mininterval = 0.1 if sys.stderr.isatty() else 10.0  # a log wants a line now and then

        def progress(counters):
            state[:] = counters
            elapsed = max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{sum(state[1 : 1 + len(KINDS)]) / elapsed / 1e6:.0f} MB/s", refresh=False)
            bar.update(state[0] - bar.n)

        run_tasks(todo, arguments, min(workers, max(len(todo), 1)), progress)
    return state


def _write_manifests(out, recipes, version, options):
    for split in dict.fromkeys(r.facts["split"] for r in recipes):
        shards = []
        for recipe in (r for r in recipes if r.facts["split"] == split):
            index = load_index(out / f"{recipe.name}.tar")
            shards.append(
                {
                    "name": index.tar.name,
                    "keyframes": len(index.keys),
                    "scenes": [name for name, _, _ in index.scenes],
                    "bytes": index.tar_bytes,
                    "sha256": index.tar_sha256,
                }
            )
        manifest = {
            "schema": SCHEMA_VERSION,
            "version": version,
            "split": split,
            "options": {
                "sweeps": options.sweeps,
                "image_size": list(options.image_hw) if options.image_hw else None,
                "jpeg_quality": options.jpeg_quality if options.image_hw else None,
            },
            "licence": LICENCE,
            "keyframes": sum(s["keyframes"] for s in shards),
            "shards": shards,
            "skipped": [],
        }
        write_atomically(out / f"{split}.manifest.json", encode_json(manifest))


def _summary(recipes, todo, state, out, seconds):
    kept = len(recipes) - len(todo)
    size = sum((out / f"{r.name}.tar").stat().st_size for r in recipes)
    frames = sum(len(r.keyframes) for r in recipes)
    click.echo(f"{len(recipes)} shards, {frames} keyframes, {size / 1e6:.1f} MB in {out} ({seconds:.1f} s)")
    if kept:
        click.echo(f"{kept} of them were there already and were kept")
    if todo:
        click.echo(f"{'member':<8}{'read MB':>12}{'written MB':>12}{'ratio':>8}")
        for i, kind in enumerate(KINDS):
            read, written = state[1 + i] / 1e6, state[1 + len(KINDS) + i] / 1e6
            ratio = f"{written / read:8.2f}" if read else " " * 8
            click.echo(f"{kind:<8}{read:>12.1f}{written:>12.1f}{ratio}")


if __name__ == "__main__":
    main()
