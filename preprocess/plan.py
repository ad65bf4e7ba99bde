"""nuScenes tables -> one compact recipe a shard: everything that a worker needs to write it, but for the sensor files.

Recipes are small and plain (dataclasses of strings, numbers and float64 arrays), so that a worker never holds the
tables, and their digest says whether a shard on disk is the one that would be written now.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.cameras import CAMERAS, LIDAR, MIN_DISTANCE_M, RADARS, REFERENCE_RADAR
from common.record import SCHEMA_VERSION, encode_json
from preprocess.errors import SourceError
from preprocess.frames import inverse, transform
from preprocess.tables import (
    by_token,
    read_annotations,
    read_calibration,
    read_poses,
    read_sensor_frames,
    read_table,
)

DEFAULT_SHARDS = {"train": 100, "val": 20}


@dataclass(frozen=True)
class Options:
    """What the user chooses at preprocessing; part of every shard's facts.

    sweeps: largest nsweeps that the shards will serve, keyframe included. image_hw: (height, width) to re-encode to, None
    for the source bytes. jpeg_quality applies to re-encoding only.
    """

    sweeps: int = 5
    image_hw: tuple | None = None
    jpeg_quality: int = 90

    def __post_init__(self):
        if self.sweeps < 1:
            raise ValueError(f"sweeps is {self.sweeps}; it counts the keyframe, so it is at least 1")
        if self.image_hw and min(self.image_hw) < 16:
            raise ValueError(f"image size {self.image_hw[0]}x{self.image_hw[1]} is too small")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"JPEG quality {self.jpeg_quality} is not in 1..100")


@dataclass(slots=True)
class CameraFile:
    """One image of a keyframe: file, intrinsics (3, 3) in its source pixels, transforms (4, 4) in metres."""

    channel: str
    token: str
    filename: str
    timestamp: int
    height: int
    width: int
    intrinsics: np.ndarray
    ego_T_cam: np.ndarray
    global_T_ego: np.ndarray


@dataclass(slots=True)
class PointFile:
    """One lidar or radar file: ego_T_sensor (4, 4) takes its points to the keyframe's ego frame; lag in seconds."""

    channel: str
    token: str
    filename: str
    timestamp: int
    lag: float
    ego_T_sensor: np.ndarray


@dataclass(slots=True)
class KeyframeRecipe:
    """One record. lidar: sweeps, newest first. radar: for each sweep, the files of the radars that have one."""

    key: str
    facts: dict
    global_T_ego: np.ndarray
    cameras: list
    lidar: list
    radar: list
    boxes: list


@dataclass(slots=True)
class ShardRecipe:
    """One tar: name without ending, facts shared by its samples, keyframes in order, samples that the plan left out."""

    name: str
    facts: dict
    keyframes: list = field(default_factory=list)
    skipped: list = field(default_factory=list)

    def digest(self):
        """SHA-256 over all that decides the tar's bytes except the contents of the sensor files."""
        digest = hashlib.sha256(encode_json(self.facts))
        for frame in self.keyframes:
            sweeps = [frame.lidar, *frame.radar]
            texts = [(c.channel, c.token, c.filename, c.timestamp, c.height, c.width) for c in frame.cameras]
            texts += [[(f.channel, f.token, f.filename, f.timestamp, f.lag) for f in files] for files in sweeps]
            digest.update(encode_json([frame.key, frame.facts, frame.boxes, texts]))
            arrays = [m for c in frame.cameras for m in (c.intrinsics, c.ego_T_cam, c.global_T_ego)]
            arrays += [f.ego_T_sensor for files in sweeps for f in files]
            for array in (frame.global_T_ego, *arrays):
                digest.update(np.ascontiguousarray(array, "<f8").tobytes())
        return digest.hexdigest()


def official_splits(version):
    """{"train": scene names, "val": scene names} of a nuScenes version. Raises SourceError for an unknown version."""
    from nuscenes.utils.splits import create_splits_scenes

    splits = create_splits_scenes()
    names = {
        "v1.0-trainval": {"train": "train", "val": "val"},
        "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
        "v1.0-test": {"test": "test"},
    }
    if version not in names:
        raise SourceError(f"version {version!r} has no official split ({', '.join(names)} have); give --split-file")
    return {own: splits[official] for own, official in names[version].items()}


def read_splits(version, split_file=None):
    """split -> scene names: the official ones, or those of a JSON file. Raises SourceError."""
    if split_file is None:
        return official_splits(version)
    try:
        splits = json.loads(Path(split_file).read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{split_file}: not a readable JSON file ({error})") from None
    names = ("train", "val", "test")
    if not isinstance(splits, dict) or not splits or set(splits) - set(names):
        raise SourceError(f"{split_file}: must be an object of {', '.join(names)}, each a list of scene names")
    for split, scenes in splits.items():
        if not isinstance(scenes, list) or not all(isinstance(s, str) for s in scenes):
            raise SourceError(f"{split_file}: {split} is not a list of scene names")
    named = [scene for scenes in splits.values() for scene in scenes]
    twice = sorted({scene for scene in named if named.count(scene) > 1})
    if twice:
        raise SourceError(f"{split_file}: names {twice[0]} twice")
    return {split: splits[split] for split in names if split in splits}


class Planner:
    """Reads the tables of `folder`/`version` once and makes recipes.

    on_error, keep_sequences: as in write_shard, for samples that the tables leave incomplete.
    Raises SourceError for tables that are missing, damaged or inconsistent.
    """

    def __init__(self, dataroot, version, options, on_error="stop", keep_sequences=False):
        folder = dataroot / version
        if not dataroot.is_dir():
            raise SourceError(f"{dataroot}: no such folder; point DATAROOT (--dataroot) at nuScenes")
        if not folder.is_dir():
            others = ", ".join(sorted(p.name for p in dataroot.glob("v*") if p.is_dir())) or "none"
            raise SourceError(f"{folder}: no such folder; versions found in {dataroot}: {others}")
        self.version, self.options = version, options
        self.skips, self.keep_sequences = on_error == "skip", keep_sequences
        fields = ("name", "log_token", "nbr_samples", "first_sample_token", "description")
        self.scenes = list(by_token(read_table(folder, "scene"), "scene", fields).values())
        self.logs = by_token(read_table(folder, "log"), "log", ("logfile", "vehicle", "date_captured", "location"))
        self.samples = by_token(read_table(folder, "sample"), "sample", ("timestamp", "prev", "next", "scene_token"))
        self.calibration = read_calibration(folder)
        self._mountings = {}
        self.poses = read_poses(folder)
        self.frames, self.keyframes = read_sensor_frames(folder, self.calibration, self.poses, self.samples)
        self.annotated = version != "v1.0-test"
        self.annotations, self.annotation_of = read_annotations(folder, self.samples, self.annotated)
        channels = {row[0] for row in self.calibration.values()}
        self.cameras = [c for c in CAMERAS if c in channels]
        if not self.cameras:
            raise SourceError(f"{folder}: none of the cameras {', '.join(CAMERAS)} is in its tables")

    def check_splits(self, splits, complete):
        """Raise SourceError for a scene that no split names and, if `complete`, for a name that is no scene."""
        there = {scene["name"] for scene in self.scenes}
        named = {name for names in splits.values() for name in names}
        if there - named and not self.skips:
            raise SourceError(
                f"scene {min(there - named)}: in no split of {self.version}; give --split-file, or --on-error skip"
            )
        if complete and named - there:
            raise SourceError(f"scene {min(named - there)}: named by the split file, but not in the tables")

    def shards(self, split, scene_names, count):
        """Recipes of one split's shards: whole scenes in the order of scene tokens (Simple-BEV's), spread evenly."""
        names = set(scene_names)
        scenes = sorted((s for s in self.scenes if s["name"] in names), key=lambda s: s["token"])
        count = min(count, len(scenes))
        facts = {
            "version": self.version,
            "split": split,
            "sweeps": self.options.sweeps,
            "image_size": list(self.options.image_hw) if self.options.image_hw else None,
            "jpeg_quality": self.options.jpeg_quality if self.options.image_hw else None,
            "min_distance_m": MIN_DISTANCE_M,
        }
        if len(self.cameras) < len(CAMERAS):
            facts["cameras"] = self.cameras
        if not self.annotated:
            facts["annotated"] = False
        recipes = []
        for i, group in enumerate(np.array_split(np.arange(len(scenes)), count) if count else []):
            recipe = ShardRecipe(f"{split}-{i:03d}", facts)
            for j in group:
                recipe.keyframes += self.scene_keyframes(scenes[j], recipe.skipped)
            recipes.append(recipe)
        return recipes

    def scene_keyframes(self, scene, skipped=None):
        """Recipes of a scene's keyframes in time order; what --on-error skip leaves out is added to `skipped`."""
        skipped = [] if skipped is None else skipped
        tokens, token = [], scene["first_sample_token"]
        while token:
            if token not in self.samples or len(tokens) > len(self.samples):
                raise SourceError(f"scene {scene['name']}: its chain of samples is broken at {token!r}")
            tokens.append(token)
            token = self.samples[token]["next"]
        if len(tokens) != scene["nbr_samples"]:
            raise SourceError(f"scene {scene['name']}: {len(tokens)} samples, nbr_samples {scene['nbr_samples']}")
        keys = [f"{scene['name']}_{i:04d}" for i in range(len(tokens))]
        recipes, failed = [], []
        for i, token in enumerate(tokens):
            try:
                recipes.append(self._keyframe(scene, tokens, keys, i))
            except SourceError as error:
                if not self.skips:
                    raise
                failed.append({"key": keys[i], "token": token, "why": str(error)})
        if failed and self.keep_sequences:
            why = failed[0]["why"]
            failed = [{"key": k, "token": t, "why": why} for k, t in zip(keys, tokens, strict=True)]
            recipes = []
        skipped += failed
        return recipes

    def _keyframe(self, scene, tokens, keys, i):
        sample = self.samples[tokens[i]]
        lidar = self._reference(sample, LIDAR)
        global_T_ego = self._pose(lidar)
        log = self.logs.get(scene["log_token"])
        if log is None:
            raise SourceError(f"scene {scene['name']}: log {scene['log_token']!r} does not exist")
        boxes = self.annotations.get(sample["token"], [])
        facts = {
            "schema": SCHEMA_VERSION,
            "token": sample["token"],
            "timestamp_us": sample["timestamp"],
            "index": i,
            "prev": keys[i - 1] if i else "",
            "next": keys[i + 1] if i + 1 < len(keys) else "",
            "scene": {k: scene[k] for k in ("name", "token", "description", "nbr_samples")},
            "log": {k: log[k] for k in ("token", "logfile", "vehicle", "date_captured", "location")},
        }
        return KeyframeRecipe(
            key=keys[i],
            facts=facts,
            global_T_ego=global_T_ego,
            cameras=self._cameras(sample),
            lidar=self._points([(LIDAR, f) for f in self._sweeps(lidar)], lidar),
            radar=self._radar(sample),
            boxes=[self._box(row) for row in boxes],
        )

    def _reference(self, sample, channel):
        token = self.keyframes.get((sample["token"], channel))
        if token is None:
            raise SourceError(f"sample {sample['token']}: has no {channel} keyframe")
        return self.frames[token]

    def _pose(self, frame):
        return transform(self.poses.rotation[frame.pose], self.poses.translation[frame.pose])

    def _sweeps(self, frame):
        chain = [frame]
        while len(chain) < self.options.sweeps and chain[-1].prev:
            if chain[-1].prev not in self.frames:
                raise SourceError(f"sample_data {chain[-1].token}: its prev {chain[-1].prev!r} does not exist")
            chain.append(self.frames[chain[-1].prev])
        return chain

    def _cameras(self, sample):
        out = []
        for channel in self.cameras:
            frame = self._reference(sample, channel)
            intrinsics = self.calibration[frame.calibration][4]
            out.append(
                CameraFile(
                    channel,
                    frame.token,
                    frame.filename,
                    frame.timestamp,
                    frame.height,
                    frame.width,
                    intrinsics,
                    self._mounting(frame.calibration),
                    self._pose(frame),
                )
            )
        return out

    def _points(self, files, reference):
        """PointFiles of (channel, SensorFrame) pairs, in the ego frame of `reference`."""
        rows = [frame.pose for _, frame in files]
        global_T_ego = transform(self.poses.rotation[rows], self.poses.translation[rows])
        mountings = np.stack([self._mounting(frame.calibration) for _, frame in files])
        # All files of a keyframe in one product: at trainval scale there are 1.2 million of them.
        ego_T_sensor = inverse(self._pose(reference)) @ global_T_ego @ mountings
        out = []
        for (channel, frame), matrix in zip(files, ego_T_sensor, strict=True):
            # The lineage subtracts seconds, not microseconds: keep its rounding.
            lag = 1e-6 * reference.timestamp - 1e-6 * frame.timestamp
            out.append(PointFile(channel, frame.token, frame.filename, frame.timestamp, lag, matrix))
        return out

    def _mounting(self, calibration):
        """ego_T_sensor (4, 4) of a calibrated_sensor token."""
        if calibration not in self._mountings:
            _, _, rotation, translation, _ = self.calibration[calibration]
            self._mountings[calibration] = transform(rotation, translation)
        return self._mountings[calibration]

    def _radar(self, sample):
        there = [c for c in RADARS if (sample["token"], c) in self.keyframes]
        if not there:
            return []
        reference = self._reference(sample, REFERENCE_RADAR if REFERENCE_RADAR in there else there[0])
        chains = [[(c, frame) for frame in self._sweeps(self._reference(sample, c))] for c in there]
        moved = iter(self._points([pair for chain in chains for pair in chain], reference))
        chains = [[next(moved) for _ in chain] for chain in chains]
        longest = max(map(len, chains))
        return [[chain[k] for chain in chains if k < len(chain)] for k in range(longest)]

    def _box(self, row):
        return {
            "token": row["token"],
            "instance": row["instance_token"],
            "category": row["category_name"],
            "attributes": row["attributes"],
            "visibility": self._visibility(row),
            "num_lidar_pts": int(row.get("num_lidar_pts", -1)),
            "num_radar_pts": int(row.get("num_radar_pts", -1)),
            "translation": row["translation"],
            "size": row["size"],
            "rotation": row["rotation"],
            "velocity": self._velocity(row),
        }

    @staticmethod
    def _visibility(row):
        try:
            return int(row["visibility_token"] or 0)
        except (TypeError, ValueError):
            raise SourceError(
                f"sample_annotation {row['token']}: visibility_token {row['visibility_token']!r} is not 1 to 4"
            ) from None

    def _velocity(self, row, max_time_diff_s=1.5):
        """Metres a second in the global frame from the neighbouring annotations, or None (the devkit's box_velocity)."""
        first = self.annotation_of.get(row["prev"], row)
        last = self.annotation_of.get(row["next"], row)
        if first is last:
            return None
        times = [self.samples[r["sample_token"]]["timestamp"] for r in (first, last)]
        seconds = 1e-6 * times[1] - 1e-6 * times[0]
        if row["prev"] and row["next"]:
            max_time_diff_s *= 2
        if not 0 < seconds <= max_time_diff_s:
            return None
        return ((np.array(last["translation"]) - np.array(first["translation"])) / seconds).tolist()
