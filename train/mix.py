"""--mix: several sets of shards in one training, each with a weight."""

import json
from dataclasses import dataclass
from pathlib import Path

from common.addresses import is_pipe, recordable
from common.errors import InputError

_KNOWN = ("shards", "val_shards", "weight", "cams")


@dataclass(frozen=True)
class MixedSet:
    """shards, val_shards: patterns of shards, see common.shard_set.find_shards; without val_shards those beside the shards.

    weight: of its part of an epoch. cams: names of its cameras in slot order; none for all, as its rig has them.
    """

    shards: tuple
    val_shards: tuple = ()
    weight: float = 1.0
    cams: tuple = ()


@dataclass(frozen=True)
class Mixture:
    """What MixedSets stand for, of one split: a ShardSet, a weight and names of cameras of each."""

    shard_sets: tuple
    weights: tuple
    cams: tuple

    def __len__(self):
        return sum(map(len, self.shard_sets))

    @property
    def notes(self):
        """What is worth saying of any of them."""
        return [note for shards in self.shard_sets for note in shards.notes]


def parse_mix(text):
    """MixedSets of a JSON list, or of a file with one; () of nothing. Raises InputError."""
    rows = _rows(text)
    out = []
    for number, row in enumerate(rows):
        what = f"--mix: set {number + 1}"
        if not isinstance(row, dict) or not row.get("shards") or set(row) - set(_KNOWN):
            example = '{"shards": "nusc/train-*.tar", "weight": 2}'
            raise InputError(f"{what} is no object such as {example}; it knows {', '.join(_KNOWN)}")
        weight = row.get("weight", 1)
        if type(weight) not in (int, float) or not 0 < weight < float("inf"):
            raise InputError(f"{what}: weight {weight!r:.40} is no positive number")
        lists = {name: _texts(row.get(name, ()), f"{what}: {name}") for name in ("shards", "val_shards", "cams")}
        if any(is_pipe(text) for text in (*lists["shards"], *lists["val_shards"])):
            raise InputError(
                f"{what}: a pipe: is read from front to back, and mixed sets here and there; give files or addresses"
            )
        out.append(MixedSet(weight=float(weight), **lists))
    return tuple(out)


def mix_text(text):
    """The JSON that --mix, a list or a file with one, stands for; "" of nothing. Raises InputError."""
    parse_mix(text)
    return json.dumps(_rows(text)) if text else ""


def recordable_mix(text):
    """The JSON of --mix as a checkpoint may have it: without what is secret of addresses."""
    rows = _rows(text)
    for row in rows:
        for name in ("shards", "val_shards"):
            if name in row:
                row[name] = [recordable(part) for part in _texts(row[name], name)]
    return json.dumps(rows) if rows else ""


def _rows(text):
    if not text:
        return []
    try:
        rows = json.loads(text if text.lstrip().startswith("[") else Path(text).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"--mix {text!r:.100}: neither a JSON list nor a file with one ({error})") from None
    if not isinstance(rows, list) or not rows:
        raise InputError(f"--mix {text!r:.100}: is no list of sets")
    return rows


def _texts(value, what):
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else (None,)
    if not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"{what}: {value!r:.60} is no text or list of texts")
    return texts
