"""Addresses of folders, shards and indexes: local paths, scheme://… and pipe: commands.

An http(s) address may carry a query, which a signed URL needs at every name under it: `https://host/dir?sig` is a folder,
`https://host/dir/a.tar?sig` a file in it. Queries, user names and passwords are secrets and never shown.

One slash at a folder's end means nothing. Further ones belong to its name, since keys of a bucket may have empty parts:
`s3://bucket/dir//a.tar` lies in the folder `s3://bucket/dir//`.
"""

import re
from urllib.parse import unquote

from common.errors import ShardError

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_USER = re.compile(r"^([a-z][a-z0-9+.-]*://)([^/?#]*)@", re.IGNORECASE)
_CONTAINERS = ("abfs", "abfss")  # container@account, and no user
_TAR = re.compile(r"\.tar(?=$|[\s'\"?])")


def is_pipe(address):
    """True for a `pipe:` command, whose output can only be read from front to back."""
    return str(address).lower().startswith("pipe:")


def is_remote(address):
    """True for an address scheme://… that is not file://."""
    return scheme_of(address) not in ("", "file")


def scheme_of(address):
    """The scheme of an address in small letters; "" for a local path and for a pipe: command."""
    match = _SCHEME.match(str(address))
    return match[1].lower() if match else ""


def shown(address):
    """The address as messages may have it: without a query, user name or password."""
    address = str(address)
    if scheme_of(address) == "" or is_pipe(address):
        return address
    return without_user(_without_query(address)[0])


def recordable(address):
    """The address as files may keep it: without the query of a signed URL, or a password with its user name.

    What stands before the @ of an http address is dropped altogether, since a token may stand there alone.
    """
    base, _ = _without_query(str(address))
    user, password = user_of(base)
    return without_user(base) if password or user and scheme_of(base) in ("http", "https") else base


def user_of(address):
    """(user name, password) in an address scheme://user:password@host, decoded; "" for what is not there."""
    match = _USER.match(str(address))
    if not match or scheme_of(address) in _CONTAINERS:
        return "", ""
    user, _, password = match[2].partition(":")
    return unquote(user), unquote(password)


def without_user(address):
    """The address without a user name and password."""
    return address if scheme_of(address) in _CONTAINERS else _USER.sub(r"\1", str(address))


def without_slash(folder):
    """A folder's address without the one slash at its end that means nothing."""
    base, query = _without_query(str(folder))
    if not is_remote(base):
        return base.rstrip("/") or base[:1]
    return (base if base.endswith("://") else base.removesuffix("/")) + query


def plain_folder(address):
    """A folder's address as split gives it."""
    base, query = _without_query(str(address))
    return address if is_remote(base) and base.endswith("//") else without_slash(address)


def split(address):
    """(folder, name) of a file's address; a query stays with the folder. The folder is "" for a bare local name."""
    base, query = _without_query(str(address))
    folder, slash, name = base.rpartition("/")
    if slash and not folder:
        folder = "/"
    if is_remote(folder) and folder.endswith("/"):
        folder += "/"
    return folder + query, name


def join(folder, name):
    """The address of `name` in a folder."""
    base, query = _without_query(str(folder))
    if not base:
        return name
    if is_remote(base):
        return f"{base.removesuffix('/')}/{name}{query}"
    return f"{base.rstrip('/')}/{name}"


def index_address(tar):
    """Address of the index that belongs to the tar at an address; in a pipe: command the name is replaced.

    Raises ShardError for an address that names no tar.
    """
    out, count = _TAR.subn(".idx.json", str(tar))
    if not count:
        raise ShardError(f"{shown(tar)}: cannot tell where its index is; its name must hold .tar")
    return out


def _without_query(address):
    if scheme_of(address) not in ("http", "https"):
        return address, ""
    base, mark, query = address.partition("?")
    return base, mark + query
