"""The indexed reader: byte ranges of just the members that an experiment needs, from local shards."""

import os
import threading
import zlib

import numpy as np

from common.shard_index import ABSENT, ShardError, load_index
from train.data.order import epoch_order

# Members closer together than this are fetched in one read.
MAX_GAP_BYTES = 64 << 10


class KeyframeTable:
    """The keyframes of several shards, numbered in shard order.

    Attributes:
        keys, tokens: of each keyframe. scene_of: int64 number of each keyframe's scene, or of its
            unbroken part where preprocessing left samples out. scene_names: of whole scenes.
        facts: of the first shard; all shards must agree on them but for their own digest.
        bytes_read: total so far, for the progress bar.
    Raises:
        ShardError: shards that do not belong together.
    """

    def __init__(self, indexes):
        self.indexes = indexes
        self.facts = _common_facts(indexes)
        self.bytes_read = 0
        self.keys = [key for index in indexes for key in index.keys]
        self.tokens = [token for index in indexes for token in index.tokens]
        self.scene_names = [name for index in indexes for name, _, _ in index.scenes]
        if len(set(self.keys)) != len(self.keys):
            raise ShardError("the same keyframe occurs in two of the shards; name each shard once")
        rows = [count for index in indexes for _, _, count in index.scenes]
        self.scene_of = _unbroken(np.repeat(np.arange(len(rows)), rows), self.keys)
        self._starts = np.cumsum([0] + [len(index.keys) for index in indexes])

    def __len__(self):
        return len(self.keys)

    def lacks(self, member):
        """The first shard none of whose keyframes holds the member; None where each has one that does."""
        return next((index.tar for index in self.indexes if member not in index.members), None)

    def where(self, number):
        """Shard path and key, for messages."""
        shard, row = self._locate(number)
        return f"{self.indexes[shard].tar}: {self.indexes[shard].keys[row]}"

    def _locate(self, number):
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, int(number - self._starts[shard])


class IndexedReader(KeyframeTable):
    """Random access to the keyframes of local shards. verify_reads: compare the checksum of every member read.

    Raises ShardError for a missing or damaged index, besides what KeyframeTable raises.
    """

    is_stream = False

    def __init__(self, shards, verify_reads=False):
        super().__init__([load_index(shard) for shard in shards])
        self.verify_reads = verify_reads
        self._columns = [{name: i for i, name in enumerate(index.members)} for index in self.indexes]
        self._files = [None] * len(self.indexes)
        self._lock = threading.Lock()

    def order(self, windows, seed, epoch, shuffle):
        """Window numbers of an epoch."""
        return epoch_order(len(windows), seed, epoch, shuffle)

    def begin(self, frames):
        """Nothing to prepare: any keyframe can be read at any time."""

    def interrupt(self):
        """Nothing ever waits."""

    def has(self, number, member):
        """Whether keyframe `number` holds the member."""
        shard, row = self._locate(number)
        column = self._columns[shard].get(member)
        return column is not None and self.indexes[shard].sizes[row, column] != ABSENT

    def read(self, number, members):
        """Bytes of the members that keyframe `number` has: dict from name to memoryview. Safe from many threads.

        Raises ShardError, naming shard and key, if a read fails, comes up short, or (verify_reads) has another checksum.
        """
        shard, row = self._locate(number)
        index, columns = self.indexes[shard], self._columns[shard]
        sizes, offsets = index.sizes[row].tolist(), index.offsets[row].tolist()
        wanted = [(offsets[c], sizes[c], c, m) for m in members if (c := columns.get(m)) is not None]
        wanted = sorted(w for w in wanted if w[1] != ABSENT)
        out = {}
        for group in _neighbours(wanted):
            start, end = group[0][0], max(w[0] + w[1] for w in group)
            view = memoryview(self._pread(shard, row, start, end - start))
            for offset, size, column, member in group:
                out[member] = view[offset - start : offset - start + size]
                if self.verify_reads and zlib.crc32(out[member]) != index.crc32[row, column]:
                    raise ShardError(
                        f"{index.tar}: {index.keys[row]}.{member} has another checksum than its index says; "
                        "check it with python -m preprocess.verify"
                    )
        return out

    def close(self):
        """Close the shards; a later read opens them again."""
        with self._lock:
            for file in self._files:
                if file is not None:
                    os.close(file)
            self._files = [None] * len(self.indexes)

    def _pread(self, shard, row, start, size):
        index = self.indexes[shard]
        try:
            # pread, not a memory map: a shard that is truncated under a map kills the process.
            data = os.pread(self._file(shard), size, start)
        except OSError as error:
            raise ShardError(f"{index.tar}: cannot read {index.keys[row]} ({error.strerror})") from None
        if len(data) != size:
            raise ShardError(f"{index.tar}: cut short at {index.keys[row]}; make it anew")
        self.bytes_read += size
        return data

    def _file(self, shard):
        file = self._files[shard]
        if file is None:
            with self._lock:
                if self._files[shard] is None:
                    self._files[shard] = os.open(self.indexes[shard].tar, os.O_RDONLY)
                file = self._files[shard]
        return file


def _neighbours(wanted):
    group = []
    for item in wanted:
        if group and item[0] - (group[-1][0] + group[-1][1]) > MAX_GAP_BYTES:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _unbroken(scene_of, keys):
    """A new number wherever the scene changes or a keyframe is missing, so that no window spans the gap."""
    if not len(scene_of):
        return scene_of
    numbers = np.array([int(key.rpartition("_")[2]) for key in keys])
    begins = (np.diff(scene_of) != 0) | (np.diff(numbers) != 1)
    return np.concatenate([[0], np.cumsum(begins)])


def _common_facts(indexes):
    own = {"recipe_sha256"}
    first = {k: v for k, v in indexes[0].facts.items() if k not in own}
    for index in indexes[1:]:
        facts = {k: v for k, v in index.facts.items() if k not in own}
        if facts != first:
            names = [k for k in facts if facts[k] != first.get(k)]
            raise ShardError(f"{index.tar}: differs from {indexes[0].tar} in {', '.join(names)}; do not mix them")
    return first
