"""The members of an archive in the order in which they lie there: tar, gzipped tar and zip, of any store.

Tars are read front to back and once. What could lead out of a folder (absolute names, "..", links) is refused whether anybody
wants it or not, and so is what is no file or folder. A gzip stream is checked to its end, and a tar to its last block: one that
was cut is told with the place.
"""

import io
import stat
import tarfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from common.errors import Refused, StoreError
from preprocess.errors import SourceError

try:
    from isal import isal_zlib as _gzip  # a few times as fast as zlib, where it is installed
except ImportError:
    _gzip = zlib

PIECE_BYTES = 1 << 20  # of unpacked data at once
MAX_NAME_BYTES = 64 << 10  # of a long name's own block
_BLOCK = tarfile.BLOCKSIZE
_EMPTY = bytes(_BLOCK)
_PAX, _PAX_GLOBAL = tarfile.XHDTYPE, tarfile.XGLTYPE


@dataclass
class Member:
    """A file of an archive. name: without a leading "./". chunks(): its bytes, once, before the next member is asked for."""

    name: str
    size: int
    chunks: object

    def read(self, limit):
        """All of it. Raises SourceError where it is larger than `limit` bytes."""
        if self.size > limit:
            raise SourceError(f"{self.name}: {self.size} bytes, more than the {limit} that such a file can have")
        return b"".join(self.chunks())


@contextmanager
def told(store, name):
    """A block that reads the archive `name` of a store: what is wrong with it is told as a SourceError that names it."""
    path = store.path(name)
    try:
        yield
    except Refused as error:
        raise SourceError(f"{error}; what was packed stays") from None
    except StoreError as error:
        raise SourceError(f"{error}; what was packed stays, the same command continues") from None
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None


def members(store, name):
    """Yield each Member of the archive `name` of a store; in a block of `told`.

    Raises SourceError for damage, with the place, an unknown kind, and names that lead elsewhere; StoreError.
    """
    head = bytes(store.read_range(name, 0, min(4, store.stat(name).size))[0])
    if head.startswith(b"PK"):
        yield from _zip(store, name)
    else:
        yield from _tar(_Pieces(store, name, head.startswith(b"\x1f\x8b")))


class _Pieces:
    """Exact reads of an archive's (unpacked) bytes. at: bytes of the archive itself that were read."""

    def __init__(self, store, name, gzipped):
        self.at, self.offset, self._rest = 0, 0, memoryview(b"")
        raw = self._counted(store.chunks(name))
        self._pieces = self._unpacked(raw) if gzipped else raw

    def _counted(self, chunks):
        for chunk in chunks:
            self.at += len(chunk)
            yield bytes(chunk)

    def _unpacked(self, chunks):
        unpacker, begun = _gzip.decompressobj(wbits=31), False
        for chunk in chunks:
            while chunk:
                begun = True
                try:
                    piece = unpacker.decompress(chunk, PIECE_BYTES)
                except (zlib.error, _gzip.error) as error:
                    raise SourceError(f"damaged at about byte {self.at} ({error}); {_REMEDY}") from None
                if piece:
                    yield piece
                chunk = unpacker.unused_data.lstrip(b"\0") if unpacker.eof else unpacker.unconsumed_tail
                if unpacker.eof:
                    unpacker, begun = _gzip.decompressobj(wbits=31), False
        if begun:
            raise SourceError(f"cut short at byte {self.at}, within its gzip stream; {_REMEDY}")

    def chunks(self, count):
        """Pieces that are `count` bytes together."""
        while count:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    raise SourceError(f"cut short at byte {self.at}; {_REMEDY}")
                self._rest = memoryview(piece)
            taken, self._rest = self._rest[:count], self._rest[count:]
            count -= len(taken)
            self.offset += len(taken)
            yield taken

    def read(self, count):
        return b"".join(self.chunks(count))

    def drain(self):
        """Read to the end, whatever it is: a gzip stream has a checksum there."""
        for _ in self._pieces:
            pass


_REMEDY = "copy it anew, what was packed stays"


def _tar(pieces):
    long = {}
    while (block := pieces.read(_BLOCK)) != _EMPTY:
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise SourceError(f"damaged at about byte {pieces.at} ({error}); {_REMEDY}") from None
        size = int(long.get("size", entry.size))
        padding = -size % _BLOCK
        if entry.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, _PAX, _PAX_GLOBAL):
            if size > MAX_NAME_BYTES:
                raise SourceError(f"a header of {size} bytes at about byte {pieces.at}; {_REMEDY}")
            data = pieces.read(size)
            pieces.read(padding)
            long |= _long(entry.type, data)
            continue
        name = _safe(long.get("path", entry.name))
        if entry.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) or entry.type == tarfile.GNUTYPE_SPARSE:
            raise SourceError(f"{name!r:.200} in it is a link or no plain file, which is refused")
        if entry.type != tarfile.DIRTYPE:
            end = pieces.offset + size
            yield Member(name, size, lambda count=size: pieces.chunks(count))
            for _ in pieces.chunks(end - pieces.offset):  # what nobody took
                pass
            pieces.read(padding)
        long = {}
    pieces.drain()


def _long(kind, data):
    """What a header about the next one says: its path, or its size."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found = {}
    while kind == _PAX and data:
        length, _, rest = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise SourceError(f"a damaged header; {_REMEDY}")
        key, _, value = rest[: int(length) - len(length) - 1].rstrip(b"\n").partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    if not found.get("size", "0").isdigit():
        raise SourceError(f"a damaged header; {_REMEDY}")
    return found


def _safe(name):
    """A member's name without a leading "./". Raises SourceError for one that leads elsewhere."""
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or "\0" in name or (plain.parts and ":" in plain.parts[0]):
        raise SourceError(f"{name!r:.200} in it leads out of the folder, which is refused")
    return str(plain)


class _Ranges(io.RawIOBase):
    """A file of a store as zipfile reads it: by its directory at the end, then part by part."""

    def __init__(self, store, name):
        self._store, self._name, self._stat, self._at = store, name, store.stat(name), 0

    def seekable(self):
        return True

    def readable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._stat.size}[whence]
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        count = min(len(buffer), self._stat.size - self._at)
        if count <= 0:
            return 0
        buffer[:count] = self._store.read_range(self._name, self._at, count, self._stat.etag)[0]
        self._at += count
        return count


def _zip(store, name):
    try:
        with zipfile.ZipFile(io.BufferedReader(_Ranges(store, name), 8 << 20)) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
                own, mode = _safe(entry.filename), entry.external_attr >> 16
                if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise SourceError(f"{own!r:.200} in it is a link or no plain file, which is refused")
                if not entry.is_dir():
                    yield Member(own, entry.file_size, lambda one=entry: _unzipped(archive, one))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"damaged, or no zip that is read here ({error}); {_REMEDY}") from None


def _unzipped(archive, entry):
    with archive.open(entry) as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
