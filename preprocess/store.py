"""Where shards are written: a local folder, or any address that fsspec knows (s3, gs, file, memory ...)."""

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from common.files import write_atomically
from preprocess.errors import SourceError


def open_store(out):
    """LocalStore of a path or file:// address, FsspecStore of any other. Raises SourceError for an unknown protocol."""
    out = str(out)
    if out.startswith("file://"):
        out = out.removeprefix("file://")
    return FsspecStore(out) if "://" in out else LocalStore(out)


class LocalStore:
    """A folder. Nothing in it ever carries its final name before it is whole and on the disk."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, name):
        return self.folder / name

    def exists(self, name):
        return self.path(name).exists()

    def read(self, name):
        return self.path(name).read_bytes()

    def write(self, name, data):
        write_atomically(self.path(name), data)

    def remove(self, name):
        self.path(name).unlink(missing_ok=True)

    @contextmanager
    def new_file(self, name):
        """A binary file that gets its name when the block ends well, and vanishes when it does not."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb", buffering=1 << 20) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path(name))
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def locked(self):
        """Create the folder and keep other runs out. What a killed run left half-written is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SourceError(f"{self.folder}: another preprocess.run is writing there; wait for it") from None
            for stale in self.folder.glob(".*.tmp"):
                stale.unlink(missing_ok=True)
            yield


class FsspecStore:
    """A remote folder. A file is made locally and sent whole; the index, sent last, marks a finished shard."""

    def __init__(self, url):
        import fsspec

        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise SourceError(f"{url}: {error}") from None
        self.url = url.rstrip("/")

    def path(self, name):
        return f"{self.url}/{name}"

    def _inside(self, name):
        return f"{self.root}/{name}"

    def exists(self, name):
        return self.fs.exists(self._inside(name))

    def read(self, name):
        return self.fs.cat_file(self._inside(name))

    def write(self, name, data):
        self.fs.pipe_file(self._inside(name), data)

    def remove(self, name):
        if self.exists(name):
            self.fs.rm_file(self._inside(name))

    @contextmanager
    def new_file(self, name):
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            yield file
            file.flush()
            self.fs.put_file(file.name, self._inside(name))

    @contextmanager
    def locked(self):
        """Create the folder. Remote stores have no lock: one run at a time is the user's care."""
        self.fs.makedirs(self.root, exist_ok=True)
        yield
