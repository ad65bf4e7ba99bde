"""One shard's part of a layer: what `make` is given of each keyframe, and how what it gives is written."""

from dataclasses import dataclass
from functools import cached_property

from common import addresses
from common.layers import HEADER, LayerFacts, layer_folder
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    decode_boxes,
    decode_cameras,
    decode_points,
    image_member,
    lidar_member,
    parse_sample,
    radar_member,
)
from common.shard_index import ABSENT, dump_index, open_index
from common.stores import open_store
from preprocess.errors import SourceError
from preprocess.indexed_tar import IndexedTar
from preprocess.shard_writer import Written


class LayerSample:
    """One keyframe of a shard, as `make` gets it; what it does not ask for is not read.

    key: of the sample. read(member): its bytes, None where the record lacks it.
    """

    def __init__(self, key, read):
        self.key, self.read = key, read

    @cached_property
    def facts(self):
        """sample.json as a dict."""
        return parse_sample(self.read(SAMPLE))

    @cached_property
    def cameras(self):
        """(S,) array of common.record.CAMERA_DTYPE, in the order of facts["cameras"]."""
        return decode_cameras(self.read(CAMERAS_MEMBER), self.facts)

    @cached_property
    def boxes(self):
        """(n,) array of common.record.BOX_DTYPE."""
        return decode_boxes(self.read(BOXES_MEMBER), self.facts)

    def image(self, camera):
        """JPEG bytes of a camera's image; None where there is none."""
        return self.read(image_member(camera))

    def lidar(self, sweep=0):
        """(fields, n) float32 points of a lidar sweep in the keyframe's ego frame; None where there is none."""
        return self._points(lidar_member(sweep))

    def radar(self, sweep=0):
        """(fields, n) float32 of all radars, as shards/README.md has them; None where there is none."""
        return self._points(radar_member(sweep))

    def _points(self, member):
        data = self.read(member)
        return None if data is None else decode_points(data, member)


@dataclass(frozen=True)
class LayerTask:
    """One shard's part of a layer. folder, tar: address and file name of the shard. keyframes: its keys. facts: LayerFacts."""

    folder: str
    tar: str
    keyframes: tuple
    facts: LayerFacts

    @property
    def index_name(self):
        return addresses.index_address(self.tar)


def write_part(task, make, store_options=None, on_keyframe=None):
    """Write one shard's part of a layer: the tar, then its index, which is the commit mark; a Written.

    Raises SourceError: `make` gave what cannot be written, or the shard has changed since the layer was begun.
    """
    shards = open_store(task.folder or ".", store_options)
    store = open_store(layer_folder(task.folder, task.facts.layer), store_options)
    base, stat = open_index(shards, task.tar)
    if base.tar_sha256 != task.facts.base_sha256:
        raise SourceError(f"{shards.path(task.tar)}: has changed since the layer was begun; begin it again")
    store.remove(task.index_name)
    scene_of = {row: scene for scene, first, rows in base.scenes for row in range(first, first + rows)}
    done = Written()
    with store.new_file(task.tar) as file, IndexedTar(file) as tar:
        tar.put(HEADER, task.facts.dump())
        for row, key in enumerate(base.keys):
            members = _made(make, LayerSample(key, _reader(shards, task.tar, base, stat, row)), task, shards)
            if members:
                tar.add(key, base.tokens[row], scene_of[row], members)
            counts = (1, {}, {"rest": sum(map(len, members.values()))})
            done.add(*counts)
            if on_keyframe:
                on_keyframe(*counts)
    store.write(task.index_name, dump_index(tar.index(store.path(task.tar), task.facts.as_dict())))
    return done


def samples_of(shards, most, store_options=None):
    """Yield (LayerSample, address of its shard) of at most `most` keyframes, spread evenly over a ShardSet."""
    opened = []
    for tar in shards:
        folder, file = addresses.split(tar)
        store = open_store(folder or ".", store_options)
        opened.append((tar, store, file, *open_index(store, file)))
    rows = [(number, row) for number, (*_, index, _) in enumerate(opened) for row in range(len(index.keys))]
    for number, row in rows[:: max(1, -(-len(rows) // most))]:
        tar, store, file, index, stat = opened[number]
        yield LayerSample(index.keys[row], _reader(store, file, index, stat, row)), tar


def _reader(store, tar, index, stat, row):
    """A function from the name of a member to its bytes, None where that sample lacks it."""

    def read(member):
        column = index.members.index(member) if member in index.members else None
        if column is None or index.sizes[row, column] == ABSENT:
            return None
        return store.read_range(tar, int(index.offsets[row, column]), int(index.sizes[row, column]), stat.etag)[0]

    return read


def _made(make, sample, task, store):
    """What `make` gives of a sample, checked: a dict. Raises SourceError."""
    where = f"{store.path(task.tar)}: {sample.key}: layer {task.facts.layer}"
    members = make(sample) or {}
    if not members and task.facts.missing == "error":
        raise SourceError(f"{where} has nothing; have make give a member, or write the layer with missing='empty'")
    for name, data in members.items():
        if (
            not (isinstance(name, str) and name.isascii() and name.isprintable())
            or "/" in name
            or name[:1] in ("", ".")
        ):
            raise SourceError(f"{where}: {name!r} is no name of a member")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            kind = type(data).__name__
            raise SourceError(
                f"{where}: {name} is a {kind}, not bytes; common.record.encode_array makes some of arrays"
            )
    return members
