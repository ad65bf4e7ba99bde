"""Several sets as one source: which of them gives how many samples of an epoch, and which ones, is a pure function.

An epoch has as many samples as all sets together. Set i gives its share of them by weight, and takes them from its own epochs'
permutations, one after another: a small set of a large weight comes round several times an epoch, a large one in several.
A permutation of (seed, epoch) puts the sets among each other. A sample that comes a second time within an epoch has a number of
its own, by which it is augmented anew: its window's, and the number of all windows once more.
"""

import hashlib
import json

import numpy as np

from common.errors import InputError, ShardError
from train.data.order import MIX_STREAM, epoch_order
from train.data.sources.local import LocalSource


def shares(total, weights):
    """How many of `total` samples each set gives: round(total · weight / all weights); the largest has what rounding leaves."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(np.floor(number + 0.5)) for number in exact]
    counts[counts.index(max(counts))] += total - sum(counts)
    return counts


def mixed_order(sizes, weights, seed, epoch):
    """int64 sample numbers of a mixed epoch: of set i from sum(sizes[:i]) on, and sum(sizes) more each time it comes again.

    Args:
        sizes: samples of each set. weights: positive.
    """
    total, start, parts = sum(sizes), 0, []
    for size, count in zip(sizes, shares(total, weights), strict=True):
        first = epoch * count
        walks = np.arange(first // size, (first + count - 1) // size + 1) if count else []
        for walk in walks:
            order = epoch_order(size, seed, int(walk), shuffle=True)
            begin, end = max(first - walk * size, 0), min(first + count - walk * size, size)
            parts.append(start + order[begin:end] + total * (walk - walks[0]))
        start += size
    numbers = np.concatenate(parts)
    return numbers[np.random.default_rng((MIX_STREAM, seed, epoch)).permutation(len(numbers))]


class MixedSource:
    """The keyframes of several sources, one after another; see train.data.sources.

    Args:
        parts: sources, none of them a stream. weights: of each, positive.
    Raises:
        ShardError: a keyframe that two of them have.
    """

    is_stream = False

    def __init__(self, parts, weights):
        self.parts, self.weights = parts, tuple(weights)
        self.fetches_ahead = any(part.fetches_ahead for part in parts)
        self.indexes = [index for part in parts for index in part.indexes]
        self.keys = [key for part in parts for key in part.keys]
        self.tokens = [token for part in parts for token in part.tokens]
        if len(set(zip(self.keys, self.tokens, strict=True))) != len(self.keys):
            raise ShardError(
                "two of the sets that are mixed have the same keyframe; name each set once, its weight says the rest"
            )
        self.scene_names = [name for part in parts for name in part.scene_names]
        self.starts = np.cumsum([0, *map(len, parts)])
        self.scene_of, self.whole_scene_of = (self._numbered(name) for name in ("scene_of", "whole_scene_of"))
        first = parts[0].facts
        self.facts = {
            "version": " + ".join(dict.fromkeys(str(part.facts.get("version", "")) for part in parts)),
            "split": first.get("split", ""),
            "sweeps": min(part.facts.get("sweeps", 1) for part in parts),
        }

    def _numbered(self, name):
        """Scene numbers of all parts, none of them twice."""
        out, start = [], 0
        for part in self.parts:
            own = np.asarray(getattr(part, name), np.int64)
            out.append(own + start)
            start += int(own.max()) + 1
        return np.concatenate(out)

    def __len__(self):
        return int(self.starts[-1])

    @property
    def rig(self):
        """That of the first set; see rig_at."""
        return self.parts[0].rig

    def part_of(self, number):
        """Which of the parts keyframe `number` is of."""
        return int(np.searchsorted(self.starts, number, side="right")) - 1

    @property
    def bytes_read(self):
        return sum(part.bytes_read for part in self.parts)

    @property
    def samples_sha256(self):
        """Of the lists of samples and their weights, which decide the order too."""
        digests = json.dumps([[part.samples_sha256 for part in self.parts], self.weights])
        return hashlib.sha256(digests.encode()).hexdigest()

    @property
    def identity(self):
        """As a source's: of all parts."""
        names = dict.fromkeys(name for part in self.parts for name in part.identity)
        together = {name: "".join(part.identity.get(name, "-") for part in self.parts) for name in names}
        return {"other weights": str(self.weights), **together}

    def order(self, windows, seed, epoch, shuffle):
        """As a source's; without `shuffle`, as in evaluation, every window once, set after set."""
        if not shuffle:
            return np.arange(len(windows))
        first = np.array([window[0] for window in windows])
        sizes = np.diff(np.searchsorted(first, self.starts)).tolist()
        empty = next((n for n, size in enumerate(sizes) if not size), None)
        if empty is not None:
            raise InputError(
                f"{self.parts[empty].indexes[0].tar}: this set of --mix has no sample of so many keyframes"
            )
        return mixed_order(sizes, self.weights, seed, epoch)

    def begin(self, frames, members=None):
        """As a source's: each part is told of its own frames."""
        frames = np.asarray(list(frames), np.int64)
        afar = not all(isinstance(getattr(part, "base", part), LocalSource) for part in self.parts)
        members = list(members) if members is not None and afar else None
        of = np.searchsorted(self.starts, frames, side="right") - 1
        for number, part in enumerate(self.parts):
            places = np.flatnonzero(of == number)
            own = None if members is None else [members[place] for place in places]
            part.begin((frames[places] - self.starts[number]).tolist(), own)

    def read(self, number, members):
        part = self.part_of(number)
        return self.parts[part].read(int(number - self.starts[part]), members)

    def where(self, number):
        part = self.part_of(number)
        return self.parts[part].where(int(number - self.starts[part]))

    def lacks(self, member):
        return next((tar for part in self.parts if (tar := part.lacks(member)) is not None), None)

    def interrupt(self):
        for part in self.parts:
            part.interrupt()

    def close(self):
        for part in self.parts:
            part.close()
