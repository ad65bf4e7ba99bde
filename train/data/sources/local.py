"""The local source: byte ranges of just the members that an experiment needs, from files of this machine."""

import os

from common.shard_index import ShardError
from common.shard_set import find_shards, load_indexes
from common.stores import stat_of
from train.data.order import epoch_order
from train.data.sources.open_files import OpenFiles
from train.data.sources.table import KeyframeTable, cut, neighbours, span


class LocalSource(KeyframeTable):
    """Random access to the keyframes of local shards.

    Args:
        shards: ShardSet, or what find_shards takes. verify_reads: compare the checksum of every member read.
    Raises:
        ShardError: a missing or damaged index, besides what KeyframeTable raises.
    """

    is_stream = fetches_ahead = False

    def __init__(self, shards, verify_reads=False):
        self.shards = find_shards(shards)
        opened = load_indexes(self.shards)
        super().__init__([index for index, _ in opened], verify_reads)
        self._etags = [stat.etag for _, stat in opened]
        self._files = OpenFiles(index.tar for index in self.indexes)

    def order(self, windows, seed, epoch, shuffle):
        """Window numbers of an epoch."""
        return epoch_order(len(windows), seed, epoch, shuffle)

    def begin(self, frames, members=None):
        """Nothing to prepare: any keyframe can be read at any time."""

    def interrupt(self):
        """Nothing ever waits."""

    def read(self, number, members):
        """Bytes of the members that keyframe `number` has: dict from name to memoryview. Safe from many threads.

        A shard that is no longer the file whose index was read is held against its checksums from then on.

        Raises ShardError, naming shard and key, if a read fails, comes up short, or (with verify_reads, and where the shard was
        changed) has another checksum.
        """
        shard, row = self._locate(number)
        out = {}
        for group in neighbours(self._wanted(shard, row, members)):
            data, changed = self._pread(shard, row, *span(group))
            for column, member, part in cut(group, data):
                if changed:
                    self._check_changed(shard, row, column, part)
                elif self.verify_reads:
                    self._check(shard, row, column, part)
                out[member] = part
        return out

    def close(self):
        """Close the shards; a later read opens them again."""
        self._files.close()

    def _pread(self, shard, row, start, size):
        """(bytes, whether the shard is another file than when its index was read, or was written to since)."""
        index = self.indexes[shard]
        try:
            with self._files.use(shard) as file:
                # pread, not a memory map: a shard that is truncated under a map kills the process.
                data = os.pread(file, size, start)
                changed = stat_of(os.fstat(file)).etag != self._etags[shard]
        except OSError as error:
            raise ShardError(f"{index.tar}: cannot read {index.keys[row]} ({error.strerror})") from None
        if len(data) != size:
            raise ShardError(f"{index.tar}: cut short at {index.keys[row]}; {self._remedy(changed)}")
        self._count(size)
        return data, changed

    def _check_changed(self, shard, row, column, data):
        try:
            self._check(shard, row, column, data)
        except ShardError:
            index = self.indexes[shard]
            raise ShardError(
                f"{index.tar}: {index.members[column]} of {index.keys[row]} is not what its index says; {self._remedy(True)}"
            ) from None

    @staticmethod
    def _remedy(changed):
        return "the file was exchanged or changed after it was opened; start again" if changed else "copy it anew"
