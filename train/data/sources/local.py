"""The local source: byte ranges of just the members that an experiment needs, from files of this machine."""

import os
import threading

from common.shard_index import ShardError
from common.shard_set import find_shards, load_indexes
from train.data.order import epoch_order
from train.data.sources.table import KeyframeTable, cut, neighbours, span


class LocalSource(KeyframeTable):
    """Random access to the keyframes of local shards.

    Args:
        shards: ShardSet, or what find_shards takes. verify_reads: compare the checksum of every member read.
    Raises:
        ShardError: a missing or damaged index, besides what KeyframeTable raises.
    """

    is_stream = False

    def __init__(self, shards, verify_reads=False):
        self.shards = find_shards(shards)
        super().__init__([index for index, _ in load_indexes(self.shards)], verify_reads)
        self._files = [None] * len(self.indexes)
        self._lock = threading.Lock()

    def order(self, windows, seed, epoch, shuffle):
        """Window numbers of an epoch."""
        return epoch_order(len(windows), seed, epoch, shuffle)

    def begin(self, frames, members=None):
        """Nothing to prepare: any keyframe can be read at any time."""

    def interrupt(self):
        """Nothing ever waits."""

    def read(self, number, members):
        """Bytes of the members that keyframe `number` has: dict from name to memoryview. Safe from many threads.

        Raises ShardError, naming shard and key, if a read fails, comes up short, or (verify_reads) has another checksum.
        """
        shard, row = self._locate(number)
        out = {}
        for group in neighbours(self._wanted(shard, row, members)):
            for column, member, data in cut(group, self._pread(shard, row, *span(group))):
                if self.verify_reads:
                    self._check(shard, row, column, data)
                out[member] = data
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
        self._count(size)
        return data

    def _file(self, shard):
        file = self._files[shard]
        if file is None:
            with self._lock:
                if self._files[shard] is None:
                    self._files[shard] = os.open(self.indexes[shard].tar, os.O_RDONLY)
                file = self._files[shard]
        return file
