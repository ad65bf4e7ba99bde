"""A tar written front to back whose bytes depend on nothing but what is put into it, and the index of it."""

import hashlib
import io
import tarfile
import zlib

from common.shard_index import index_of


class _HashingFile(io.RawIOBase):
    """Writes through to a file and keeps the SHA-256, so that the tar is not read again."""

    def __init__(self, file):
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def writable(self):
        return True

    def write(self, data):
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self):
        return self.size


class IndexedTar:
    """A context: samples are added, scene after scene; `index` tells afterwards where everything lies.

    file: binary, open for writing; it is not closed.
    """

    def __init__(self, file):
        self._stream = _HashingFile(file)
        self._archive = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)
        self._rows, self._tokens, self._scenes = {}, [], []

    @property
    def size(self):
        """Bytes written so far."""
        return self._stream.size

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        if kind is None:
            self._archive.close()  # its last blocks

    def add(self, key, token, scene, members):
        """Append one sample. key, token: its own. scene: true name. members: name -> bytes, in the order of the tar."""
        self._rows[key] = {name: self.put(f"{key}.{name}", data) for name, data in members.items()}
        self._tokens.append(token)
        if not self._scenes or self._scenes[-1][0] != scene:
            self._scenes.append([scene, len(self._tokens) - 1, 0])
        self._scenes[-1][2] += 1

    def put(self, name, data):
        """Append a file that is no sample's member; (offset, size, crc32) of its data."""
        # A fixed header makes the bytes depend on nothing but the record.
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        place = self._archive.offset + tarfile.BLOCKSIZE
        self._archive.addfile(info, io.BytesIO(data))
        return place, len(data), zlib.crc32(data)

    def index(self, path, facts):
        """ShardIndex of the finished tar. path: of the tar. facts: see ShardIndex."""
        whole = self._stream.size, self._stream.sha256.hexdigest()
        return index_of(path, self._rows, self._tokens, self._scenes, *whole, facts)
