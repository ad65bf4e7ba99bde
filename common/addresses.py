"""Addresses of folders, shards and indexes: local paths, scheme://… and pipe: commands.

An http(s) address may carry a query, which a signed URL needs at every name under it: `https://host/dir?sig` is a folder,
`https://host/dir/a.tar?sig` a file in it. Queries and user names are secrets and never shown.
"""

import re

from common.errors import ShardError

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
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
    base, _ = _without_query(address)
    return re.sub(r"^([^:]+://)[^/@]*@", r"\1", base)


def recordable(address):
    """The address as files may keep it: without the query of a signed URL, or a password with its user name."""
    base, _ = _without_query(str(address))
    return re.sub(r"^([^:]+://)[^/@:]*:[^/@]*@", r"\1", base)


def split(address):
    """(folder, name) of a file's address; a query stays with the folder. The folder is "" for a bare local name."""
    base, query = _without_query(str(address))
    folder, slash, name = base.rpartition("/")
    if slash and not folder:
        folder = "/"
    return folder + query, name


def join(folder, name):
    """The address of `name` in a folder."""
    base, query = _without_query(str(folder))
    if not base:
        return name
    return f"{base.rstrip('/')}/{name}{query}"


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
