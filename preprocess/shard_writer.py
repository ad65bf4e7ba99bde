"""A recipe -> a tar and its index, written so that a half-finished shard can never be taken for a whole one."""

import itertools
from dataclasses import dataclass, field

from common.plain import one_line
from common.record import encode_json
from common.shard_index import dump_index
from preprocess.errors import SourceError
from preprocess.indexed_tar import IndexedTar
from preprocess.keyframe import build_record
from preprocess.pointclouds import DROPPED, NO_RING

KINDS = ("images", "radar", "lidar", "rest")
FOUND = (DROPPED, NO_RING)  # what build_record counts besides bytes


@dataclass
class Written:
    """What became of one shard: keyframes written, source and shard bytes by kind, what of FOUND was met, samples left out."""

    keyframes: int = 0
    read: dict = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    written: dict = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    found: dict = field(default_factory=lambda: dict.fromkeys(FOUND, 0))
    skipped: list = field(default_factory=list)

    def add(self, keyframes, read, written):
        self.keyframes += keyframes
        for kind in KINDS:
            self.read[kind] += read.get(kind, 0)
            self.written[kind] += written.get(kind, 0)
        for name in FOUND:
            self.found[name] += read.get(name, 0)


def skipped_name(shard):
    """Name of the list of samples that --on-error skip left out of a shard; there is none where nothing was."""
    return f"{shard}.skipped.json"


def write_shard(
    recipe, dataroot, store, image_hw=None, jpeg_quality=90, on_error="stop", keep_sequences=False, on_keyframe=None
):
    """Write one shard: tar to a temporary name, flush, rename; then the index, which is the commit mark.

    A shard all of whose samples were skipped is not written: only the list of them lies where it would have been.

    Args:
        recipe: ShardRecipe. dataroot: nuScenes folder. store: of the folder of the shards, see common.stores.
        on_error: "stop" raises; "skip" leaves the sample out, and with keep_sequences its whole scene.
        on_keyframe: called with (1, bytes in by kind and what was found, bytes out by kind) after each keyframe.
    Returns:
        Written.
    Raises:
        SourceError: bad input; nothing of the shard stays behind. OSError: the disk.
    """
    done = Written(skipped=list(recipe.skipped))
    records = records_of(recipe, dataroot, done.skipped, image_hw, jpeg_quality, on_error, keep_sequences)
    return assemble(recipe, records, done, store, on_keyframe)


def assemble(recipe, records, done, store, on_keyframe=None):
    """Write a shard of records that are made; see write_shard.

    Args:
        records: iterator over (KeyframeRecipe, members, bytes read), in order. done: Written, to which what is written is
            added; what it lists as skipped when the records have come to their end is what the shard's list says.
    """
    store.remove(f"{recipe.name}.idx.json")
    store.remove(skipped_name(recipe.name))
    first = next(records, None)
    if first is None:
        store.remove(f"{recipe.name}.tar")
        store.write(skipped_name(recipe.name), encode_json({"skipped": done.skipped}))
        return done
    with store.new_file(f"{recipe.name}.tar") as file:
        with IndexedTar(file) as tar:
            for frame, members, read in itertools.chain([first], records):
                tar.add(frame.key, frame.facts["token"], frame.facts["scene"]["name"], members)
                counts = (1, read, _bytes_by_kind(members))
                done.add(*counts)
                if on_keyframe:
                    on_keyframe(*counts)
    index = tar.index(store.path(f"{recipe.name}.tar"), recipe.facts)
    if done.skipped:
        store.write(skipped_name(recipe.name), encode_json({"skipped": done.skipped}))
    store.write(f"{recipe.name}.idx.json", dump_index(index))
    return done


def records_of(recipe, dataroot, skipped, image_hw=None, jpeg_quality=90, on_error="stop", keep_sequences=False):
    """(frame, members, bytes read) of each keyframe that can be made; the others are added to `skipped`. See write_shard."""
    for scene in recipe.scenes():
        held, failed = [], None
        for frame in scene:
            try:
                record = (frame, *build_record(dataroot, frame, recipe.facts, image_hw, jpeg_quality))
            except SourceError as error:
                if on_error == "stop":
                    raise
                failed = one_line(error)
                if keep_sequences:
                    break
                skipped.append({"key": frame.key, "token": frame.facts["token"], "why": failed})
                continue
            if keep_sequences and on_error == "skip":
                held.append(record)  # until the scene is known to be whole
            else:
                yield record
        if keep_sequences and failed:
            skipped += [{"key": f.key, "token": f.facts["token"], "why": failed} for f in scene]
        else:
            yield from held


def _bytes_by_kind(members):
    kinds = dict.fromkeys(KINDS, 0)
    for name, data in members.items():
        kind = "images" if name.endswith(".jpg") else name.partition(".")[0]
        kinds[kind if kind in kinds else "rest"] += len(data)
    return kinds
