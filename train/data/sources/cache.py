"""A node's cache of members that were read from afar, shared by the processes of a node.

One file holds what one read fetched of one keyframe, its members one after another:
`<folder>/v1/<first digits of the tar's SHA-256>/<row>/<columns>`, `columns` being a bit mask of the index's columns in
hexadecimal. Where each member lies in it follows from the index, whose checksums are compared on every read: nothing
torn or stale is ever served, and a file that does not match is fetched anew. Files get their names when they are whole.

Whatever fails here costs speed alone: what a broken, full, read-only or foreign folder does not give is fetched, and what a
disk that hangs does not give in time; while a call hangs there no other one is made.
"""

import os
import re
import struct
import threading
import time
import zlib
from pathlib import Path

from common.errors import ShardError
from common.files import locked
from train.data.sources.patience import Patience
from train.processes.ranks import say

LAYOUT = "v1"
SHA_DIGITS = 32
ROOMY = 0.9  # of the limit is left after an eviction, so that not every file calls for the next one
FULL_S = 60.0  # without trying again to keep anything, once there was no room or the disk failed
READ_S = 10.0  # that the disk has for a keyframe
WRITE_S = 60.0  # the same, and that other processes have which make room
ABANDONED_S = 3600.0  # a half-written file this old belongs to a process that was killed
_SHARD, _ROW, _FILE = re.compile(rf"[0-9a-f]{{{SHA_DIGITS}}}"), re.compile(r"\d+"), re.compile(r"[0-9a-f]+")
_HALF_WRITTEN = re.compile(r"\.[0-9a-f]+\.\d+\.\d+\.tmp")
_USED = struct.Struct("<q")


class Cache:
    """Members of keyframes in a folder, at most `limit` bytes of them.

    What makes room goes longest unused first, but only what nobody has used since this cache was opened: where a set is larger
    than the cache, a part of it stays, instead of each epoch driving out what the next would need first.

    Attributes:
        hits, misses: keyframes that came whole from the cache, and those that did not, since say() was last called.
    Raises:
        ShardError: a folder that cannot be used.
    """

    def __init__(self, folder, limit):
        self.root, self.limit = Path(folder) / LAYOUT, int(limit)
        self.hits, self.misses = 0, 0
        self._lock, self._reserving = threading.Lock(), threading.Lock()
        self._full_until, self._told, self._all_in_use = 0.0, False, False
        self._reading, self._writing = Patience(READ_S), Patience(WRITE_S)
        opened = self._tried(self._writing, self._open, folder)
        self._opened = time.time() if opened is None else opened

    def _tried(self, patience, action, *arguments):
        """What action(*arguments) gives; None where the disk fails or hangs, and while an earlier call hangs there."""
        if patience.hanging:
            return None
        try:
            return patience.call(action, *arguments)
        except OSError as error:
            self._fails(error)
            return None

    def _open(self, folder):
        """The time by the clock of the file system, which may not be this machine's. Raises OSError, ShardError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not os.path.isdir(folder):
                raise ShardError(f"{folder}: --cache_dir cannot be made ({error.strerror or error})") from None
        marker = self.root / "used"
        with locked(self.root / ".lock") as alone:
            if not alone:
                note = "its file system knows no locks; where several processes write there, it may outgrow --cache_gb"
                say(f"note: {self.root.parent}: {note}", "node")
            if not marker.exists():
                marker.write_bytes(_USED.pack(0))
        probe = self.root / f".{os.getpid()}.clock"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    @property
    def hit_rate(self):
        """Share of the keyframes that came whole from the cache; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    def get(self, index, row, wanted):
        """Members of a keyframe that are there and sound: dict from name to memoryview.

        wanted: (offset, size, column, member) of each that is asked for; see KeyframeTable.
        """
        out = self._tried(self._reading, self._found, index, row, wanted) or {}
        if wanted:  # a keyframe that has none of the members is neither
            with self._lock:
                self.hits += len(out) == len(wanted)
                self.misses += len(out) < len(wanted)
        return out

    def _found(self, index, row, wanted):
        out, missing = {}, {column: member for _, _, column, member in wanted}
        for path, columns in self._files_of(index, row):
            if missing.keys().isdisjoint(columns):
                continue
            found = _read(path, index, row, columns, missing)
            if found is None:  # torn or spoilt: fetched anew
                _remove(path)
                continue
            out |= {missing.pop(column): data for column, data in found.items()}
        return out

    def put(self, index, row, wanted, members):
        """Keep what was fetched of a keyframe, where there is room and the disk does not fail."""
        if time.monotonic() >= self._full_until:
            self._tried(self._writing, self._keep, index, row, wanted, members)

    def _keep(self, index, row, wanted, members):
        columns = sorted((column, member) for _, _, column, member in wanted)
        folder = self._folder(index, row)
        path = folder / f"{sum(1 << column for column, _ in columns):x}"
        temporary = folder / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            if columns and self._reserve(sum(len(members[member]) for _, member in columns)):
                folder.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb") as file:  # not flushed: the checksums find what a power cut leaves
                    file.writelines(members[member] for _, member in columns)
                os.replace(temporary, path)
        except OSError:
            _remove(temporary)
            raise

    def _fails(self, error):
        """For a while nothing is kept; the first time it is said why."""
        self._full_until = time.monotonic() + FULL_S
        with self._lock:
            told, self._told = self._told, True
        if not told:
            reason = error.strerror or error
            note = f"--cache_dir cannot be used ({reason}); what it does not give is fetched each time, which costs speed alone"
            say(f"note: {self.root.parent}: {note}", "node")

    def say(self, whose=""):
        """One line about the reads since the last such line, if there were any. A node's first process says its own.

        whose: split of the shards, for the line.
        """
        with self._lock:
            count, rate = self.hits + self.misses, self.hit_rate
            self.hits = self.misses = 0
        if count:
            read = f"{100 * rate:.0f} % of this process's {count} {whose} keyframes".replace("  ", " ")
            say(f"note: {self.root.parent}: {read} came from the cache", "node")

    def _folder(self, index, row):
        return self.root / index.tar_sha256[:SHA_DIGITS] / str(row)

    def _files_of(self, index, row):
        """(path, columns) of the files of a keyframe, those with the most members first."""
        folder, found = self._folder(index, row), []
        try:
            names = os.listdir(folder)
        except OSError:
            return []
        for name in names:
            if _FILE.fullmatch(name):
                mask = int(name, 16)
                found.append((folder / name, [c for c in range(len(index.members)) if mask >> c & 1]))
        return sorted(found, key=lambda item: -len(item[1]))

    def _reserve(self, size):
        """Room for so many bytes is counted as used. False where there is none."""
        if size > self.limit or time.monotonic() < self._full_until:
            return False
        with self._reserving, locked(self.root / ".lock"), open(self.root / "used", "r+b") as file:
            raw = file.read(_USED.size)
            used = _USED.unpack(raw)[0] if len(raw) == _USED.size else self.limit
            if used + size > self.limit and not self._all_in_use:
                used = self._evict(int(ROOMY * self.limit) - size)
            fits = used + size <= self.limit
            if not fits:
                self._full_until = time.monotonic() + FULL_S
            file.seek(0)
            file.write(_USED.pack(used + size * fits))
        return fits

    def _evict(self, goal):
        """Remove the longest unused files until at most `goal` bytes are left, if that many may go; bytes left."""
        files = sorted(self._scan())
        used = sum(size for _, size, _ in files)
        for changed, size, path in files:
            if used <= goal or changed >= self._opened:
                break
            used -= size * _remove(path)
        self._all_in_use = used > goal  # and they stay so: walking the disk again would find nothing
        return used

    def _scan(self):
        """(time of last use, bytes, path) of this cache's files, half-written ones too, and of no other file."""
        for shard in _entries(self.root, _SHARD):
            for row in _entries(shard, _ROW):
                for entry in _entries(row, _FILE, _HALF_WRITTEN):
                    try:
                        status = os.stat(entry)
                    except OSError:
                        continue
                    if entry.endswith(".tmp") and status.st_mtime < self._opened - ABANDONED_S:
                        _remove(Path(entry))
                    else:
                        changed = float("inf") if entry.endswith(".tmp") else status.st_mtime
                        yield changed, status.st_size, Path(entry)


def _read(path, index, row, columns, missing):
    """Bytes of those columns of a cached file that are missing; None where they are not what the index says."""
    sizes = [int(index.sizes[row, column]) for column in columns]
    try:
        with open(path, "rb") as file:
            data = memoryview(file.read(sum(sizes) + 1))
    except OSError:
        return {}
    try:
        os.utime(path)
    except OSError:
        pass  # of another user, or on a disk that is read-only: it may be read all the same
    if len(data) != sum(sizes):
        return None
    out, at = {}, 0
    for column, size in zip(columns, sizes, strict=True):
        if column in missing:
            out[column] = data[at : at + size]
            if zlib.crc32(out[column]) != index.crc32[row, column]:
                return None
        at += size
    return out


def _remove(path):
    """Whether a file is gone: it is removed where that is possible."""
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False


def _entries(folder, *patterns):
    """Paths in a folder whose names match one of the patterns."""
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder) if any(p.fullmatch(name) for p in patterns)]
    except OSError:
        return []
