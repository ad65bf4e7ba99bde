"""python -m preprocess.index: rebuild the index of shards whose index is lost or damaged."""

import sys
from pathlib import Path

import click

from common.addresses import index_address, split
from common.errors import ShardError, StoreError
from common.interrupts import Interruptible
from common.layers import base_folder, build_layer_index, is_layer
from common.plain import one_line
from common.progress import progress, say
from common.shard_index import build_index, dump_index, open_index
from common.shard_set import find_shards
from common.spelling import EITHER, spelled
from common.stores import local_copy, open_store, parse_options
from preprocess.command import store_option


@click.command(cls=Interruptible, context_settings=EITHER)
@click.argument("shards", nargs=-1, required=True)
@store_option
def main(shards, store_options):
    """Rebuild the index beside each of SHARDS (tars, a folder, a pattern; addresses too) from nothing but the tar."""
    failed, tars = False, []
    for pattern in shards:
        try:
            options = parse_options(store_options)
            tars += find_shards(pattern, options=options, strict=False)
        except (ValueError, OSError) as error:
            failed = _failed(error)
    for tar in progress(tars, "shards", "index"):
        folder, name = split(tar)
        try:
            store = open_store(folder or ".", options)
            path = store.path(index_address(name))
            say(f"{path}: {'rebuilt' if rebuild(store, name) else 'was right already'}", to_stdout=True)
        except ValueError as error:
            failed = _failed(error)
        except OSError as error:
            failed = _failed(f"{error.filename or path}: {error.strerror or error}; nothing was written")
    sys.exit(failed)


def rebuild(store, name):
    """Make the index of the tar `name` in a store anew; False where it was right already. Raises ValueError, OSError."""
    if not store.exists(name):
        raise ShardError(f"{store.path(name)}: is not there; copy it or run {spelled('preprocess.run')} again")
    with local_copy(store, name) as tar:
        data = dump_index(_index_of(tar, store))
    index = index_address(name)
    try:
        if store.read(index, len(data)) == data:
            return False
    except StoreError:
        pass  # missing, too long or unreadable: it is written anew
    store.write(index, data)
    return True


def _index_of(tar, store):
    """The index of a local copy of a tar in a store; one of a layer needs that of its shard."""
    if not is_layer(tar):
        return build_index(tar)
    base = base_folder(store.address)
    if base is None:
        raise ShardError(f"{tar}: a layer's tar, but not in layers/NAME/ beside its shards; put it there")
    return build_layer_index(
        tar, open_index(open_store(base or ".", getattr(store, "options", None)), Path(tar).name)[0]
    )


def _failed(error):
    say(f"error: {one_line(error)}")
    return True


if __name__ == "__main__":
    main(prog_name=spelled("preprocess.index"))
