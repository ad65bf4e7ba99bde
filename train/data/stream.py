"""The streaming reader: shards that come once, from front to back, through pipe: commands, http(s), or fsspec addresses.

Their indexes, small, are read first, so the order of an epoch is known before the first byte of a tar arrives. One thread
a running epoch walks the tars and keeps the records that are still wanted; read() waits for them. Records, order and
resume are therefore as exact as with local files; what differs is that the shuffle reaches only as far as its buffer,
and that a resumed epoch reads the shard it stood in from its beginning.
"""

import io
import os
import re
import signal
import subprocess
import threading
import urllib.request
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from webdataset.tariterators import group_by_keys, tar_file_expander

from common.shard_index import ABSENT, ShardError, parse_index
from train.data.order import ORDER_STREAM
from train.data.reader import KeyframeTable

STALL_S = 30.0  # without a byte for this long, a remote read is given up


def index_address(url):
    """Address of the index that belongs to the tar at `url`; in a pipe: command the name is replaced."""
    out, count = re.subn(r"\.tar(?=$|[\s'\"?])", ".idx.json", url)
    if not count:
        raise ShardError(f"{url}: cannot tell where its index is; its name must hold .tar")
    return out


@contextmanager
def open_address(url, on_process=lambda process: None):
    """A binary stream of an address. Raises ShardError, OSError; a pipe: command that fails is an error at its end.

    on_process is given the process of a pipe: command, so that another thread can end it.
    """
    if url.startswith("pipe:"):
        process = subprocess.Popen(
            url.removeprefix("pipe:"), shell=True, stdout=subprocess.PIPE, start_new_session=True
        )
        on_process(process)
        try:
            yield process.stdout
            if process.stdout.read(1) == b"" and process.wait() != 0:
                raise ShardError(f"{url}: the command ended with exit code {process.returncode}")
        finally:
            _kill(process)
            process.stdout.close()
            process.wait()
    elif url.startswith(("http://", "https://")):
        with urllib.request.urlopen(url, timeout=STALL_S) as response:
            yield response
    elif "://" in url:
        try:
            import fsspec
        except ImportError:
            raise ShardError(f"{url}: needs fsspec; pip install fsspec and what it wants for this protocol") from None
        try:
            opened = fsspec.open(url, "rb")
        except (ValueError, ImportError) as error:
            raise ShardError(f"{url}: {error}") from None
        with opened as stream:
            yield stream
    else:
        with open(url, "rb") as stream:
            yield stream


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


class StreamReader(KeyframeTable):
    """Keyframes of shards that can only be read from front to back. See KeyframeTable for the attributes.

    Args:
        shards: addresses. verify_reads: compare checksums. buffer: windows that the shuffle holds.
        cache_dir, cache_bytes: keep shards there, the oldest going first; None does not.
    Raises:
        ShardError: an index that cannot be read.
    """

    is_stream = True

    def __init__(self, shards, verify_reads=False, buffer=64, cache_dir=None, cache_bytes=100 << 30):
        indexes = []
        for url in shards:
            try:
                with open_address(index_address(url)) as stream:
                    indexes.append(parse_index(stream.read(), url))
            except OSError as error:
                raise ShardError(f"{index_address(url)}: the index cannot be read ({error})") from None
        super().__init__(indexes)
        self.verify_reads, self.buffer = verify_reads, buffer
        self.cache = _Cache(cache_dir, cache_bytes) if cache_dir else None
        self.stall_s = STALL_S
        self._session = None

    def order(self, windows, seed, epoch, shuffle):
        """Window numbers of an epoch."""
        shard_of = np.searchsorted(self._starts, np.arange(len(self)), side="right") - 1
        order, self._shard_order = stream_order(shard_of, windows, seed, epoch, shuffle, self.buffer)
        return order

    def begin(self, frames):
        """Start to read: `frames` are the keyframes wanted, in order, with repeats."""
        self.close()
        self._session = _Session(self, frames, self._shard_order)

    def read(self, number, members):
        """Bytes of the members that keyframe `number` has: waits for them. Raises ShardError, also when nothing comes."""
        record = self._session.take(number, self.stall_s)
        return {m: record[m] for m in members if m in record}

    def interrupt(self):
        """Stop reading; reads that wait raise."""
        if self._session is not None:
            self._session.stop()

    def close(self):
        """Stop reading and forget what was read."""
        self.interrupt()
        self._session = None


class _Session:
    """One pass: the thread that reads, and the records that are still wanted."""

    def __init__(self, reader, frames, shard_order):
        self.reader = reader
        self.wanted, self.rank = {}, {}
        for place, frame in enumerate(frames):
            self.wanted[frame] = self.wanted.get(frame, 0) + 1
            self.rank.setdefault(frame, place)
        self.taken = 0
        self.records, self.error, self.stopped, self.progress = {}, None, False, 0
        self.changed = threading.Condition()
        self.process = None
        needed = {reader._locate(frame)[0] for frame in self.wanted}
        shards = [int(s) for s in shard_order if s in needed]
        self.thread = threading.Thread(target=self._run, args=(shards,), name="stream", daemon=True)
        self.thread.start()

    def take(self, number, stall_s):
        with self.changed:
            while number not in self.records:
                before = self.progress
                if self.error is not None:
                    raise ShardError(str(self.error))
                if self.stopped:
                    raise ShardError("the reader was closed")
                if not self.changed.wait(stall_s) and self.progress == before:
                    raise ShardError(
                        f"{self.reader.where(number)}: nothing arrived for {stall_s:.0f} s; is the source up?"
                    )
            record = self.records[number]
            self.wanted[number] -= 1
            self.taken += 1
            if not self.wanted[number]:
                del self.records[number]
            self.changed.notify_all()
            return record

    def stop(self):
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
            if self.process is not None and self.process.poll() is None:
                _kill(self.process)
        self.thread.join(timeout=2.0)  # a thread that hangs in a socket ends with that socket's timeout

    def _run(self, shards):
        try:
            for shard in shards:
                self._read_shard(shard)
                if self.stopped:
                    return
        except Exception as error:  # whatever it is, the consumer raises it
            self.error = error
        with self.changed:
            self.changed.notify_all()

    def _read_shard(self, shard):
        index = self.reader.indexes[shard]
        start = int(self.reader._starts[shard])
        rows = {key: i for i, key in enumerate(index.keys)}
        missing = {i for i in range(len(rows)) if self.wanted.get(start + i)}
        names = {name.lower(): name for name in index.members}  # webdataset folds the case of extensions
        url = str(index.tar)
        source = self.reader.cache.open(url, index) if self.reader.cache else open_address(url, self._remember)
        try:
            with source as stream:
                counted = _Counted(stream, self)
                for sample in group_by_keys(tar_file_expander([{"url": url, "stream": counted}])):
                    row = rows.get(sample["__key__"])
                    if row in missing:
                        record = {names[k.lower()]: v for k, v in sample.items() if k.lower() in names}
                        self._check(index, row, record)
                        missing.discard(row)
                        if not self._keep(start + row, record):
                            return
                    if not missing:
                        break
        except ShardError:
            raise
        except Exception as error:
            raise ShardError(f"{url}: cannot be read on at {self._first(index, missing)} ({error})") from None
        if missing:
            raise ShardError(f"{url}: cut short at {self._first(index, missing)}; make it anew")

    def _remember(self, process):
        self.process = process

    @staticmethod
    def _first(index, missing):
        return index.keys[min(missing)] if missing else "its end"

    def _check(self, index, row, record):
        for column, name in enumerate(index.members):
            size = index.sizes[row, column]
            if size == ABSENT:
                continue
            data = record.get(name)
            if data is None or len(data) != size:
                raise ShardError(f"{index.tar}: {index.keys[row]}.{name} is not what its index says")
            if self.reader.verify_reads and zlib.crc32(data) != index.crc32[row, column]:
                raise ShardError(
                    f"{index.tar}: {index.keys[row]}.{name} has another checksum than its index says; "
                    "check it with python -m preprocess.verify"
                )

    def _keep(self, number, record):
        """Hand over a record; waits while enough are held. False once stopped."""
        with self.changed:
            # The next frames in order are never further away than buffer and prefetch, so this cannot dead-lock: the
            # reader goes on as long as something that is due before the record at hand has not arrived.
            while not self.stopped and len(self.records) > 4 * self.reader.buffer and self._nothing_due():
                self.changed.wait(1.0)
            self.records[number] = record
            self.progress += 1
            self.changed.notify_all()
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
        self.session.progress += 1
        return data


class _Cache:
    """Shards kept on the local disk, at most `limit` bytes of them."""

    def __init__(self, folder, limit):
        self.folder, self.limit = Path(folder), limit
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def open(self, url, index):
        """A stream of the shard, from the cache or, filling it, from its address."""
        path = self.folder / f"{index.tar_sha256}.tar"
        if not path.is_file() or path.stat().st_size != index.tar_bytes:
            self._make_room(index.tar_bytes)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                with open_address(url) as source, open(temporary, "wb") as file:
                    while chunk := source.read(1 << 20):
                        file.write(chunk)
                if temporary.stat().st_size != index.tar_bytes:
                    raise ShardError(f"{url}: {temporary.stat().st_size} bytes, its index says {index.tar_bytes}")
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        path.touch()
        with open(path, "rb") as stream:
            yield stream

    def _make_room(self, size):
        kept = sorted(self.folder.glob("*.tar"), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in kept)
        while kept and total + size > self.limit:
            total -= kept[0].stat().st_size
            kept.pop(0).unlink(missing_ok=True)
