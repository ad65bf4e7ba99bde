"""Which scenes, or which part of a scene, go into which split: official splits, or those of a file."""

import json
from dataclasses import dataclass
from pathlib import Path

from preprocess.errors import SourceError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Part:
    """The keyframes of a scene whose numbers, as its data set counts frames, are first to last, both included."""

    scene: str
    first: int
    last: int


def scene_of(entry):
    """The name of the scene that an entry of a split, a name or a Part, is of."""
    return entry.scene if isinstance(entry, Part) else entry


def read_split_file(path):
    """split -> entries, each a scene's name or a Part of one, of a JSON file. Raises SourceError."""
    try:
        splits = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(splits, dict) or not splits or set(splits) - set(SPLITS):
        raise SourceError(f"{path}: must be an object of {', '.join(SPLITS)}, each a list of scene names")
    out = {}
    for split in (name for name in SPLITS if name in splits):
        if not isinstance(splits[split], list):
            raise SourceError(f"{path}: {split} is not a list of scene names")
        out[split] = [_entry(path, split, value) for value in splits[split]]
    _check_disjoint(path, out)
    return out


def chosen_scenes(splits, wish, there):
    """The splits with fewer scenes: a number of them, the first by name, of each split its share; or those that a file names.

    Args:
        wish: a number, or the path of a file with a name on each line. there: names of the scenes that the data set has.
    Raises:
        SourceError: a number that is none, more scenes than there are, or a name that no split has.
    """
    own = {split: [e for e in entries if scene_of(e) in there] for split, entries in splits.items()}
    total = sum(map(len, own.values()))
    if wish.isdigit():
        count = int(wish)
        if not 0 < count <= total:
            raise SourceError(f"--scenes {wish}: the splits have {total} scenes that are there")
        return _shares(own, count, total)
    try:
        names = [line.strip() for line in Path(wish).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"--scenes {wish}: neither a number nor a file of names ({error})") from None
    known = {scene_of(entry) for entries in own.values() for entry in entries}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise SourceError(f"{wish}: {unknown[0] if unknown else 'nothing'} in it is a scene of the splits")
    return {split: [e for e in entries if scene_of(e) in names] for split, entries in own.items()}


def _shares(splits, count, total):
    """`count` entries in all: each split's share of them rounded down, the rest to the splits with the largest remainder."""
    shares = {split: count * len(entries) // total for split, entries in splits.items()}
    rests = sorted(splits, key=lambda split: -(count * len(splits[split]) % total))
    for split in rests[: count - sum(shares.values())]:
        shares[split] += 1
    return {split: sorted(entries, key=scene_of)[: shares[split]] for split, entries in splits.items()}


def _entry(path, split, value):
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and set(value) == {"scene", "frames"} and isinstance(value["scene"], str):
        frames = value["frames"]
        if isinstance(frames, list) and len(frames) == 2 and all(type(n) is int for n in frames):
            if 0 <= frames[0] <= frames[1]:
                return Part(value["scene"], *frames)
    raise SourceError(
        f'{path}: {split} is not a list of scene names, or of {{"scene": name, "frames": [first, last]}}; it has {value!r:.80}'
    )


def _check_disjoint(path, splits):
    """Raise SourceError for a scene, or a frame of one, that is named twice."""
    met = {}
    for split, entries in splits.items():
        for entry in entries:
            name = scene_of(entry)
            for other_split, other in met.get(name, ()):
                parts = isinstance(entry, Part) and isinstance(other, Part) and split != other_split
                if not parts or (entry.first <= other.last and other.first <= entry.last):
                    raise SourceError(f"{path}: names {name} twice")
            met.setdefault(name, []).append((split, entry))
