"""python -m preprocess.layer: members added beside finished shards, in `layers/NAME/train-000.tar`, made from what they hold.

Anyone can make a layer, from the shards alone or with anything else at hand:

    def make(sample):  # a preprocess.layer_part.LayerSample
        return {"depth.npy.zst": encode_array(my_depth(sample.image("CAM_FRONT")))}

    write_layer("shards", "depth", make, workers=4)

shards/README.md is the specification of what is written, and has such an example whole.
"""

import hashlib
import importlib
import os
import sys
import time

import click

from common import addresses
from common.interrupts import Interruptible
from common.layers import LayerFacts, layer_folder
from common.manifest import Manifest, ManifestShard, dump_manifest, manifest_name
from common.progress import Progress
from common.record import encode_json
from common.shard_index import open_index, parse_index
from common.shard_set import find_shards
from common.spelling import EITHER, spelled
from common.stores import open_store, parse_options
from preprocess.command import fail_in_one_line, layer_work, shards_option
from preprocess.errors import SourceError
from preprocess.layer_part import LayerTask, write_part
from preprocess.pool import DaskPool, LocalPool

MADE_HERE = {
    "depth": "preprocess.layers.depth:make"
}  # layers that come with the project; maps have a command of their own


@click.command(cls=Interruptible, context_settings={**EITHER, "show_default": True, "max_content_width": 100})
@click.argument("name")
@shards_option
@click.option(
    "--make",
    "place",
    default="",
    show_default=False,
    help="package.module:function that makes it  [default: that of depth]",
)
@click.option("--missing", default="error", type=click.Choice(["error", "empty"]), help="what readers make of a gap")
@layer_work
def main(name, patterns, place, missing, workers, scheduler, overwrite, store_options):
    """Add layer NAME to finished shards, which keep their bytes: depth, or any with --make.

    The same command continues an interrupted run.
    """

    def run():
        make, made_by = find_make(name, place)
        more = {"missing": missing, "scheduler": scheduler, "overwrite": overwrite}
        store = parse_options(store_options)
        count = write_layer(patterns, name, make, workers, options={"make": made_by}, store_options=store, **more)
        click.echo(f"layer {name}: {count} keyframes, in {', '.join(patterns)} under layers/{name}/")

    fail_in_one_line(run, f"layer {name}")


def find_make(name, place=""):
    """(the function of "package.module:function", that text). Without a place that of a layer of the project's own.

    Raises ValueError with the remedy.
    """
    place = place or MADE_HERE.get(name, "")
    if not place:
        raise ValueError(
            f"layer {name}: --make package.module:function says what makes it; of its own there is {', '.join(MADE_HERE)}"
        )
    module, colon, attribute = place.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"--make {place}: it is package.module:function")
    sys.path.insert(0, os.getcwd())  # a module of the user's lies there
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the user's own file imports
        raise ValueError(f"--make {place}: there is no module {module}; run in the folder that holds it") from None
    if not callable(found):
        raise ValueError(f"--make {place}: {module} has no function {attribute}")
    return found, place


def write_layer(
    shards, name, make, workers=1, *, missing="error", options=None, overwrite=False, scheduler="", store_options=None
):
    """Add a layer to finished shards, or go on where a run was interrupted. The shards are read, never written.

    Args:
        shards: what common.shard_set.find_shards takes. name: of the layer. make: LayerSample -> {member name: bytes}, pure, so
            that the same call gives the same bytes; a function that other processes can import, or a partial of one. None or
            {} leaves a keyframe out.
        workers: processes. scheduler: a Dask scheduler that runs the work instead. missing: what readers make of a
            keyframe that is left out, "error" or "empty".
        options: JSON values that are recorded; finished parts made with others are refused, unless `overwrite`.
        store_options: of the shards' store.
    Returns:
        Number of keyframes that the layer has.
    Raises:
        SourceError, ShardError, ValueError: what is wrong and the remedy; finished parts of the layer stay.
    """
    found = find_shards(shards, options=store_options)
    tasks = [_task(tar, name, missing, options or {}, store_options) for tar in found]
    pool = DaskPool(scheduler) if scheduler else LocalPool(workers)
    count = 0
    for folder in dict.fromkeys(task.folder for task in tasks):
        store = open_store(layer_folder(folder, name), store_options)
        own = [task for task in tasks if task.folder == folder]
        with store.locked():
            todo = [task for task in own if not _is_finished(store, task, overwrite)]
            _run(pool, todo, {"make": make, "store_options": store_options}, name)
            count += _write_manifests(store, own, found.manifests.get(folder, {}))
    return count


def _task(tar, name, missing, options, store_options):
    folder, file = addresses.split(tar)
    base, _ = open_index(open_store(folder or ".", store_options), file)
    made_with = hashlib.sha256(encode_json({"options": options, "missing": missing})).hexdigest()
    facts = LayerFacts(name, file, base.tar_sha256, missing, options, made_with)
    return LayerTask(folder, file, tuple(base.keys), facts)


def _is_finished(store, task, overwrite):
    """Whether this part of the layer is there. Raises SourceError where it is, made with other options."""
    if overwrite or not store.exists(task.index_name) or not store.exists(task.tar):
        return False
    index = _index(store, task.tar)
    facts = LayerFacts.parse(index.facts, store.path(task.tar))
    if facts.base_sha256 != task.facts.base_sha256:
        raise SourceError(
            f"{store.path(task.tar)}: belongs to another {task.tar} than the one there; give --overwrite, or remove it"
        )
    if facts.made_with != task.facts.made_with:
        raise SourceError(
            f"{store.path(task.tar)}: made with options {facts.options}, missing {facts.missing}; give --overwrite"
        )
    return True


def _run(pool, tasks, arguments, name):
    with Progress(sum(len(task.keyframes) for task in tasks), "keyframes", f"layer {name}") as bar:

        def progress(done):
            elapsed = max(time.monotonic() - bar.started, 1e-9)
            bar.update(done.keyframes, f"{sum(done.written.values()) / elapsed / 1e6:.1f} MB/s")

        return pool.run(tasks, arguments, progress, write_part)


def _write_manifests(store, tasks, manifests):
    """The manifest of each split, as the shards have them: of all parts of the layer that are there.

    manifests: split -> Manifest of the shards. Returns the number of keyframes in the tasks' parts.
    """
    for split, base in manifests.items():
        parts = [shard for shard in base.shards if store.exists(addresses.index_address(shard.name))]
        indexes = [_index(store, shard.name) for shard in parts]
        shards = [
            ManifestShard(shard.name, len(i.keys), [name for name, _, _ in i.scenes], i.tar_bytes, i.tar_sha256)
            for shard, i in zip(parts, indexes, strict=True)
        ]
        if shards:
            facts = LayerFacts.parse(indexes[0].facts, store.path(shards[0].name))
            told = {"layer": facts.layer, "missing": facts.missing, "options": facts.options}
            store.write(
                manifest_name(split), dump_manifest(Manifest(split, base.version, tuple(shards), told, base.licence))
            )
    return sum(len(_index(store, task.tar).keys) for task in tasks)


def _index(store, tar):
    return parse_index(store.read(addresses.index_address(tar)), store.path(tar))


if __name__ == "__main__":
    main(prog_name=spelled("preprocess.layer"))
