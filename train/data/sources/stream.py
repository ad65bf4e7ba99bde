"""The source of what can only be read from front to back: pipe: commands, and any other shards with reader "stream".

Indexes, small, are read first, so the order of an epoch is known before the first byte of a tar arrives. One thread
a running epoch walks the tars and keeps the records that are still wanted; read() waits for them. A loader without threads
walks as far as it must in read() itself. Records, order and resume are therefore as exact as with local files; what differs
is that the shuffle reaches only as far as its buffer, and that a resumed epoch reads the shard it stood in from its beginning.
"""

import io
import os
import select
import signal
import subprocess
import tarfile
import threading
from contextlib import contextmanager
from functools import partial

import numpy as np

from common import addresses
from common.errors import ShardError
from common.shard_index import ABSENT, MAX_INDEX_BYTES, parse_index
from common.shard_set import check_listed, find_shards, in_parallel, open_stores
from train.data.order import ORDER_STREAM
from train.data.sources.table import KeyframeTable
from train.processes.ranks import say

END_S = 5.0  # that a command has to end in, once it has given all
INDEX_STALLS = 4  # times Retry.stall_s that a command has for an index: many of them start at once


@contextmanager
def open_stream(address, stores, stall_s, on_process=lambda process: None):
    """A binary stream of an address of a ShardSet. Raises ShardError, of a pipe: command that has failed with its exit code:
    at its end, or in the place of what the block could not make of the half that came.

    stores: of common.shard_set.open_stores, or its like. stall_s: time that a command has for its next bytes; stores have
    limits of their own. on_process is given the process of a command, so that another thread can end it.
    """
    if not addresses.is_pipe(address):
        folder, name = addresses.split(address)
        yield io.BufferedReader(_Pieces(stores[folder].chunks(name)))
        return
    command = address[len("pipe:") :]
    process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=0, start_new_session=True)
    on_process(process)
    output = _Output(process.stdout, stall_s)
    stream = io.BufferedReader(output)
    try:
        yield stream
        stream.read(1)
        _check_ended(address, process, output)
    except ShardError:
        raise
    except Exception as error:
        _check_ended(address, process, output, error)
        raise
    finally:
        _kill(process)
        process.stdout.close()
        process.wait()


def _check_ended(address, process, output, cause=None):
    """Raise ShardError where a command that gives nothing more has failed."""
    if not output.ended:
        return
    try:
        code = process.wait(END_S)
    except subprocess.TimeoutExpired:
        return
    if code:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise ShardError(f"{address}: the command ended with {how}; try it by itself, above is what it said") from cause


class _Output(io.RawIOBase):
    """What a process writes. Raises OSError where nothing comes for so many seconds. ended: whether all has come."""

    def __init__(self, output, stall_s):
        self._output, self._stall_s, self.ended = output, stall_s, False
        self._poll = select.poll()
        self._poll.register(output, select.POLLIN)

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self._poll.poll(self._stall_s * 1000):
            raise OSError(f"nothing arrived for {self._stall_s:g} s; is the source up?")
        count = self._output.readinto(buffer)
        self.ended = count == 0
        return count


class _Pieces(io.RawIOBase):
    """A file of the pieces that an iterator gives."""

    def __init__(self, pieces):
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _kill(process):
    """End a shell and the commands it started: they are a process group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def stream_order(shard_of, windows, seed, epoch, shuffle, buffer):
    """Window numbers in the order of a shuffle buffer over shards in random order: a pure function of its arguments.

    Returns (order int64, shard numbers in the order in which they are to be read).
    """
    first_shard = shard_of[np.array([w[0] for w in windows], np.int64)] if windows else np.zeros(0, np.int64)
    shards = np.unique(first_shard)
    if not shuffle:
        return np.arange(len(windows)), shards
    rng = np.random.default_rng((ORDER_STREAM, seed, epoch))
    shards = rng.permutation(shards)
    out, held = [], []
    for window in (w for shard in shards for w in np.flatnonzero(first_shard == shard)):
        held.append(window)
        if len(held) > buffer:
            place = int(rng.integers(len(held)))
            held[place], held[-1] = held[-1], held[place]
            out.append(held.pop())
    out += [held[i] for i in rng.permutation(len(held))]
    return np.array(out, np.int64), shards


class PipeSource(KeyframeTable):
    """Keyframes of shards that are read from front to back. See KeyframeTable for the attributes.

    Args:
        shards: ShardSet, or what find_shards takes. verify_reads: compare checksums. buffer: windows that the shuffle holds.
    Raises:
        ShardError: an index that cannot be read.
    """

    is_stream = fetches_ahead = True

    def __init__(self, shards, verify_reads=False, buffer=64):
        self.shards = find_shards(shards)
        self.addresses, self.stores = list(self.shards), open_stores(self.shards)
        for store in self._remote_stores():
            store.contact.say = partial(say, once_per="node")
        super().__init__(in_parallel(self._load_index, self.shards), verify_reads)
        self.buffer, self.stall_s = buffer, self.shards.retry.stall_s
        self._session = None

    def _load_index(self, tar):
        address = addresses.index_address(tar)
        try:
            with open_stream(address, self.stores, INDEX_STALLS * self.shards.retry.stall_s) as stream:
                raw = stream.read(MAX_INDEX_BYTES)
        except (OSError, ShardError) as error:
            reason = error if isinstance(error, ShardError) else f"{addresses.shown(address)}: {error}"
            raise ShardError(f"the index cannot be read: {reason}") from None
        try:
            index = parse_index(raw, addresses.shown(tar))
        except ShardError as error:
            if not addresses.is_pipe(tar):
                raise
            reason = str(error).partition(";")[0].removeprefix(f"{tar}: ")
            raise ShardError(f"{address}: the command gave no index ({reason}); try it by itself") from None
        check_listed(index, self.shards.entry(tar))
        return index

    def order(self, windows, seed, epoch, shuffle):
        """Window numbers of an epoch."""
        shard_of = np.searchsorted(self._starts, np.arange(len(self)), side="right") - 1
        order, self._shard_order = stream_order(shard_of, windows, seed, epoch, shuffle, self.buffer)
        return order

    def begin(self, frames, members=None):
        """Start to read.

        Args:
            frames: the keyframes wanted, in order, with repeats.
            members: what will be read of each of them, an iterable in the same order; nothing else is kept. Without it no
                thread reads ahead, and all that comes is kept.
        """
        self.close()
        self._session = _Session(self, frames, self._shard_order, members)

    def read(self, number, members):
        """Bytes of the members that keyframe `number` has: waits for them. Raises ShardError, also when nothing comes."""
        record = self._session.take(number)
        shard, row = self._locate(number)
        columns = {m: self._column(shard, m) for m in members}
        lost = [m for m, c in columns.items() if c is not None and c not in record and not self._lacks(shard, row, c)]
        if lost:
            raise ShardError(f"{self.where(number)}: {lost[0]} was not asked for when the epoch began")
        return {m: record[c] for m, c in columns.items() if c in record}

    def interrupt(self):
        """Stop reading; reads that wait raise."""
        for store in self._remote_stores():
            store.stopped.set()
        if self._session is not None:
            self._session.stop()

    def close(self):
        """Stop reading and forget what was read."""
        self.interrupt()
        self._session = None
        for store in self._remote_stores():
            store.stopped.clear()

    def _remote_stores(self):
        return [store for store in self.stores.values() if store.remote]

    def _lacks(self, shard, row, column):
        return self.indexes[shard].sizes[row, column] == ABSENT


class _Session:
    """One pass: what reads, in a thread or not, and the records that are still wanted."""

    def __init__(self, reader, frames, shard_order, members):
        self.reader = reader
        self.wanted, self.rank = {}, {}
        for place, frame in enumerate(frames):
            self.wanted[frame] = self.wanted.get(frame, 0) + 1
            self.rank.setdefault(frame, place)
        self.taken = 0
        self.members = None  # keyframe -> members that will be read of it; None: all
        self.records, self.error, self.stopped, self.done = {}, None, False, False
        self.changed = threading.Condition()
        self.process = None
        needed = {reader._locate(frame)[0] for frame in self.wanted}
        shards = [int(s) for s in shard_order if s in needed]
        self.arriving = self._walk(shards, frames, members)
        self.thread = None
        if members is not None:
            self.thread = threading.Thread(target=self._run, name="stream", daemon=True)
            self.thread.start()

    def take(self, number):
        """Record of a keyframe, for which it waits. What takes too long is an error where it arrives."""
        with self.changed:
            while number not in self.records:
                if self.thread is None:
                    next(self.arriving)
                else:
                    self._wait()
            record = self.records[number]
            self.wanted[number] -= 1
            self.taken += 1
            if not self.wanted[number]:
                del self.records[number]
            self.changed.notify_all()
            return record

    def _wait(self):
        if self.error is not None:
            raise ShardError(str(self.error))
        if self.stopped or self.done:
            raise ShardError("the reader was closed")
        self.changed.wait()

    def stop(self):
        if self.thread is None:
            self.arriving.close()
            return
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
            if self.process is not None and self.process.poll() is None:
                _kill(self.process)
        self.thread.join(timeout=2.0)  # a thread that hangs in a socket ends with that socket's timeout

    def _run(self):
        try:
            for _ in self.arriving:
                if not self._goes_on():
                    self.arriving.close()
                    break
        except Exception as error:  # whatever it is, the consumer raises it
            self.error = error
        with self.changed:
            self.done = True
            self.changed.notify_all()

    def _walk(self, shards, frames, members):
        """Read these shards; yields after each record that is wanted."""
        if members is not None:
            kept = {}
            for frame, own in zip(frames, members, strict=True):
                kept.setdefault(frame, set()).update(own)
            self.members = kept
        for shard in shards:
            yield from self._read_shard(shard)

    def _read_shard(self, shard):
        index, start = self.reader.indexes[shard], int(self.reader._starts[shard])
        rows = {key: i for i, key in enumerate(index.keys)}
        missing = {i for i in range(len(rows)) if self.wanted.get(start + i)}
        address = self.reader.addresses[shard]
        where = addresses.shown(address)
        try:
            with open_stream(address, self.reader.stores, self.reader.stall_s, self._remember) as stream:
                for key, members in _samples(_Counted(stream, self)):
                    row = rows.get(key)
                    if row in missing:
                        missing.discard(row)
                        self._keep(start + row, self._sound(shard, row, members))
                        yield
                    if not missing:
                        break
        except ShardError:
            raise
        except Exception as error:
            raise ShardError(f"{where}: cannot be read on at {self._first(index, missing)} ({error})") from None
        if missing:
            raise ShardError(f"{where}: cut short at {self._first(index, missing)}; make it anew")

    def _remember(self, process):
        self.process = process

    @staticmethod
    def _first(index, missing):
        return index.keys[min(missing)] if missing else "its end"

    def _sound(self, shard, row, members):
        """Column -> bytes of those of a record's members that will be read, each as long as its index says."""
        index, record = self.reader.indexes[shard], {}
        wanted = range(len(index.members))
        if self.members is not None:
            own = self.members[int(self.reader._starts[shard]) + row]
            wanted = [column for member in own if (column := self.reader._column(shard, member)) is not None]
        for column in wanted:
            size, name = index.sizes[row, column], index.members[column]
            if size == ABSENT:
                continue
            record[column] = data = members.get(name)
            if data is None or len(data) != size:
                raise ShardError(
                    f"{index.tar}: {name} of {index.keys[row]} is not as long as its index says: the tar is damaged, or was "
                    "exchanged without its index; copy both anew"
                )
            if self.reader.verify_reads:
                self.reader._check(shard, row, column, data)
        return record

    def _keep(self, number, record):
        with self.changed:
            self.records[number] = record
            self.changed.notify_all()

    def _goes_on(self):
        """Wait while enough records are held. False once stopped."""
        with self.changed:
            # The next frames in order are never further away than buffer and prefetch, so this cannot dead-lock: the
            # reader goes on as long as something that is due before the record at hand has not arrived.
            while not self.stopped and len(self.records) > 4 * self.reader.buffer and self._nothing_due():
                self.changed.wait(1.0)
            return not self.stopped

    def _nothing_due(self):
        """True while every frame of the next stretch of the order is held already."""
        due = self.taken + self.reader.buffer
        return all(frame in self.records or not self.wanted[frame] for frame, place in self.rank.items() if place < due)


class _Counted(io.RawIOBase):
    """Counts bytes for the progress bar, and stops reading when the session does."""

    def __init__(self, stream, session):
        self.stream, self.session = stream, session

    def readable(self):
        return True

    def read(self, size=-1):
        if self.session.stopped:
            raise OSError("stopped")
        data = self.stream.read(size)
        self.session.reader.bytes_read += len(data)
        return data


def _samples(stream):
    """(key, {member: bytes}) of each sample of a tar that comes from front to back."""
    key, members = None, {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for entry in archive:
            own, _, name = entry.name.partition(".")
            if own != key and members:
                yield key, members
                members = {}
            key, members[name] = own, archive.extractfile(entry).read()
    if members:
        yield key, members
