"""Object stores and http servers through obstore, whose calls let go of the interpreter's lock while they wait."""

import os
import re
from datetime import timedelta
from pathlib import Path

from common import addresses
from common.errors import CannotList, Missing, StoreError
from common.remote_store import RemoteStore, Stat, check_limit

# Of a whole request: an upload of a large part over a thin line. What stalls is found by read_timeout long before.
LONGEST_REQUEST = timedelta(minutes=15)
_CLIENT_OPTIONS = "client_options"
_made_in = None  # the process whose obstore runtime has started; it does not live on in a forked child


class ObjectStore(RemoteStore):
    """A folder of a bucket, or of an http server. See RemoteStore.

    options: obstore's configuration keys of the store, and under "client_options" those of its HTTP client.
    """

    def __init__(self, address, options=None, retry=None):
        super().__init__(address, options, retry)
        self.scheme = addresses.scheme_of(address)
        # A signed URL is signed for one object, so each has a client of its own.
        self.by_object = self.scheme in ("http", "https") and "?" in address
        self._clients, self._pid = {}, None
        try:
            import obstore
        except ImportError:
            raise StoreError(f"{self.path('')}: needs obstore; pip install obstore") from None
        self._obstore = obstore

    def _client(self, name):
        """(obstore's store, path in it) of a name; made in the process that uses it, when it does."""
        global _made_in
        if _made_in not in (None, os.getpid()):
            raise StoreError(
                f"{self.path('')}: obstore cannot be used in a process forked after its first use; spawn it instead"
            )
        if self._pid != os.getpid():
            self._clients, self._pid = {}, os.getpid()
        key = name if self.by_object else ""
        if key not in self._clients:
            _made_in = os.getpid()
            try:
                self._clients[key] = self._make(key)
            except Exception as error:
                raise StoreError(f"{self.path('')}: cannot be opened ({self._clean(error)})") from None
        return self._clients[key], "" if self.by_object else name

    def _make(self, name):
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

        config = {k: v for k, v in self.options.items() if k != _CLIENT_OPTIONS}
        client = {
            "connect_timeout": timedelta(seconds=min(self.retry.stall_s, 10)),
            "read_timeout": timedelta(seconds=self.retry.stall_s),
            "timeout": LONGEST_REQUEST,
        }
        client |= self.options.get(_CLIENT_OPTIONS, {})
        shared = {"client_options": client, "retry_config": {"max_retries": 0}}
        if self.scheme in ("http", "https"):
            if config:
                raise ValueError(f"an http server knows no options but {_CLIENT_OPTIONS}")
            url = addresses.join(self.address, name) if name else self.address
            client.setdefault("allow_http", self.scheme == "http")
            return HTTPStore.from_url(url, **shared)
        bucket, _, prefix = self.address.partition("://")[2].rstrip("/").partition("/")
        if any(str(end).startswith("http://") for end in _endpoints(config)):
            client.setdefault("allow_http", True)
        kind = {"s3": S3Store, "s3a": S3Store, "gs": GCSStore}.get(self.scheme, AzureStore)
        if kind is AzureStore and "@" in bucket:  # abfs://container@account.dfs.core.windows.net/folder
            bucket, _, host = bucket.partition("@")
            config.setdefault("account_name", host.partition(".")[0])
        return kind(bucket, prefix=prefix or None, config=config or None, **shared)

    def _get(self, name, start=None, size=None, etag=None, limit=None):
        """(buffer, Stat) of an object or of a part of it."""
        store, path = self._client(name)
        options = {}
        if start is not None:
            options["range"] = (start, start + size)
        if etag and etag.startswith('"'):  # neither weak tags nor our own stand-ins can be asked for
            options["if_match"] = etag
        result = self._obstore.get(store, path, options=options)
        check_limit(self.path(name), result.meta["size"], limit)
        if start is not None and result.range[0] != start:
            raise ConnectionError(f"bytes from {result.range[0]} on arrived, asked for were those from {start}")
        return memoryview(result.bytes()), _stat(result.meta)

    def _stat(self, name):
        store, path = self._client(name)
        if self.by_object:  # what is signed for GET is not signed for HEAD
            return _stat(self._obstore.get(store, path, options={"range": (0, 1)}).meta)
        return _stat(self._obstore.head(store, path))

    def _chunks(self, name, start, etag):
        store, path = self._client(name)
        options = {"range": {"offset": start}} if start else {}
        result = self._obstore.get(store, path, options=options)
        stat = _stat(result.meta)
        if etag and stat.etag != etag:
            raise StoreError(f"{self.path(name)}: has changed while it was read (another ETag); start again")
        return iter(result.stream(min_chunk_size=1 << 20)), stat

    def _list(self, folder):
        if self.scheme in ("http", "https"):
            raise CannotList(f"{self.path(folder)}: an http server does not list; name the shards or their manifest")
        store, _ = self._client("")
        prefix = folder.rstrip("/")
        listing = self._obstore.list_with_delimiter(store, prefix or None)
        names = [o["path"] for o in listing["objects"]] + [f"{p}/" for p in listing["common_prefixes"]]
        return [n.rstrip("/").rpartition("/")[2] + "/" * n.endswith("/") for n in names]

    def _put(self, name, data):
        store, path = self._client(name)
        self._obstore.put(store, path, data if isinstance(data, Path) else bytes(data))

    def _delete(self, name):
        store, path = self._client(name)
        self._obstore.delete(store, path)

    def _reason_to_retry(self, error, name):
        from obstore import exceptions

        if isinstance(error, StoreError):
            raise error
        where, text = self.path(name), self._clean(error)
        if isinstance(error, FileNotFoundError):
            raise Missing(f"{where}: is not there (404)") from None
        if isinstance(error, exceptions.PreconditionError):
            raise StoreError(f"{where}: has changed since it was opened (another ETag); start again, or make it anew")
        if isinstance(error, exceptions.NotSupportedError) or "Range request not supported" in text:
            raise StoreError(f"{where}: its server does not answer range requests; give --reader stream") from None
        status = re.search(r"status code: (4\d\d)", text)
        refused = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
        if refused or (status and status[1] in ("401", "403")):
            kind = CannotList if not name or name.endswith("/") else StoreError
            remedy = "check the credentials"
            if self.scheme in ("http", "https"):
                remedy = "a signed address needs its query, which is never recorded: give the whole of it again"
            raise kind(f"{where}: access is refused ({text}); {remedy}") from None
        if "169.254.169.254" in text or "metadata.google.internal" in text:
            raise StoreError(f"{where}: no credentials; set the usual variables or --store_options") from None
        if status and status[1] not in ("408", "425", "429"):
            raise StoreError(f"{where}: {text}") from None
        if isinstance(error, (exceptions.BaseError, OSError)):
            return text
        raise StoreError(f"{where}: {text}") from None

    def _clean(self, error):
        """obstore's texts are pages of debugging; what stands first is what happened."""
        text = str(error).partition("Debug source:")[0]
        text = re.sub(r"Error performing \w+ \S+ in \S+ - ", "", text)
        head, mark, body = text.partition("<?xml")
        codes = re.findall(r"<(?:Code|Message)>(.*?)</", body, re.DOTALL)
        return super()._clean(head + ", ".join(codes) if mark else text)


def _endpoints(config):
    """Endpoints that the options or the environment name."""
    yield from (v for k, v in config.items() if "endpoint" in k.lower() or "base_url" in k.lower())
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    yield from (os.environ[n] for n in names if os.environ.get(n))


def _stat(meta):
    etag = meta.get("e_tag") or ""
    if not etag and meta.get("last_modified"):
        etag = f"{meta['last_modified'].timestamp()}-{meta['size']}"
    return Stat(meta["size"], etag)
