"""Object stores and http servers through obstore, whose calls let go of the interpreter's lock while they wait."""

import base64
import os
import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from common import addresses
from common.errors import CannotList, InputError, Missing, Refused, StoreError
from common.stores.connections import certificate_fault, innermost, proxy_of
from common.stores.profiles import ENDPOINTS, profile_options
from common.stores.remote import RemoteStore, Stat, check_limit
from common.stores.retries import Pace, patience_s
from common.stores.retry_after import ask_retry_after

# Of a whole request: an upload of a large part over a thin line. What stalls is found by read_timeout long before.
LONGEST_REQUEST_S = 15 * 60
SMALL_BYTES = (
    64 << 10
)  # of the parts that the most impatient client asks for; each further client is for four times as much
_CLIENT_OPTIONS = "client_options"
_WITHOUT_HEAD = (400, 403, 405, 501)  # a HEAD's answers that say nothing of what a GET is answered
_made_in = None  # the process whose obstore runtime has started; it does not live on in a forked child


class ObjectStore(RemoteStore):
    """A folder of a bucket, or of an http server. See RemoteStore.

    options: obstore's configuration keys of the store, and under "client_options" those of its HTTP client.
    """

    def __init__(self, address, options=None, retry=None):
        super().__init__(address, options, retry)
        self.scheme = addresses.scheme_of(address)
        self.is_http = self.scheme in ("http", "https")
        # A signed URL is signed for one object, so each has a client of its own.
        self.by_object = self.is_http and "?" in address
        self._lacks_head = self.by_object  # what is signed for GET is not signed for HEAD
        self._clients, self._pid = {}, None
        try:
            import obstore
        except ImportError:
            raise StoreError(f"{self.path('')}: needs obstore; pip install obstore") from None
        self._obstore = obstore

    def _client(self, name, size=None):
        """(obstore's store, path in it) of a name; made in the process that uses it, when it does.

        size: bytes that are asked for, for which a whole request has a limit of time, so that one that trickles is found out;
        without it the limit is that of the largest.
        """
        global _made_in
        if _made_in not in (None, os.getpid()):
            raise StoreError(
                f"{self.path('')}: obstore cannot be used in a process forked after its first use; spawn it instead"
            )
        if self._pid != os.getpid():
            self._clients, self._pid = {}, os.getpid()
        key = name if self.by_object else "", self.stall_s, self._limit_s(size)
        if key not in self._clients:
            _made_in = os.getpid()
            try:
                self._clients[key] = self._make(*key)
            except StoreError as error:
                raise StoreError(f"{self.path('')}: {error}") from None
            except Exception as error:
                raise StoreError(f"{self.path('')}: cannot be opened ({self._clean(error)})") from None
        return self._clients[key], "" if self.by_object else name

    def _limit_s(self, size):
        """Seconds that a request for so many bytes may take, one of a few numbers: each has a client of its own."""
        if size is None:
            return LONGEST_REQUEST_S
        most = SMALL_BYTES
        while most < size:
            most *= 4
        return min(patience_s(self.stall_s, most), LONGEST_REQUEST_S)

    def _make(self, name, stall_s, limit_s):
        config = {k: v for k, v in self.options.items() if k != _CLIENT_OPTIONS}
        client = {
            "connect_timeout": timedelta(seconds=min(stall_s, 10)),
            "read_timeout": timedelta(seconds=stall_s),
            "timeout": timedelta(seconds=limit_s),
        }
        client |= self.options.get(_CLIENT_OPTIONS, {})
        shared = {"client_options": client, "retry_config": {"max_retries": 0}}
        if self.is_http:
            return self._make_http(name, config, shared)
        bucket, _, prefix = addresses.without_slash(self.address).partition("://")[2].partition("/")
        if self.scheme in ("s3", "s3a"):
            config |= profile_options(config)
            config |= _endpoint_of_s3(config)
            if self._has_empty_parts:
                config, prefix = _as_endpoint(config, bucket, prefix), ""
        elif self._has_empty_parts:
            raise StoreError("a name with // in it cannot be asked for here; copy the shards to one without")
        if any(str(end).startswith("http://") for end in _endpoints(config)):
            client.setdefault("allow_http", True)
        kind = self._kind()
        if self.scheme.startswith("az") or self.scheme.startswith("abfs"):
            bucket, at, host = bucket.partition("@")  # abfs://container@account.dfs.core.windows.net/folder
            if at:
                config.setdefault("account_name", host.partition(".")[0])
        return kind(bucket, prefix=prefix or None, config=config or None, **shared)

    def _kind(self):
        from obstore.store import AzureStore, GCSStore, S3Store

        return {"s3": S3Store, "s3a": S3Store, "gs": GCSStore}.get(self.scheme, AzureStore)

    def _make_http(self, name, config, shared):
        from obstore.store import HTTPStore

        if config:
            raise InputError(f"an http server knows no options but {_CLIENT_OPTIONS}")
        client = shared["client_options"]
        client.setdefault("allow_http", self.scheme == "http")
        client["default_headers"] = self._authorization() | client.get("default_headers", {})
        address = addresses.without_user(self.address)
        return HTTPStore.from_url(addresses.join(address, name) if name else addresses.without_slash(address), **shared)

    def _authorization(self):
        """Header of the user name and password in an http address; they do not go into its requests' address."""
        user, password = addresses.user_of(self.address)
        if not user and not password:
            return {}
        return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}

    @property
    def _has_empty_parts(self):
        """Whether the folder is part of keys with // in them, which obstore can neither name nor list."""
        _, slash, prefix = addresses.without_slash(self.address).partition("://")[2].partition("/")
        return bool(slash) and "" in prefix.split("/") and not self.is_http

    def _get(self, name, start=None, size=None, etag=None, limit=None):
        """(buffer, Stat) of an object or of a part of it."""
        store, path = self._client(name, size)
        options = {}
        if start is not None:
            options["range"] = (start, start + size)
        if etag and etag.startswith('"'):  # neither weak tags nor our own stand-ins can be asked for
            options["if_match"] = etag
        result = self._obstore.get(store, path, options=options)
        check_limit(self.path(name), result.meta["size"], limit)
        if start is not None:
            if result.range[0] != start:
                raise ConnectionError(f"bytes from {result.range[0]} on arrived, asked for were those from {start}")
            return memoryview(result.bytes()), _stat(result.meta)
        return memoryview(b"".join(self._paced(result))), _stat(result.meta)

    def _paced(self, result):
        """The pieces of an answer as they come. Raises TimeoutError where they trickle."""
        pace, pieces = Pace(self.stall_s), iter(result.stream(min_chunk_size=1))
        while (piece := pace.timed(lambda: next(pieces, None))) is not None:
            yield piece

    def _stat(self, name):
        if not self._lacks_head:
            store, path = self._client(name, 0)
            try:
                return _stat(self._obstore.head(store, path))
            except Exception as error:
                if not self.is_http or _status_of(str(error)) not in _WITHOUT_HEAD:
                    raise
        store, path = self._client(name, 1)
        stat = _stat(self._obstore.get(store, path, options={"range": (0, 1)}).meta)
        self._lacks_head = True
        return stat

    def _chunks(self, name, start, etag):
        store, path = self._client(name)
        options = {"range": {"offset": start}} if start else {}
        result = self._obstore.get(store, path, options=options)
        stat = _stat(result.meta)
        if etag and stat.etag != etag:
            raise StoreError(f"{self.path(name)}: has changed while it was read (another ETag); start again")
        return self._paced(result), stat

    def _list(self, folder):
        if self.is_http:
            raise CannotList(f"{self.path(folder)}: an http server does not list; name the shards or their manifest")
        if self._has_empty_parts:
            raise CannotList(f"{self.path(folder)}: a name with // cannot be listed; name the shards or their manifest")
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
        whole, text = str(error), self._clean(error)
        status, where = _status_of(whole), self.path(name)
        self._raise_for_good(error, name, status, whole, text)
        if isinstance(error, exceptions.PreconditionError):
            raise StoreError(f"{where}: has changed since it was opened (another ETag); start again, or make it anew")
        if isinstance(error, exceptions.NotSupportedError) or "Range request not supported" in whole:
            raise StoreError(f"{where}: its server does not answer range requests; give --reader stream") from None
        refused = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
        if refused or status in (401, 403):
            remedy = "check the credentials"
            if self.is_http:
                remedy = (
                    "a signed address needs its query, and one with a password the password, which are never recorded: "
                )
                remedy += "give the whole of it again"
            kind = CannotList if not name or name.endswith("/") else Refused
            raise kind(f"{where}: access is refused ({text}); {remedy}") from None
        if "169.254.169.254" in whole or "metadata.google.internal" in whole:
            raise StoreError(f"{where}: no credentials; set the usual variables or --store_options") from None
        if status and 400 <= status < 500 and status not in (408, 425, 429):
            raise StoreError(f"{where}: {text}") from None
        if not isinstance(error, (exceptions.BaseError, OSError)):
            raise StoreError(f"{where}: {text}") from None
        if status in (429, 503):
            self._heed_retry_after(name)
        return text

    def _raise_for_good(self, error, name, status, whole, text):
        """What no further try and no other credentials can help: certificates, what is not there, what cannot be named."""
        where = self.path(name)
        fault = certificate_fault(whole)
        if fault:
            hint = "have its issuer among the system's certificates, or give --store_options '{\"client_options\": "
            hint += '{"allow_invalid_certificates": true}}\''
            raise StoreError(f"{where}: {fault}{self._proxy()}; {hint}") from None
        if "NoSuchBucket" in whole or "ContainerNotFound" in whole or "specified bucket does not exist" in whole:
            raise StoreError(f"{where}: there is no such bucket; check its name, region and endpoint") from None
        if "invalid path" in whole:
            raise CannotList(
                f"{where}: cannot be listed, since keys with // are in it; name the shards or their manifest"
            ) from None
        if status == 416:
            raise StoreError(f"{where}: is empty; copy it there anew") from None
        if isinstance(error, FileNotFoundError) and status in (None, 404, 410):
            raise Missing(f"{where}: is not there (404)") from None

    def _heed_retry_after(self, name):
        """Ask a busy store when to come again: obstore does not tell what headers came. One thread asks for all."""

        def url():
            if self.is_http:
                return addresses.join(addresses.without_user(self.address), name)
            store, path = self._client(name)
            return self._obstore.sign(store, "GET", path, timedelta(minutes=1))

        headers = self._authorization() | self.options.get(_CLIENT_OPTIONS, {}).get("default_headers", {})
        ask_retry_after(self.contact, url, headers if self.is_http else {})

    def _proxy(self):
        return proxy_of(self.address if self.is_http else "https://" + self.address.partition("://")[2])

    def _clean(self, error):
        """obstore's texts are pages of debugging; what counts is what happened first, and the cause that lies deepest."""
        whole = str(error)
        text = whole.partition("Debug source:")[0]
        text = re.sub(r"^Generic \w+ error: |Error performing \w+ \S+ in \S+ - ", "", text).rstrip(" :\n")
        if "error sending request" in text and (cause := innermost(whole)):
            return super()._clean(f"{cause}{self._proxy()}")
        head, mark, body = text.partition("<?xml")
        codes = re.findall(r"<(?:Code|Message)>(.*?)</", body, re.DOTALL)
        if not mark:
            text = re.sub(r"(status code: \d+ [\w -]+):.*<html.*", r"\1", text, flags=re.DOTALL | re.IGNORECASE)
        return super()._clean(head + ", ".join(codes) if mark else text)


def _status_of(text):
    match = re.search(r"status code: (\d\d\d)", text)
    return int(match[1]) if match else None


def _endpoints(config):
    """Endpoints that the options or the environment name."""
    yield from (v for k, v in config.items() if "endpoint" in k.lower() or "base_url" in k.lower())
    names = (*ENDPOINTS, "AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    yield from (os.environ[n] for n in names if os.environ.get(n))


def _endpoint_of_s3(config):
    """The endpoint of the environment, S3's own before that of every service, where the options name none."""
    if any("endpoint" in key.lower() for key in config):
        return {}
    return next(({"endpoint": os.environ[name]} for name in ENDPOINTS if os.environ.get(name)), {})


def _as_endpoint(config, bucket, prefix):
    """S3's options with a bucket and folder as part of the endpoint: obstore takes // there alone."""
    config = {key.lower().removeprefix("aws_"): value for key, value in config.items()}
    region = config.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    end = config.pop("endpoint_url", None) or config.get("endpoint") or f"https://s3.{region}.amazonaws.com"
    config["endpoint"] = f"{end.rstrip('/')}/{bucket}/{quote(prefix)}"
    config["virtual_hosted_style_request"] = True
    return config


def _stat(meta):
    etag = meta.get("e_tag") or ""
    if not etag and meta.get("last_modified"):
        etag = f"{meta['last_modified'].timestamp()}-{meta['size']}"
    return Stat(meta["size"], etag)
