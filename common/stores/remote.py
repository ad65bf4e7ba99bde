"""What stores behind addresses share: retries, checks of what arrives, nothing secret in messages."""

import re
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import addresses
from common.errors import Missing, StoreError
from common.stores.retries import FIRST_TRY_S, Contact, Retry

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stat:
    """Bytes of an object, and a text that changes when the object does ("" where the store has none)."""

    size: int
    etag: str


class RemoteStore:
    """What remote stores share: names, retries, checks of what came back. They are picklable, by their address.

    A kind of store gives _get, _stat, _chunks, _list, _put, _delete, and _reason_to_retry (see Retry.run).
    `stopped` is an Event that ends pauses between tries; `contact` is what is known of the store's being there.
    """

    remote = True

    def __init__(self, address, options=None, retry=None):
        self.address, self.options, self.retry = address, dict(options or {}), retry or Retry()
        self.stopped, self.contact = threading.Event(), Contact()

    @property
    def stall_s(self):
        """Seconds without progress after which a try has failed; fewer before the store's first answer."""
        return self.retry.stall_s if self.contact.answered else min(self.retry.stall_s, FIRST_TRY_S)

    def __reduce__(self):
        return type(self), (self.address, self.options, self.retry)

    def __repr__(self):
        return f"{type(self).__name__}({addresses.shown(self.address)!r})"

    def path(self, name):
        """Address of a name, for messages: without what is secret in it."""
        return addresses.shown(addresses.join(self.address, name))

    def exists(self, name):
        """Whether there is an object of this name. Raises StoreError where that cannot be told (Refused: not by us)."""
        try:
            self.stat(name)
            return True
        except Missing:
            return False

    def stat(self, name):
        """Stat of an object. Raises Missing, StoreError."""
        return self._tried(name, lambda: self._stat(name))

    def read(self, name, limit=None):
        """All bytes of an object. Raises StoreError where it is longer than `limit`; Missing."""

        def whole():
            data, stat = self._get(name, limit=limit)
            if len(data) != stat.size:
                raise ConnectionError(f"{len(data)} of {stat.size} bytes arrived")
            return bytes(data)

        return self._tried(name, whole)

    def read_range(self, name, start, size, etag=None):
        """(buffer, etag) of part of an object. Raises StoreError where it has another etag or ends before; Missing."""

        def part():
            data, stat = self._get(name, start, size, etag)
            check_part(self.path(name), start, size, len(data), stat, etag)
            return data, stat.etag

        return self._tried(name, part)

    def chunks(self, name):
        """The bytes of an object from front to back, in pieces; where a connection breaks they go on behind what came.

        Raises StoreError, Missing.
        """
        at, stat, pieces = 0, Stat(0, ""), None

        def next_piece():
            nonlocal stat, pieces
            if pieces is None:
                pieces, stat = self._chunks(name, at, stat.etag)
            try:
                piece = next(pieces, None)
                if piece is None and at < stat.size:
                    raise ConnectionError(f"{at} of {stat.size} bytes arrived")
                return piece
            except Exception:
                pieces = None
                raise

        while (piece := self._tried(name, next_piece)) is not None:
            at += len(piece)
            yield piece

    def list(self, folder=""):
        """Sorted names in the store, or in a folder below it; those of folders end in a slash. Raises CannotList."""
        return sorted(self._tried(folder, lambda: self._list(folder)))

    def write(self, name, data):
        """Write a small object. Raises StoreError."""
        self._tried(name, lambda: self._put(name, data))

    def remove(self, name):
        """Remove an object, if it is there. Raises StoreError."""
        try:
            self._tried(name, lambda: self._delete(name))
        except Missing:
            pass

    @contextmanager
    def new_file(self, name):
        """A local binary file that is sent whole when the block ends well. Raises StoreError, OSError."""
        with tempfile.NamedTemporaryFile(suffix=f".{Path(name).name}") as file:
            yield file
            file.flush()
            self._tried(name, lambda: self._put(name, Path(file.name)))

    @contextmanager
    def locked(self):
        """Remote stores have no lock: one run at a time is the user's care."""
        yield False

    def _tried(self, name, action):
        return self.retry.run(
            action, lambda error: self._reason_to_retry(error, name), self.path(name), self.stopped, self.contact
        )

    def _clean(self, error):
        """The text of an error on one line, short, without anything secret."""
        text = " ".join(str(error).split())
        text = re.sub(r"\?[^\s\"'<>)]*=[^\s\"'<>)]*", "?…", text)
        text = re.sub(r"://[^\s/?#\"']*@", "://", text)
        for secret in _secrets({**self.options, "password": addresses.user_of(self.address)[1]}):
            text = text.replace(secret, "…")
        return text[:240].strip() or type(error).__name__


def _secrets(options):
    """Texts among (nested) options that are long enough to be told from ordinary words."""
    for value in options.values():
        if isinstance(value, dict):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) >= 4:
            yield value


def check_limit(path, size, limit):
    """Raise StoreError for something longer than it may be."""
    if limit is not None and size > limit:
        raise StoreError(
            f"{path}: {size} bytes, and such a file has at most {limit}; it is another one, or damaged: copy it anew"
        )


def check_part(path, start, size, came, stat, etag):
    """Raise StoreError where part of an object is of another object, or ConnectionError where less came than it has."""
    if etag and stat.etag and stat.etag != etag:
        raise StoreError(f"{path}: has changed since it was opened (another ETag); start again, or make it anew")
    if start + size > stat.size:
        raise StoreError(f"{path}: cut short: {stat.size} bytes, {start + size} were expected; make it anew")
    if came != size:
        raise ConnectionError(f"{came} of {size} bytes arrived")
