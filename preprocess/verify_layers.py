"""What is wrong with the layers beside shards: each is read whole and held against its shard."""

import tarfile

from common.errors import CannotList, ShardError
from common.layers import HEADER, LayerFacts, build_layer_index, layer_folder, layers_beside
from common.manifest import MAX_MANIFEST_BYTES, SUFFIX, parse_manifest
from common.map_shapes import MAP_LAYER, decode_shapes
from common.record import RecordError, decode_member
from common.shard_index import dump_index, open_index
from common.spelling import spelled
from common.stores import local_copy, open_store
from preprocess.workers import go_on


def check_layers(store, bases, whole):
    """Yield a line for each thing that is wrong.

    Args:
        store: of the shards. bases: tar name -> ShardIndex of those shards that are sound. whole: whether these are all that
            there are, so that a layer's tar without a shard is a stray one.
    """
    try:
        names = layers_beside(store)
    except CannotList:
        return
    for name in names:
        own = open_store(layer_folder(store.address, name), getattr(store, "options", None))
        sound = {}
        for tar in own.list():
            if not tar.endswith(".tar"):
                continue
            if tar in bases:
                problems, index = _check_tar(own, tar, bases[tar], name)
                yield from problems
                if index is not None:
                    sound[tar] = index
            elif whole:
                yield f"{own.path(tar)}: no sound shard of that name lies beside the layer; remove it, or copy the shard"
        yield from _check_manifests(own, sound)


def _check_tar(store, tar, base, name):
    """(problems, ShardIndex or None) of one tar of a layer."""
    try:
        index, _ = open_index(store, tar, verify=True, of_layer=True)
        with local_copy(store, tar) as path:
            rebuilt = _rebuilt(path, base, store.path(tar))
            if rebuilt.tar_sha256 != index.tar_sha256:
                return [f"{store.path(tar)}: its SHA-256 is not the index's; make the layer anew"], None
            if dump_index(rebuilt) != dump_index(index):
                return [
                    f"{store.path(tar)}: its index does not describe it; rebuild it with {spelled('preprocess.index')}"
                ], None
            problems = [f"{store.path(tar)}: {key}: {what}" for key, what in _wrong_members(path, name)]
        facts = LayerFacts.parse(index.facts, store.path(tar))
        if facts.layer != name:
            problems.append(f"{store.path(tar)}: is of layer {facts.layer}; its folder has another name")
        if facts.missing == "error" and index.keys != base.keys:
            first = next(key for key in base.keys if key not in set(index.keys))
            problems.append(f"{store.path(tar)}: lacks {first}, and says that it lacks nothing; make the layer anew")
        return problems, index
    except ShardError as error:
        return [str(error)], None


def _rebuilt(path, base, where):
    """The index of a local copy of a tar of a layer. Raises ShardError, which names where the tar lies."""
    try:
        return build_layer_index(path, base)
    except ShardError as error:
        raise ShardError(str(error).replace(str(path), str(where))) from None


def _wrong_members(path, name):
    """(key, what is wrong) of members that do not decode, as far as their names say what they are."""
    key, members = None, {}
    with tarfile.open(path) as archive:
        for entry in archive:
            go_on()
            if entry.name == HEADER:
                continue
            own, _, member = entry.name.partition(".")
            if own != key:
                yield from _wrong_shapes(key, members, name)
                key, members = own, {}
            members[member] = archive.extractfile(entry).read()
            try:
                decode_member(members[member], member)
            except RecordError as error:
                yield key, error
    yield from _wrong_shapes(key, members, name)


def _wrong_shapes(key, members, name):
    if key is not None and name == MAP_LAYER:
        try:
            decode_shapes(members)
        except RecordError as error:
            yield key, error


def _check_manifests(store, sound):
    for name in store.list():
        if not name.endswith(SUFFIX):
            continue
        try:
            manifest = parse_manifest(store.read(name, MAX_MANIFEST_BYTES), store.path(name))
        except ShardError as error:
            yield str(error)
            continue
        for entry in manifest.shards:
            index = sound.get(entry.name)
            if index is not None and (entry.sha256, entry.keyframes) != (index.tar_sha256, len(index.keys)):
                yield f"{store.path(entry.name)}: is not the tar that {name} lists; make the layer anew"
