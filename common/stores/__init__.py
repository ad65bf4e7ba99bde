"""Stores: folders that hold shards, on this machine or behind an address, opened, listed, read and written alike.

A store is made from the address of a folder. Nothing in it ever carries its final name before it is whole.
"""

import itertools
import json
import os
import re
import tempfile
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from common import addresses
from common.errors import InputError, Missing, StoreError
from common.files import Busy, locked, new_file, write_atomically
from common.stores.remote import CHUNK_BYTES, Stat, check_limit, check_part
from common.stores.retries import Retry

_MAGIC = re.compile(r"[*?\[]")
OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")


def open_store(address, options=None, retry=None):
    """The Store of a folder: a local path or file://; s3, gs, az, http(s) by obstore; any other scheme by fsspec.

    Args:
        options: of the store (credentials, endpoint), for obstore's configuration or fsspec's file system; a dict that is
            never printed. The usual variables (AWS_*, GOOGLE_APPLICATION_CREDENTIALS, AZURE_*) count without it.
        retry: Retry of remote operations.
    Raises:
        StoreError: an unknown scheme, a missing package, options that do not fit.
    """
    address = str(address)
    scheme = addresses.scheme_of(address)
    if scheme in ("", "file"):
        return LocalStore(address[len("file://") :] if scheme else address)
    if scheme in OBJECT_SCHEMES:
        from common.stores.objects import ObjectStore

        return ObjectStore(address, options, retry or Retry())
    from common.stores.filesystems import FsspecStore

    return FsspecStore(address, options, retry or Retry())


def parse_options(text):
    """The dict of store options in a JSON text, or in the file of that name; None for "". Raises ValueError."""
    if not text:
        return None
    try:
        options = json.loads(text if text.lstrip().startswith("{") else Path(text).read_bytes())
        if isinstance(options, dict):
            return options
    except (ValueError, OSError):
        pass
    raise InputError("the store options are neither a JSON object nor a readable file with one")


@contextmanager
def local_copy(store, name):
    """Path of a whole file on this machine: itself, or what is fetched of a remote one, for as long as the block lasts.

    What goes wrong in the block is told of the file's own address.
    """
    if not store.remote:
        yield store.path(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        try:
            with open(path, "wb") as file:
                file.writelines(store.chunks(name))
            yield path
        except ValueError as error:
            raise type(error)(str(error).replace(str(path), str(store.path(name)))) from None


class LocalStore:
    """A folder of this machine."""

    remote = False

    def __init__(self, folder):
        self.folder = Path(folder)
        self.address = str(folder)

    def path(self, name):
        """Path of a name, for messages too."""
        return self.folder / name

    def exists(self, name):
        """Whether there is a file of this name."""
        return self.path(name).exists()

    def stat(self, name):
        """Stat of a file. Raises Missing, StoreError."""
        with self._told(name):
            return stat_of(os.stat(self.path(name)))

    def read(self, name, limit=None):
        """All bytes of a file. Raises StoreError where it is longer than `limit`; Missing."""
        with self._told(name), open(self.path(name), "rb") as file:
            check_limit(self.path(name), os.fstat(file.fileno()).st_size, limit)
            return file.read()

    def read_range(self, name, start, size, etag=None):
        """(bytes, etag) of part of a file. Raises StoreError where it has another etag or ends before; Missing."""
        with self._told(name), open(self.path(name), "rb") as file:
            stat = stat_of(os.fstat(file.fileno()))
            data = os.pread(file.fileno(), size, start)
        check_part(self.path(name), start, size, len(data), stat, etag)
        return data, stat.etag

    def chunks(self, name):
        """The bytes of a file from front to back, in pieces. Raises StoreError, Missing."""
        with self._told(name), open(self.path(name), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def list(self, folder=""):
        """Sorted names in the store, or in a folder below it; those of folders end in a slash."""
        try:
            with os.scandir(self.folder / folder) as entries:
                return sorted(entry.name + "/" * entry.is_dir() for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, name, data):
        """Write a small file. Raises OSError."""
        write_atomically(self.path(name), data)

    def remove(self, name):
        """Remove a file, if it is there."""
        self.path(name).unlink(missing_ok=True)

    def new_file(self, name):
        """A context of a binary file that gets its name when the block ends well, and vanishes when it does not."""
        return new_file(self.path(name))

    @contextmanager
    def locked(self):
        """Create the folder and keep other runs out. What a killed run left half-written is removed.

        Yields True; False where the file system knows no locks: one run at a time is the user's care there.
        Raises StoreError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder / ".lock", wait=False) as held:
                for stale in self.folder.glob(".*.tmp") if held else ():
                    stale.unlink(missing_ok=True)
                yield held
        except Busy:
            raise StoreError(f"{self.folder}: another preprocess.run is writing there; wait for it") from None

    @contextmanager
    def _told(self, name):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"{self.path(name)}: is not there") from None
        except OSError as error:
            raise StoreError(f"{self.path(name)}: cannot be read ({error.strerror or error})") from None


def stat_of(status):
    """Stat of an os.stat_result: another file of the name, or one that was written to, has another etag."""
    return Stat(status.st_size, f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}")


def find(pattern, options=None, retry=None):
    """Addresses that a pattern with *, ? and [] in any part of its path stands for, sorted; folders included.

    What exists under its very name is taken as that, whatever characters are in it; hidden names need their dot.
    Raises CannotList, StoreError.
    """
    pattern = str(pattern)
    if not addresses.is_remote(pattern):
        pattern = pattern.removeprefix("file://")
        path = Path(pattern)
        anchor = path.anchor
        return _descend(LocalStore(anchor or "."), anchor, path.parts[bool(anchor) :])
    scheme, _, rest = pattern.partition("://")
    root, *parts = rest.split("/")
    while parts and not _MAGIC.search(parts[0]):  # one store as deep as the pattern is plain
        root += f"/{parts.pop(0)}"
    if not parts:
        return [pattern]
    return _descend(open_store(f"{scheme}://{root}", options, retry), f"{scheme}://{root}/", parts)


def _descend(store, root, parts):
    found = [""]
    for depth, part in enumerate(parts):
        last = depth + 1 == len(parts)
        found = list(itertools.chain.from_iterable(_step(store, folder, part, last) for folder in found))
    return sorted(root + name for name in found)


def _step(store, folder, part, last):
    literal = folder + part
    if not store.remote and os.path.lexists(store.path(literal)) or not _MAGIC.search(part):
        yield literal if last else f"{literal}/"
        return
    names = store.list(folder)
    if literal_name := next((name for name in (part, f"{part}/") if name in names), None):
        names = [literal_name]
        part = _MAGIC.sub(lambda found: f"[{found[0]}]", part)
    for name in names:
        plain = name.rstrip("/")
        hidden = plain.startswith(".") and not part.startswith(".")
        if fnmatchcase(plain, part) and not hidden and (last or name.endswith("/")):
            yield folder + plain + ("" if last else "/")
