"""What a worker needs to write a shard, but for the sensor files: small and plain, so that it never holds the tables."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from common.record import encode_json
from common.rig import Distortion


@dataclass(slots=True)
class CameraFile:
    """One image of a keyframe: file, intrinsics (3, 3) in its source pixels, transforms (4, 4) in metres.

    distortion: common.rig.Distortion of the source image; None for a pinhole's.
    """

    channel: str
    token: str
    filename: str
    timestamp: int
    height: int
    width: int
    intrinsics: np.ndarray
    ego_T_cam: np.ndarray
    global_T_ego: np.ndarray
    distortion: Distortion | None = None


@dataclass(slots=True)
class PointFile:
    """One lidar or radar file: ego_T_sensor (4, 4) takes its points to the keyframe's ego frame; lag in seconds.

    sensor_T_file: (4, 4), where a data set's files hold points in another frame than the sensor's; else None.
    """

    channel: str
    token: str
    filename: str
    timestamp: int
    lag: float
    ego_T_sensor: np.ndarray
    sensor_T_file: np.ndarray | None = None


@dataclass(slots=True)
class KeyframeRecipe:
    """One record. lidar, radar: for each sweep, newest first, the files of the sensors that have one."""

    key: str
    facts: dict
    global_T_ego: np.ndarray
    cameras: list
    lidar: list
    radar: list
    boxes: list


@dataclass(slots=True)
class ShardRecipe:
    """One tar: name without ending, metadata shared by its samples, keyframes in order, samples that the plan left out."""

    name: str
    facts: dict
    keyframes: list = field(default_factory=list)
    skipped: list = field(default_factory=list)

    def scenes(self):
        """The keyframes, one list per scene."""
        scenes = {}
        for frame in self.keyframes:
            scenes.setdefault(frame.facts["scene"]["token"], []).append(frame)
        return list(scenes.values())

    def digest(self):
        """SHA-256 over all that decides the tar's bytes except the contents of the sensor files."""
        digest = hashlib.sha256(encode_json(self.facts))
        for frame in self.keyframes:
            sweeps = [*frame.lidar, *frame.radar]
            texts = [(c.channel, c.token, c.filename, c.timestamp, c.height, c.width) for c in frame.cameras]
            texts += [[(f.channel, f.token, f.filename, f.timestamp, f.lag) for f in files] for files in sweeps]
            bent = [c.distortion for c in frame.cameras if c.distortion is not None]
            texts += [[lens.model, *lens.coefficients] for lens in bent]
            digest.update(encode_json([frame.key, frame.facts, frame.boxes, texts]))
            arrays = [m for c in frame.cameras for m in (c.intrinsics, c.ego_T_cam, c.global_T_ego)]
            arrays += [f.ego_T_sensor for files in sweeps for f in files]
            arrays += [f.sensor_T_file for files in sweeps for f in files if f.sensor_T_file is not None]
            for array in (frame.global_T_ego, *arrays):
                digest.update(np.ascontiguousarray(array, "<f8").tobytes())
        return digest.hexdigest()
