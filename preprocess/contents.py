"""What a set of shards holds, counted from its indexes, sample.json and boxes: a few kilobytes per keyframe are read."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from common import addresses
from common.errors import CannotList
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    lidar_files,
    parse_sample,
)
from common.shard_index import ABSENT, ShardError, open_index
from common.shard_set import find_shards, in_parallel
from common.spelling import spelled
from common.stores import open_store
from preprocess.manifest import read_skipped

VISIBILITIES = (0, 1, 2, 3, 4)  # 0: not annotated
_READ_TOGETHER = 1 << 20  # sample.json and boxes lie side by side; a read of both is one read


@dataclass
class Contents:
    """Counts over all shards that were looked at.

    splits: name -> {shards, scenes, samples, bytes, seconds}. options: what the shards were made with. rigs: the
    different ones, as JSON has them. sensors: channel -> {samples, sweeps}: in how many samples it is, and how many sweeps
    of it these hold together. boxes: category -> counts by visibility 0-4. bytes_by_kind: of members. keyframes_by_scene:
    name -> keyframes. places, descriptions, conditions (such as "light night"): -> scenes. layers: name -> {shards, bytes}.
    skipped: what --on-error skip left out.
    """

    splits: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    sensors: dict = field(default_factory=dict)
    boxes: dict = field(default_factory=dict)
    bytes_by_kind: Counter = field(default_factory=Counter)
    keyframes_by_scene: dict = field(default_factory=dict)
    places: Counter = field(default_factory=Counter)
    descriptions: Counter = field(default_factory=Counter)
    conditions: Counter = field(default_factory=Counter)
    rigs: list = field(default_factory=list)
    layers: dict = field(default_factory=dict)
    skipped: list = field(default_factory=list)

    def total(self, name):
        """Sum of one figure over the splits."""
        return sum(split[name] for split in self.splits.values())

    def as_dict(self):
        """Plain values for JSON."""
        return {
            "splits": self.splits,
            "options": self.options,
            "hours": self.total("seconds") / 3600,
            "sensors": self.sensors,
            "boxes": self.boxes,
            "bytes_by_kind": dict(self.bytes_by_kind),
            "keyframes_by_scene": self.keyframes_by_scene,
            "places": dict(self.places),
            "descriptions": dict(self.descriptions),
            "conditions": dict(self.conditions),
            "rigs": self.rigs,
            "layers": self.layers,
            "skipped": self.skipped,
        }


def shards_of(patterns, options=None):
    """ShardSet of the shards that paths, addresses, globs, ranges, manifests and folders name; options: of the stores.

    Raises ValueError.
    """
    shards = find_shards(patterns, options=options)
    for tar in shards:
        if addresses.is_pipe(tar):
            raise ValueError(f"{tar}: what comes from front to back would all be read; name a file or an address")
    return shards


def kind_of_member(name):
    """The kind that a member's bytes are counted under."""
    fixed = {SAMPLE: "sample.json", CAMERAS_MEMBER: "cameras", BOXES_MEMBER: "boxes"}
    if name in fixed:
        return fixed[name]
    return "images" if name.endswith(".jpg") else name.partition(".")[0]


def count(shards, progress=lambda tars: tars):
    """Contents of a ShardSet.

    Args:
        progress: wraps the list of shards, as common.progress.progress does.
    Raises:
        ShardError: a shard or member that cannot be read, named.
    """
    contents = Contents()
    folders = dict.fromkeys(addresses.split(tar)[0] for tar in shards)
    stores = {folder: open_store(folder or ".", shards.options, shards.retry) for folder in folders}
    for tar in progress(shards.shards):
        folder, name = addresses.split(tar)
        store = stores[folder]
        index, stat = open_index(store, name)
        _count_index(contents, index)
        contents.skipped += read_skipped(store, name.removesuffix(".tar"))
        _count_samples(contents, index, partial(_part, store, name, stat.etag))
    for store in stores.values():
        contents.layers |= _layers(store)
    return contents


def _part(store, name, etag, start, size):
    return bytes(store.read_range(name, start, size, etag)[0])


def _count_index(contents, index):
    facts = index.facts
    split = contents.splits.setdefault(
        facts.get("split", "?"), {"shards": 0, "scenes": 0, "samples": 0, "bytes": 0, "seconds": 0.0}
    )
    split["shards"] += 1
    split["scenes"] += len(index.scenes)
    split["samples"] += len(index.keys)
    split["bytes"] += index.tar_bytes
    for name, value in facts.items():
        if name not in ("split", "recipe_sha256", "rig"):
            values = contents.options.setdefault(name, [])
            if value not in values:
                values.append(value)
    rig = index.rig.as_dict()
    if rig not in contents.rigs:
        contents.rigs.append(rig)
    for scene, _, rows in index.scenes:
        contents.keyframes_by_scene[scene] = contents.keyframes_by_scene.get(scene, 0) + rows
    for column, name in enumerate(index.members):
        sizes = index.sizes[:, column]
        contents.bytes_by_kind[kind_of_member(name)] += int(sizes[sizes != ABSENT].sum(dtype="int64"))


def _count_samples(contents, index, read):
    """read(first byte, bytes): part of the tar."""
    columns = {name: index.members.index(name) for name in (SAMPLE, BOXES_MEMBER) if name in index.members}
    first = {row for _, row, _ in index.scenes}
    began = 0
    seconds = 0.0
    records = in_parallel(lambda row: _read(read, index, row, columns), range(len(index.keys)))
    for row, (key, members) in enumerate(zip(index.keys, records, strict=True)):
        try:
            sample = parse_sample(members[SAMPLE])
            _count_sample(contents, sample, members.get(BOXES_MEMBER))
        except (RecordError, KeyError, TypeError) as error:
            raise ShardError(f"{index.tar}: {key}: {error}; check it with {spelled('preprocess.verify')}") from None
        if row in first:
            began = sample["timestamp_us"]
            contents.places[str(sample["log"].get("location", "?"))] += 1
            contents.descriptions[str(sample["scene"].get("description", ""))] += 1
            contents.conditions.update(f"{name} {value}" for name, value in sample["conditions"].items())
        elif row + 1 in first or row + 1 == len(index.keys):
            seconds += (sample["timestamp_us"] - began) / 1e6
    contents.splits[index.facts.get("split", "?")]["seconds"] += seconds


def _read(read, index, row, columns):
    """{member: bytes} of one keyframe's small members, in one read where they lie together."""
    places = {
        name: (int(index.offsets[row, c]), int(index.sizes[row, c]))
        for name, c in columns.items()
        if index.sizes[row, c] != ABSENT
    }
    start, end = min(o for o, _ in places.values()), max(o + s for o, s in places.values())
    if end - start > _READ_TOGETHER:
        return {name: read(offset, size) for name, (offset, size) in places.items()}
    data = read(start, end - start)
    return {name: data[offset - start : offset - start + size] for name, (offset, size) in places.items()}


def _count_sample(contents, sample, boxes):
    sweeps = Counter(camera["channel"] for camera in sample["cameras"])
    for files in (*lidar_files(sample), *sample["radar"]):
        sweeps.update(file["channel"] for file in files)
    for channel, number in sweeps.items():
        sensor = contents.sensors.setdefault(channel, {"samples": 0, "sweeps": 0})
        sensor["samples"] += 1
        sensor["sweeps"] += number
    if boxes is not None:
        visibility = decode_boxes(boxes, sample)["visibility"].tolist()
        for category, seen in zip(sample["boxes"]["category"], visibility, strict=True):
            contents.boxes.setdefault(category, [0] * len(VISIBILITIES))[seen if seen in VISIBILITIES else 0] += 1


def _layers(store):
    """name -> {shards, bytes} of the layers beside the shards of a folder; {} where its store does not list."""
    try:
        layers = [name for name in store.list("layers/") if name.endswith("/")] if "layers/" in store.list() else []
        tars = {layer: [n for n in store.list(f"layers/{layer}") if n.endswith(".tar")] for layer in layers}
    except CannotList:
        return {}
    sizes = {layer: [store.stat(f"layers/{layer}{name}").size for name in names] for layer, names in tars.items()}
    return {layer.rstrip("/"): {"shards": len(own), "bytes": sum(own)} for layer, own in sizes.items()}
