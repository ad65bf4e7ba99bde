"""What the user chooses at preprocessing, and how the channels of another rig get nuScenes' names."""

import re
from dataclasses import dataclass

from preprocess.datasets import DEFAULT, IN_ITS_LAYOUT, dataset
from preprocess.errors import SourceError
from preprocess.nuscenes import CAMERAS, LIDAR, LIDAR_FIELDS, RADARS
from preprocess.pointclouds import LIDAR_COLUMNS

SENSORS = ("camera", "lidar", "radar")
CANONICAL = (*CAMERAS, LIDAR, *RADARS)


@dataclass(frozen=True)
class Options:
    """The choices, part of every shard's facts.

    sweeps: largest nsweeps that the shards will serve, keyframe included. image_hw: (height, width) to re-encode to, None
    for the source bytes. jpeg_quality applies to re-encoding only. sensors: kinds whose files are needed and kept; None
    means those that the tables have. channels: (name of nuScenes, name in the tables) pairs. lidar_columns: see parse_lidar.
    dataset: which of preprocess.datasets it is made of. hz: keyframes per second, of data sets that have more of them annotated
    than one may want; None for all. keep_distortion: of images that are not a pinhole's; else they are rectified.
    """

    sweeps: int = 5
    image_hw: tuple | None = None
    jpeg_quality: int = 90
    sensors: tuple | None = None
    channels: tuple = ()
    lidar_columns: int = len(LIDAR_FIELDS)
    dataset: str = DEFAULT
    hz: float | None = None
    keep_distortion: bool = False

    def __post_init__(self):
        if self.sweeps < 1:
            raise ValueError(f"sweeps is {self.sweeps}; it counts the keyframe, so it is at least 1")
        if self.image_hw and min(self.image_hw) < 16:
            raise ValueError(f"image size {self.image_hw[0]}x{self.image_hw[1]} is too small")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"JPEG quality {self.jpeg_quality} is not in 1..100")
        if self.lidar_columns not in LIDAR_COLUMNS:
            raise ValueError(f"lidar columns {self.lidar_columns}; known are {', '.join(map(str, LIDAR_COLUMNS))}")
        dataset(self.dataset)
        if self.hz is not None and not self.hz > 0:
            raise ValueError(f"hz is {self.hz}; it counts keyframes per second")
        if self.dataset not in IN_ITS_LAYOUT and (self.channels or self.lidar_columns != len(LIDAR_FIELDS)):
            raise ValueError(
                f"--channels and --lidar-columns are of nuScenes' layout, not of {self.dataset}; leave them out"
            )
        if self.dataset in IN_ITS_LAYOUT and self.hz is not None:
            raise ValueError(
                "--hz is for data sets whose every frame is annotated; nuScenes' tables name their keyframes"
            )
        if self.sensors is not None:
            _check_sensors(self.sensors)
        for ours in (pair[0] for pair in self.channels):
            if ours not in CANONICAL:
                raise ValueError(f"channel {ours!r} is none of nuScenes'; those are {', '.join(CANONICAL)}")
        for side in (0, 1):
            names = [pair[side] for pair in self.channels]
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"channel {twice[0]} is named twice in {format_channels(self.channels)}")

    def facts(self):
        """What a shard's metadata (`facts`) says of these options, apart from the sensors, which the tables decide too."""
        facts = {
            "sweeps": self.sweeps,
            "image_size": list(self.image_hw) if self.image_hw else None,
            "jpeg_quality": self.jpeg_quality if self.image_hw else None,
        }
        if self.channels:
            facts["channels"] = dict(self.channels)
        if self.lidar_columns != len(LIDAR_FIELDS):
            facts["lidar_columns"] = self.lidar_columns
        if self.dataset != DEFAULT:
            facts["adapter"] = self.dataset
        if self.hz is not None:
            facts["hz"] = self.hz
        if self.keep_distortion:
            facts["keep_distortion"] = True
        return facts

    @staticmethod
    def from_facts(facts):
        """The options that a shard with this metadata was made with."""
        return Options(
            sweeps=facts["sweeps"],
            image_hw=tuple(facts["image_size"]) if facts["image_size"] else None,
            jpeg_quality=facts["jpeg_quality"] or 90,
            sensors=tuple(facts["sensors"]) if "sensors" in facts else None,
            channels=tuple(sorted(facts.get("channels", {}).items())),
            lidar_columns=facts.get("lidar_columns", len(LIDAR_FIELDS)),
            dataset=facts.get("adapter", DEFAULT),
            hz=facts.get("hz"),
            keep_distortion=facts.get("keep_distortion", False),
        )


def _check_sensors(sensors):
    for name in sensors:
        if name not in SENSORS:
            raise ValueError(f"sensor {name!r}; known are {', '.join(SENSORS)}")
    if "camera" not in sensors:
        raise ValueError("sensors without camera: a keyframe without images is of no use here; add camera")
    if len(set(sensors)) != len(sensors):
        raise ValueError(f"sensors {','.join(sensors)}: one is named twice")


def parse_image_size(text):
    """(height, width) of "540x960"; None of nothing. Raises ValueError."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH, for example 540x960")
    return int(match[1]), int(match[2])


def parse_sensors(text):
    """("camera", ...) of "camera,lidar", in the order of SENSORS; None of nothing. Raises ValueError."""
    if not text:
        return None
    named = [name.strip().lower() for name in text.split(",")]
    _check_sensors(named)
    return tuple(name for name in SENSORS if name in named)


def parse_channels(text):
    """Sorted (name of nuScenes, name in the tables) pairs of "LIDAR_TOP=LIDAR_CONCAT,...". Raises ValueError."""
    pairs = []
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        ours, equals, theirs = (side.strip() for side in part.partition("="))
        if not (ours and equals and theirs) or "=" in theirs:
            raise ValueError(f"channel {part!r} is not NUSCENES_NAME=NAME_IN_THE_TABLES")
        pairs.append((ours, theirs))
    return tuple(sorted(pairs))


def format_channels(pairs):
    """The text that parse_channels reads."""
    return ",".join(f"{ours}={theirs}" for ours, theirs in pairs)


def channel_names(pairs, sensors):
    """Name of nuScenes for each channel of the tables: a mapped one, or its own.

    A channel whose own name another one takes over gets a name that nothing asks for.

    Args:
        pairs: Options.channels. sensors: channel -> modality, as the sensor table has them.
    Raises:
        SourceError: a mapped channel that is not there, or one of another kind than its new name.
    """
    taken = dict(pairs)
    for theirs in taken.values():
        if theirs not in sensors:
            raise SourceError(
                f"channel {theirs!r} of --channels is not in the sensor table: {', '.join(sorted(sensors))}"
            )
    mapped = {theirs: ours for ours, theirs in pairs}
    names = {own: mapped.get(own, f"{own} (replaced)" if own in taken else own) for own in sensors}
    for own, name in names.items():
        kind = {"CAM": "camera", "LIDAR": "lidar", "RADAR": "radar"}.get(name.partition("_")[0])
        if name in CANONICAL and sensors[own] != kind:
            raise SourceError(f"sensor {own}: its modality is {sensors[own]!r}, as {name} it must be {kind!r}")
    return names
