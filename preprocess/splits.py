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
