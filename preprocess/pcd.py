"""Headers of PCD 0.7 files (https://pointclouds.org/documentation/tutorials/pcd_file_format.html), whose points are binary."""

import re

import numpy as np

from preprocess.errors import SourceError

_MAX_HEAD = 1 << 14
_DATA = re.compile(rb"(?:^|\n)[ \t]*DATA[ \t]+(\S+)[ \t]*\r?\n")
_LINE = re.compile(rb"^[ \t]*(FIELDS|SIZE|TYPE|COUNT|WIDTH|HEIGHT|POINTS)[ \t]+(.*?)\s*$", re.MULTILINE)
_TYPES = {"F4": "<f4", "F8": "<f8", **{f"{k}{n}": f"<{k.lower()}{n}" for k in "IU" for n in (1, 2, 4, 8)}}


def is_pcd(data):
    """Whether bytes begin as a PCD does."""
    return _DATA.search(data[:_MAX_HEAD]) is not None and _LINE.search(data[:_MAX_HEAD]) is not None


def pcd_header(data, path):
    """({name: words of its line, one blank between them}, the bytes after the header) of a PCD.

    Lines may end in CRLF and have blanks at their ends. Raises SourceError where there is no header, or points are not binary.
    """
    end = _DATA.search(data[:_MAX_HEAD])
    if end is None:
        raise SourceError(f"{path}: not a PCD file, no line of its header begins with DATA; copy it anew")
    if end[1] != b"binary":
        raise SourceError(f"{path}: its PCD points are {end[1][:20].decode('ascii', 'replace')!r}; save them as binary")
    lines = _LINE.findall(data[: end.start()])
    return {name.decode(): " ".join(text.decode("ascii", "replace").split()) for name, text in lines}, data[end.end() :]


def point_count(head, path):
    """Number of points that a header promises. Raises SourceError where its lines do not agree."""
    width, height = head.get("WIDTH", ""), head.get("HEIGHT", "1")
    if not all(re.fullmatch(r"[0-9]{1,9}", text) for text in (width, height)):
        raise SourceError(f"{path}: its PCD header cannot be understood: WIDTH and HEIGHT must be numbers")
    count = int(width) * int(height)
    if head.get("POINTS", str(count)) != str(count):
        raise SourceError(f"{path}: its PCD header cannot be understood: WIDTH and POINTS must say the same number")
    return count


def pcd_rows(data, path):
    """Structured array of the points of any binary PCD whose fields have one value each. Raises SourceError."""
    head, rest = pcd_header(data, path)
    names = head.get("FIELDS", "").split()
    sizes, kinds = head.get("SIZE", "").split(), head.get("TYPE", "").split()
    types = [_TYPES.get(kind + size) for kind, size in zip(kinds, sizes, strict=False)]
    counts = set(head.get("COUNT", "1").split())
    if not names or not len(names) == len(sizes) == len(kinds) or None in types or counts != {"1"}:
        raise SourceError(
            f"{path}: its PCD header cannot be understood: FIELDS, SIZE, TYPE and COUNT do not fit each other"
        )
    if len(set(names)) != len(names):
        raise SourceError(f"{path}: its PCD header names a field twice")
    dtype = np.dtype(list(zip(names, types, strict=True)))
    size = point_count(head, path) * dtype.itemsize
    if len(rest) < size:
        raise SourceError(f"{path}: {len(rest)} bytes of points, its header promises {size}; cut short, copy it anew")
    check_tail(rest, size, path)
    return np.frombuffer(rest, dtype, size // dtype.itemsize)


def check_tail(rest, size, path):
    """Raise SourceError for bytes after the points that are neither one line feed nor zeros, with which PCL fills a page."""
    after = rest[size:]
    if after != b"\n" and after.strip(b"\0"):
        raise SourceError(f"{path}: {len(after)} bytes that are not zeros follow the {size} that its header promises")
