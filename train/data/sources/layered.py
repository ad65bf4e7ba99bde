"""A source whose keyframes also have the members of layers: it reads each from tars of its own, at the same time."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from common import addresses
from common.errors import InputError, ShardError
from common.layers import FOLDER, LayerFacts, layer_folder, rows_in
from common.spelling import spelled
from train.data.sources.ranges import RangeSource

HELD_BYTES = 256 << 20  # a layer that is no larger takes a request for each of its tars, not one for each keyframe
MOST_AT_ONCE = 32  # requests of layers, from threads that read without having said what comes next


class LayeredSource:
    """A source of shards, and of layers beside them. What is not said here is the shards' own source's.

    Members of a layer are named (layer, member).

    Args:
        base: the source of the shards; no stream. layers: name -> (members, source of the layer's tars, in the order of the
            shards).
    Raises:
        ShardError: a layer of other shards.
    """

    def __init__(self, base, layers):
        self.base, self._layers = base, {}
        self._pool, self._starting, self._is_ahead = None, threading.Lock(), False
        for name, (members, source) in layers.items():
            self._layers[name] = _Layer(name, members, source, base.indexes)

    def __getattr__(self, name):
        return getattr(self.base, name)

    def __len__(self):
        return len(self.base)

    @property
    def bytes_read(self):
        return self.base.bytes_read + sum(layer.source.bytes_read for layer in self._layers.values())

    @property
    def identity(self):
        """As a source's, of the layers too."""
        layers = {f"another layer {name}": layer.source.bytes_sha256 for name, layer in self._layers.items()}
        return self.base.identity | layers

    def begin(self, frames, members=None):
        """As a source's; what a layer has of the frames is fetched ahead too."""
        self.close()
        frames, own, wanted = list(frames), None, set()
        if members is not None:
            members = iter(members)
            first = next(members, [])
            wanted = {member[0] for member in first if isinstance(member, tuple)}  # the same layers of every keyframe
            own = ([m for m in each if isinstance(m, str)] for each in itertools.chain([first], members))
        self._is_ahead = bool(wanted)
        self.base.begin(frames, own)
        for layer in self._layers.values():
            layer.begin(frames, ahead=layer.name in wanted)

    def read(self, number, members):
        """As a source's. Raises ShardError where a layer that says that it lacks nothing lacks the keyframe."""
        own = [member for member in members if isinstance(member, str)]
        wanted = {}
        for name, member in (m for m in members if isinstance(m, tuple)):
            wanted.setdefault(name, []).append(member)
        parts = [(name, self._begun(self._layers[name], number, names)) for name, names in wanted.items()]
        out = dict(self.base.read(number, own)) if own else {}
        for name, part in parts:
            out |= {(name, member): data for member, data in part().items()}
        return out

    def _begun(self, layer, number, members):
        """A function that gives a layer's members. What comes from afar, and is not there yet, is then under way."""
        if self._is_ahead or not isinstance(layer.source, RangeSource):
            return lambda: layer.read(number, members, self.base)
        with self._starting:
            self._pool = self._pool or ThreadPoolExecutor(MOST_AT_ONCE, "layers")
            return self._pool.submit(layer.read, number, members, self.base).result

    def lacks(self, member):
        """As a source's."""
        if isinstance(member, str):
            return self.base.lacks(member)
        name, member = member
        return self._layers[name].source.lacks(member)

    def layer_options(self, name):
        """What a layer records of how it was made."""
        return self._layers[name].facts[0].options

    def interrupt(self):
        for source in self._sources():
            source.interrupt()

    def close(self):
        with self._starting:
            pool, self._pool = self._pool, None
        if pool is not None:
            self.interrupt()
            pool.shutdown()
        for source in self._sources():
            source.close()

    @property
    def fetches_ahead(self):
        return any(source.fetches_ahead for source in self._sources())

    def _sources(self):
        return (self.base, *(layer.source for layer in self._layers.values()))


class _Layer:
    """One layer: its members that are wanted, its source, and the layer's number of each keyframe, -1 where it has none."""

    def __init__(self, name, members, source, bases):
        self.name, self.members, self.source = name, tuple(members), source
        self.facts = [LayerFacts.parse(index.facts, index.tar) for index in source.indexes]
        starts = np.cumsum([0, *(len(index.keys) for index in source.indexes)])
        rows = [
            rows_in(index, base, facts, index.tar)
            for index, base, facts in zip(source.indexes, bases, self.facts, strict=True)
        ]
        self.numbers = np.concatenate(
            [np.where(own < 0, -1, own + start) for own, start in zip(rows, starts[:-1], strict=True)]
        )
        self.may_lack = np.repeat([facts.missing == "empty" for facts in self.facts], [len(own) for own in rows])

    def begin(self, frames, ahead):
        there = [int(number) for number in self.numbers[frames] if number >= 0]
        self.source.begin(there, itertools.repeat(self.members, len(there)) if ahead else None)

    def read(self, number, members, base):
        own = int(self.numbers[number])
        if own < 0:
            if not self.may_lack[number]:
                raise ShardError(
                    f"{base.where(number)}: layer {self.name} has nothing of it, and says that it lacks nothing; make the "
                    f"layer anew ({spelled('preprocess.verify')} finds all that is wrong)"
                )
            return {}
        return self.source.read(own, members)


def with_layers(source, layers, config, opened):
    """The source with layers beside its shards; the source itself where there are none.

    Args:
        source: of the shards. layers: name -> member names. config: SourceConfig. opened: function that opens a ShardSet as the
            shards were, given the SourceConfig.
    Raises:
        ShardError, ValueError: no such layer, one of other shards, or shards that are streamed.
    """
    if not layers:
        return source
    if source.is_stream:
        names = ", ".join(layers)
        raise InputError(
            f"layer {names}: streams are read front to back and have no layers; give reader auto or indexed"
        )
    return LayeredSource(
        source, {name: (members, _open(source, name, members, config, opened)) for name, members in layers.items()}
    )


def _open(source, name, members, config, opened):
    """The source of one layer's tars. Raises ShardError, which says what to do."""
    places = [addresses.split(tar) for tar in source.shards]
    tars = tuple(addresses.join(layer_folder(folder, name), file) for folder, file in places)
    shards = replace(source.shards, shards=tars, manifests={}, of_layer=True)
    try:
        own = opened(shards, replace(config, hold_bytes=HELD_BYTES))
    except ShardError as error:
        where = addresses.shown(next(iter(source.shards)))
        raise ShardError(
            f"{where}: its layer {name} cannot be read ({error}); copy {FOLDER}/{name}/ beside the shards, or make it"
        ) from None
    for member in members:
        if not any(member in index.members for index in own.indexes):
            held = ", ".join(dict.fromkeys(m for index in own.indexes for m in index.members))
            raise ShardError(f"{own.indexes[0].tar}: layer {name} has no member {member}; it has {held}")
    return own
