"""What the user writes after --shards, and the files that it means."""

import glob
import itertools
import re
from pathlib import Path

_RANGE = re.compile(r"[<{](\d+)\.\.(\d+)[>}]")
_URL = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)


def is_url(pattern):
    """True for what only the streaming reader opens: pipe: commands and http(s), s3, gs … addresses."""
    return bool(_URL.match(pattern))


def expand_ranges(pattern):
    """Every name that the `<000..099>` and `{000..099}` ranges of a pattern stand for, in order.

    Widths are kept (`<08..11>` gives 08, 09, 10, 11). Raises ValueError for a range that runs backwards.
    """
    parts = _RANGE.split(pattern)  # text, first, last, text, first, last, … text
    choices = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        if int(first) > int(last):
            raise ValueError(f"{pattern}: the range {first}..{last} runs backwards")
        width = len(first)
        choices.append([f"{i:0{width}d}" for i in range(int(first), int(last) + 1)])
    texts = parts[::3]
    return [
        texts[0] + "".join(n + t for n, t in zip(numbers, texts[1:], strict=True))
        for numbers in itertools.product(*choices)
    ]


def expand_shards(patterns):
    """The shards that one pattern or several name: paths, globs and ranges, sorted within each, none twice.

    A range may reach past the last shard (`<000..099>` is the usual way to write "all"), but must meet one; a path
    written out must exist. Raises ValueError, naming what matches nothing.
    """
    if isinstance(patterns, (str, Path)):
        patterns = [patterns]
    found = {}
    for pattern in map(str, patterns):
        names = expand_ranges(pattern)
        if is_url(pattern):
            found.update(dict.fromkeys(names))
            continue
        matches = [m for name in names for m in _match(name)]
        if not matches:
            raise ValueError(f"no shard matches {pattern!r}; make them with: make shards (or check the path)")
        found.update(dict.fromkeys(matches))
    if not found:
        raise ValueError("no shards given")
    return list(found)


def _match(name):
    if Path(name).is_file():
        return [name]
    if Path(name).is_dir():
        raise ValueError(f"{name} is a folder; name its shards, for example {name}/train-*.tar")
    return sorted(m for m in glob.glob(name) if m.endswith(".tar"))


def val_beside(train_shards):
    """The `val-*.tar` in the folders of the train shards, where --val_shards is not given. May be empty."""
    folders = dict.fromkeys(str(Path(s).parent) for s in train_shards if not is_url(s))
    return sorted(itertools.chain.from_iterable(glob.glob(f"{glob.escape(f)}/val-*.tar") for f in folders))
