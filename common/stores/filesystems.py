"""Stores of every other address (memory://, ssh://, hdfs:// …) through fsspec."""

import threading
from pathlib import Path

from common import addresses
from common.errors import Missing, Refused, StoreError
from common.stores.remote import CHUNK_BYTES, RemoteStore, Stat, check_limit
from common.stores.retries import FIRST_ANSWER_S, patience_s

_ETAGS = ("ETag", "etag", "e_tag", "md5Hash", "mtime", "updated", "LastModified", "last_modified", "created")


class FsspecStore(RemoteStore):
    """A folder of an fsspec file system; options: its storage options. See RemoteStore."""

    def __init__(self, address, options=None, retry=None):
        super().__init__(addresses.without_slash(address), options, retry)
        try:
            import fsspec
        except ImportError:
            raise StoreError(
                f"{self.path('')}: needs fsspec; pip install fsspec and what it wants for this scheme"
            ) from None
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.address, **self.options)
        except Exception as error:
            raise StoreError(f"{self.path('')}: cannot be opened ({self._clean(error)})") from None

    def _inside(self, name):
        return f"{self.root}/{name}".rstrip("/")

    def _stat(self, name):
        info = self._in_time(self.fs.info, self._inside(name))
        if info.get("size") is None:
            raise StoreError(
                f"{self.path(name)}: its store does not say how long it is; copy the shards to a disk, or to a store that does"
            )
        return Stat(info["size"], next((str(info[k]) for k in _ETAGS if info.get(k)), ""))

    def _get(self, name, start=None, size=None, etag=None, limit=None):
        stat = self._stat(name)
        check_limit(self.path(name), stat.size, limit)
        end = None if start is None else min(start + size, stat.size)
        bytes_asked = (end or stat.size) - (start or 0)
        return memoryview(self._in_time(self.fs.cat_file, self._inside(name), start, end, size=bytes_asked)), stat

    def _chunks(self, name, start, etag):
        stat = self._stat(name)

        def pieces():
            for at in range(start, stat.size, CHUNK_BYTES):
                yield self._in_time(self.fs.cat_file, self._inside(name), at, min(at + CHUNK_BYTES, stat.size))

        return pieces(), stat

    def _list(self, folder):
        entries = self._in_time(self.fs.ls, self._inside(folder), detail=True)
        return [e["name"].rstrip("/").rpartition("/")[2] + "/" * (e["type"] == "directory") for e in entries]

    def _put(self, name, data):
        parent = self._inside(name).rpartition("/")[0]
        self.fs.makedirs(parent, exist_ok=True)
        if isinstance(data, Path):
            self.fs.put_file(str(data), self._inside(name))
        else:
            self.fs.pipe_file(self._inside(name), bytes(data))

    def _delete(self, name):
        self.fs.rm_file(self._inside(name))

    def _in_time(self, call, *arguments, size=0, **options):
        """call(...) in a thread that is left behind where it stalls: few of fsspec's file systems have a time limit.

        size: bytes that it is to bring. Before the store's first answer there is but one try, since connecting may take long.
        """
        first_s = min(self.retry.stall_s, 0.8 * FIRST_ANSWER_S)
        limit_s = patience_s(self.retry.stall_s if self.contact.answered else first_s, size)
        outcome = {}

        def run():
            try:
                outcome["value"] = call(*arguments, **options)
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=run, name="fsspec", daemon=True)
        thread.start()
        thread.join(limit_s)
        if "error" in outcome:
            raise outcome["error"]
        if "value" not in outcome:
            raise TimeoutError(f"no answer for {limit_s:.0f} s")
        return outcome["value"]

    def _reason_to_retry(self, error, name):
        if isinstance(error, StoreError):
            raise error
        if isinstance(error, FileNotFoundError):
            raise Missing(f"{self.path(name)}: is not there") from None
        if isinstance(error, PermissionError):
            raise Refused(f"{self.path(name)}: access is refused ({self._clean(error)})") from None
        if isinstance(error, NotImplementedError):
            raise StoreError(
                f"{self.path(name)}: its store refuses what was asked ({self._clean(error)}); copy the shards to a disk"
            ) from None
        return self._clean(error)
