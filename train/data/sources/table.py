"""The keyframes of several shards: what every source knows from their indexes before it reads a byte of a tar."""

import hashlib
import json
import threading
import zlib
from functools import cached_property

import numpy as np

from common.shard_index import ABSENT, ShardError
from common.spelling import spelled

# Members closer together than this are fetched in one read.
MAX_GAP_BYTES = 64 << 10


class KeyframeTable:
    """The keyframes of several shards, numbered in shard order.

    Attributes:
        indexes: of the shards, in order.
        keys, tokens: of each keyframe. scene_of: int64 number of each keyframe's scene, or of its
            unbroken part where preprocessing left samples out. whole_scene_of: of its scene, whatever was left out.
            scene_names: of whole scenes.
        facts: of the first shard; all shards must agree on them but for their own digest. rig: the Rig that they share.
        bytes_read: total so far, for the progress bar.
        cams: names of the cameras in slot order that were chosen of this set among several; () for none.
    Raises:
        ShardError: shards that do not belong together, or without a sample.
    """

    cams = ()

    def __init__(self, indexes, verify_reads=False):
        self.indexes, self.verify_reads = indexes, verify_reads
        self.facts = _common_facts(indexes)
        self.bytes_read = 0
        self.keys = [key for index in indexes for key in index.keys]
        self.tokens = [token for index in indexes for token in index.tokens]
        self.scene_names = [name for index in indexes for name, _, _ in index.scenes]
        if not self.keys:
            raise ShardError(f"{indexes[0].tar}: there is no sample in the shards")
        if len(set(self.keys)) != len(self.keys):
            raise ShardError("the same keyframe occurs in two of the shards; name each shard once")
        rows = [count for index in indexes for _, _, count in index.scenes]
        self.whole_scene_of = np.repeat(np.arange(len(rows)), rows)
        self.scene_of = _unbroken(self.whole_scene_of, self.keys)
        self._starts = np.cumsum([0] + [len(index.keys) for index in indexes])
        self._columns = [{name: i for i, name in enumerate(index.members)} for index in indexes]
        self._counting = threading.Lock()

    def __len__(self):
        return len(self.keys)

    @cached_property
    def rig(self):
        """The Rig of the shards."""
        return self.indexes[0].rig

    @cached_property
    def samples_sha256(self):
        """Hex digest of the list of samples, in order: two sources that share it give the same epochs."""
        pairs = zip(self.keys, self.tokens, strict=True)
        return hashlib.sha256("".join(f"{key} {token}\n" for key, token in pairs).encode()).hexdigest()

    @property
    def identity(self):
        """What sources must share to be copies of one set: in words what another one has -> digest of it."""
        metadata = json.dumps(self.facts, sort_keys=True).encode()
        return {
            "other samples": self.samples_sha256,
            "shards made with other options": hashlib.sha256(metadata).hexdigest(),
            "the same samples in shards of other bytes": self.bytes_sha256,
        }

    @property
    def bytes_sha256(self):
        """Hex digest of the shards' own digests, in order."""
        return hashlib.sha256("".join(index.tar_sha256 for index in self.indexes).encode()).hexdigest()

    def lacks(self, member):
        """The first shard none of whose keyframes holds the member; None where each has one that does."""
        return next((i.tar for n, i in enumerate(self.indexes) if self._column(n, member) is None), None)

    def where(self, number):
        """Shard path and key, for messages."""
        shard, row = self._locate(number)
        return f"{self.indexes[shard].tar}: {self.indexes[shard].keys[row]}"

    def _locate(self, number):
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, int(number - self._starts[shard])

    def _column(self, shard, member):
        """Column of a member in a shard's index. A tuple names (layer, member), the layer "" being the shard itself."""
        if isinstance(member, tuple):
            layer, member = member
            if layer:
                return None
        return self._columns[shard].get(member)

    def _wanted(self, shard, row, members):
        """(offset, size, column, member) of those of the members that a keyframe has, in the order of the tar."""
        index = self.indexes[shard]
        sizes, offsets = index.sizes[row].tolist(), index.offsets[row].tolist()
        wanted = [(offsets[c], sizes[c], c, m) for m in members if (c := self._column(shard, m)) is not None]
        return sorted((w for w in wanted if w[1] != ABSENT), key=lambda w: w[:3])

    def _check(self, shard, row, column, data):
        """Raise ShardError for a member's bytes with another checksum than the index has."""
        index = self.indexes[shard]
        if zlib.crc32(data) != index.crc32[row, column]:
            raise ShardError(
                f"{index.tar}: the file is damaged: {index.members[column]} of {index.keys[row]} is not what was written; "
                f"copy the file anew ({spelled('preprocess.verify')} finds all that is damaged)"
            )

    def _count(self, size):
        with self._counting:
            self.bytes_read += size


def neighbours(wanted, most=None):
    """Groups of (offset, size, …) tuples, sorted by offset, that are each to be fetched in one read.

    most: groups at most; the nearest of them are then joined, however wide their gap.
    """
    groups = []
    for item in wanted:
        if groups and item[0] - _end(groups[-1]) <= MAX_GAP_BYTES:
            groups[-1].append(item)
        else:
            groups.append([item])
    while most and len(groups) > most:
        gaps = [after[0][0] - _end(before) for before, after in zip(groups, groups[1:], strict=False)]
        nearest = gaps.index(min(gaps))
        groups[nearest] += groups.pop(nearest + 1)
    return groups


def _end(group):
    return group[-1][0] + group[-1][1]


def cut(group, data):
    """(column, member, memoryview of its bytes) of each member of a group, from the bytes of its whole range."""
    view, start = memoryview(data), group[0][0]
    return [(c, member, view[offset - start : offset - start + size]) for offset, size, c, member in group]


def span(group):
    """(first byte, bytes) of a group's range."""
    return group[0][0], _end(group) - group[0][0]


def _unbroken(scene_of, keys):
    """A new number wherever the scene changes or a keyframe is missing, so that no window spans the gap."""
    numbers = np.array([int(key.rpartition("_")[2]) for key in keys])
    begins = (np.diff(scene_of) != 0) | (np.diff(numbers) != 1)
    return np.concatenate([[0], np.cumsum(begins)])


def _common_facts(indexes):
    own = {"recipe_sha256", "base_tar", "base_sha256"}  # the last two are a layer's
    first = {k: v for k, v in indexes[0].facts.items() if k not in own}
    for index in indexes[1:]:
        facts = {k: v for k, v in index.facts.items() if k not in own}
        if facts != first:
            names = sorted(k for k in facts.keys() | first.keys() if facts.get(k) != first.get(k))
            raise ShardError(
                f"{index.tar}: was made with other options than {indexes[0].tar} (it differs in {', '.join(names)}); "
                "give the shards of one set"
            )
    return first
