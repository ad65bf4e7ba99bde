"""What a set of shards holds, counted from its indexes, sample.json and boxes: a few kilobytes a keyframe are read."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.addresses import is_pipe, is_remote
from common.record import BOXES_MEMBER, CAMERAS_MEMBER, SAMPLE, RecordError, decode_boxes, parse_sample
from common.shard_index import ABSENT, ShardError, index_path, load_index
from common.shard_set import find_shards

VISIBILITIES = (0, 1, 2, 3, 4)  # 0: not annotated
_READ_TOGETHER = 1 << 20  # sample.json and boxes lie side by side; a read of both is one read


@dataclass
class Contents:
    """Counts over all shards that were looked at.

    splits: name -> {shards, scenes, samples, bytes, seconds}. options: what the shards were made with. sensors: channel ->
    {samples, sweeps}: in how many samples it is, and how many sweeps of it these hold together. boxes: category -> counts
    by visibility 0-4. bytes_by_kind: of members. keyframes_by_scene: name -> keyframes. places, descriptions: -> scenes.
    layers: name -> {shards, bytes}. skipped: what --on-error skip left out.
    """

    splits: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    sensors: dict = field(default_factory=dict)
    boxes: dict = field(default_factory=dict)
    bytes_by_kind: Counter = field(default_factory=Counter)
    keyframes_by_scene: dict = field(default_factory=dict)
    places: Counter = field(default_factory=Counter)
    descriptions: Counter = field(default_factory=Counter)
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
            "layers": self.layers,
            "skipped": self.skipped,
        }


def shards_of(patterns):
    """Paths of the shards that paths, globs, ranges, manifests and folders name. Raises ValueError."""
    tars = find_shards(patterns).shards
    for tar in tars:
        if is_remote(tar) or is_pipe(tar):
            raise ValueError(f"{tar}: only shards on this machine's disks can be counted; copy this one")
    return [Path(tar) for tar in tars]


def kind_of_member(name):
    """The kind that a member's bytes are counted under."""
    fixed = {SAMPLE: "sample.json", CAMERAS_MEMBER: "cameras", BOXES_MEMBER: "boxes"}
    if name in fixed:
        return fixed[name]
    return "images" if name.endswith(".jpg") else name.partition(".")[0]


def count(tars, progress=lambda shards: shards):
    """Contents of the shards at `tars`.

    Args:
        progress: wraps the list of shards, as common.progress.progress does.
    Raises:
        ShardError: a shard or member that cannot be read, named.
    """
    contents = Contents()
    for tar in progress(tars):
        index = load_index(tar)
        _count_index(contents, index)
        _count_samples(contents, index)
    for folder in dict.fromkeys(tar.parent for tar in tars):
        contents.layers |= _layers(folder)
    return contents


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
        if name not in ("split", "recipe_sha256"):
            values = contents.options.setdefault(name, [])
            if value not in values:
                values.append(value)
    for scene, _, rows in index.scenes:
        contents.keyframes_by_scene[scene] = contents.keyframes_by_scene.get(scene, 0) + rows
    for column, name in enumerate(index.members):
        sizes = index.sizes[:, column]
        contents.bytes_by_kind[kind_of_member(name)] += int(sizes[sizes != ABSENT].sum(dtype="int64"))
    skipped = index_path(index.tar).with_name(index.tar.name.removesuffix(".tar") + ".skipped.json")
    if skipped.is_file():
        contents.skipped += json.loads(skipped.read_bytes())["skipped"]


def _count_samples(contents, index):
    columns = {name: index.members.index(name) for name in (SAMPLE, BOXES_MEMBER) if name in index.members}
    first = {row for _, row, _ in index.scenes}
    began = 0
    seconds = 0.0
    with open(index.tar, "rb") as file:
        for row, key in enumerate(index.keys):
            try:
                members = _read(file, index, row, columns)
                sample = parse_sample(members[SAMPLE])
                _count_sample(contents, sample, members.get(BOXES_MEMBER))
            except (RecordError, KeyError, TypeError) as error:
                raise ShardError(f"{index.tar}: {key}: {error}; check it with python -m preprocess.verify") from None
            if row in first:
                began = sample["timestamp_us"]
                contents.places[str(sample["log"].get("location", "?"))] += 1
                contents.descriptions[str(sample["scene"].get("description", ""))] += 1
            elif row + 1 in first or row + 1 == len(index.keys):
                seconds += (sample["timestamp_us"] - began) / 1e6
    contents.splits[index.facts.get("split", "?")]["seconds"] += seconds


def _read(file, index, row, columns):
    """{member: bytes} of one keyframe's small members, in one read where they lie together."""
    places = {
        name: (int(index.offsets[row, c]), int(index.sizes[row, c]))
        for name, c in columns.items()
        if index.sizes[row, c] != ABSENT
    }
    start, end = min(o for o, _ in places.values()), max(o + s for o, s in places.values())
    if end - start > _READ_TOGETHER:
        return {name: os.pread(file.fileno(), size, offset) for name, (offset, size) in places.items()}
    data = os.pread(file.fileno(), end - start, start)
    return {name: data[offset - start : offset - start + size] for name, (offset, size) in places.items()}


def _count_sample(contents, sample, boxes):
    sweeps = Counter(camera["channel"] for camera in sample["cameras"])
    sweeps.update(sweep["channel"] for sweep in sample["lidar"])
    sweeps.update(file["channel"] for sweep in sample["radar"] for file in sweep)
    for channel, number in sweeps.items():
        sensor = contents.sensors.setdefault(channel, {"samples": 0, "sweeps": 0})
        sensor["samples"] += 1
        sensor["sweeps"] += number
    if boxes is not None:
        visibility = decode_boxes(boxes, sample)["visibility"].tolist()
        for category, seen in zip(sample["boxes"]["category"], visibility, strict=True):
            contents.boxes.setdefault(category, [0] * len(VISIBILITIES))[seen if seen in VISIBILITIES else 0] += 1


def _layers(folder):
    """name -> {shards, bytes} of the layers beside the shards of a folder."""
    out = {}
    for layer in sorted(p for p in (folder / "layers").glob("*") if p.is_dir()):
        tars = list(layer.glob("*.tar"))
        out[layer.name] = {"shards": len(tars), "bytes": sum(tar.stat().st_size for tar in tars)}
    return out
