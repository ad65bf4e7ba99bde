"""nuScenes' tables, and those of whoever writes as nuScenes does -> scenes, their rig, and recipes of their keyframes."""

from dataclasses import replace

import numpy as np

from common.conditions import conditions_of
from common.keys import scene_key
from common.plain import one_line
from common.progress import Progress
from common.record import SCHEMA_VERSION
from common.rig import NUSCENES, RigError
from common.rigid import rigid_inverse
from preprocess.annotations import Annotations
from preprocess.errors import SourceError
from preprocess.frames import transform
from preprocess.nuscenes import CAMERAS, LIDAR, LIDAR_FIELDS, MIN_DISTANCE_M, RADARS
from preprocess.pointclouds import parse_lidar, parse_radar, remove_ego_returns
from preprocess.recipe import CameraFile, KeyframeRecipe, PointFile
from preprocess.rectify import can_keep
from preprocess.steps import (
    MAX_KEYFRAME_STEP_US,
    UNIT,
    UNUSUAL_STEP_S,
    check_keyframe_step,
    check_moves,
    check_offset,
    check_sweep_step,
    keyframe_steps_us,
)
from preprocess.tables import (
    Faults,
    by_token,
    field_of,
    link_of,
    read_calibration,
    read_poses,
    read_sensor_frames,
    read_table,
    refer,
    timestamp_of,
)


def lidar_points(data, path, files, facts, found):
    """Clouds of the one lidar of a file; see preprocess.datasets."""
    columns = facts.get("lidar_columns", len(LIDAR_FIELDS))
    return [remove_ego_returns(parse_lidar(data, path, columns, found)) for _ in files]


def radar_points(data, path, file, facts):
    """The cloud of a radar's file; see preprocess.datasets."""
    return remove_ego_returns(parse_radar(data, path))


def official_splits(version):
    """{"train": scene names, "val": scene names} of a nuScenes version. Raises SourceError for an unknown version."""
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError:
        raise SourceError(
            "the official splits come with nuscenes-devkit: pip install it, or give --split-file"
        ) from None
    splits = create_splits_scenes()
    names = {
        "v1.0-trainval": {"train": "train", "val": "val"},
        "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
        "v1.0-test": {"test": "test"},
    }
    if version not in names:
        raise SourceError(f"version {version!r} has no official split ({', '.join(names)} have); give --split-file")
    return {own: splits[official] for own, official in names[version].items()}


class Dataset:
    """The tables of `dataroot`/`version`, read once; see preprocess.datasets.

    on_error: with "skip" a row that cannot be used matters to the samples alone that need it. say: called with a line of text
    now and then.
    Raises SourceError for tables that are missing, damaged or, unless errors are skipped, inconsistent.
    """

    min_distance_m = MIN_DISTANCE_M

    def __init__(self, dataroot, version, options, on_error="stop", say=lambda text: None):
        folder = _folder_of(dataroot, version)
        self.version, self.options = version, options
        faults = Faults(on_error == "skip")
        self.scenes = _read_scenes(folder, faults)
        self.logs = by_token(read_table(folder, "log"), "log", faults, _check_log)
        self.samples = by_token(read_table(folder, "sample"), "sample", faults, _check_sample)
        self.calibration = read_calibration(folder, options.channels, faults)
        self._mountings = {}
        self.annotated = version != "v1.0-test"
        # The three large tables, a minute or two for the whole of nuScenes; they go by their size.
        sizes = [_megabytes(folder, name) for name in ("ego_pose", "sample_data", "sample_annotation")]
        with Progress(sum(sizes), "MB", "tables") as bar:
            self.poses = read_poses(folder, faults)
            bar.update(sizes[0])
            rows = self.calibration, self.poses, self.samples
            self.frames, self.keyframes = read_sensor_frames(folder, *rows, faults)
            bar.update(sizes[0] + sizes[1])
            self.annotations = Annotations(folder, self.samples, faults, self.annotated)
            bar.update(sum(sizes))
        self._choose_sensors(folder)
        for note in self._notes(faults):
            say(note)

    def splits(self):
        """The official splits of the version. Raises SourceError where it has none."""
        return official_splits(self.version)

    def tokens(self, scene):
        """Tokens of a scene's samples in time order. Raises SourceError where the chain breaks, leaves the scene or turns."""
        tokens, token, where = [], scene["first_sample_token"], f"scene {scene['name']}"
        while token:
            if token not in self.samples:
                raise SourceError(f"{where}: its chain of samples leads to {token!r}, which is not in the table sample")
            sample = refer(self.samples, token, "sample", where)
            if sample["scene_token"] != scene["token"]:
                raise SourceError(f"{where}: its chain of samples leads to sample {token} of another scene")
            last = tokens[-1] if tokens else ""
            if tokens:
                check_keyframe_step(self.samples[last]["timestamp"], sample["timestamp"], f"sample {token}")
            if sample["prev"] != last and (tokens or sample["prev"] in self.samples):
                raise SourceError(f"sample {token}: its prev is {sample['prev']!r}, the sample before it is {last!r}")
            tokens.append(token)
            token = sample["next"]
        if len(tokens) != scene["nbr_samples"]:
            raise SourceError(
                f"{where}: {len(tokens)} samples follow one another, its nbr_samples {scene['nbr_samples']} says otherwise"
            )
        if not tokens:
            raise SourceError(f"{where}: has no samples; remove it from the scene table")
        return tokens

    def tokens_at_least(self, scene):
        """Those of the scene whose chain is broken: each sample that names it, by time; at least one."""
        own = [row for row in self.samples.values() if isinstance(row, dict) and row["scene_token"] == scene["token"]]
        tokens = [row["token"] for row in sorted(own, key=lambda row: row["timestamp"])]
        return tokens or [scene["first_sample_token"]]

    def numbers(self, scene, tokens):
        """Of each keyframe the number by which --split-file counts: its place in the scene."""
        return list(range(len(tokens)))

    def keyframe(self, scene, tokens, keys, i):
        """KeyframeRecipe of keyframe i of a scene. Raises SourceError."""
        sample = self.samples[tokens[i]]
        reference = self._reference(sample, self.rig.clock)
        global_T_ego = self._pose(reference)
        log = refer(self.logs, scene["log_token"], "log", f"scene {scene['name']}")
        facts = {
            "schema": SCHEMA_VERSION,
            "token": sample["token"],
            "timestamp_us": sample["timestamp"],
            "index": i,
            "prev": keys[i - 1] if i else "",
            "next": keys[i + 1] if i + 1 < len(keys) else "",
            "conditions": conditions_of(scene["description"]),
            "scene": {k: scene[k] for k in ("name", "token", "description", "nbr_samples")},
            "log": {k: log[k] for k in ("token", "logfile", "vehicle", "date_captured", "location")},
        }
        return KeyframeRecipe(
            key=keys[i],
            facts=facts,
            global_T_ego=global_T_ego,
            cameras=self._cameras(sample),
            lidar=[[f] for f in self._points(self._sweeps(reference), reference)] if self.rig.lidars else [],
            radar=self._radar(sample),
            boxes=self.annotations.boxes(sample["token"]),
        )

    def _notes(self, faults):
        """What is worth saying of the tables, a line each."""
        if self.annotations.note:
            yield self.annotations.note
        step = self.rig.keyframe_interval_s
        if step > UNUSUAL_STEP_S:
            yield f"note: the median step between keyframes is {step:g} s; {UNIT}: are these?"
        found = list(dict.fromkeys(faults.found))
        if found:
            what = f"{len(found)} faults in the tables; samples that need such rows are left out"
            yield f"note: {what}; the first: {one_line(found[0])}"

    def _choose_sensors(self, folder):
        """Set cameras, radars, sensors and the rig."""
        mounted = [row for row in self.calibration.values() if not isinstance(row, SourceError)]
        channels = {row if isinstance(row, str) else row[0] for row in mounted}
        self.cameras = [c for c in CAMERAS if c in channels]
        there = ", ".join(sorted(channels))
        if not self.cameras:
            raise SourceError(
                f"{folder}: none of the cameras {', '.join(CAMERAS)} is in its tables, which have {there}"
            )
        wanted = self.options.sensors
        radars = [c for c in RADARS if c in channels]
        if wanted and "radar" in wanted and not radars:
            raise SourceError(f"{folder}: no radar is in its tables; leave radar out of --sensors")
        lidar = wanted is None or "lidar" in wanted
        if lidar and LIDAR not in channels:
            raise SourceError(
                f"{folder}: no {LIDAR} is in its tables, which have {there}; give --channels {LIDAR}=NAME, or --sensors "
                f"camera{',radar' * bool(radars)}"
            )
        self.radars = radars if wanted is None or "radar" in wanted else []
        rig = NUSCENES.holding(self.cameras, NUSCENES.lidars if lidar else (), self.radars)
        # Without any lidar in the tables a camera's keyframe has to say when the sample was.
        clock = LIDAR if LIDAR in channels else rig.camera_names[rig.reference_slot]
        if self.options.keep_distortion:
            rig = replace(rig, cameras=tuple(replace(c, distortion=self._lens(folder, c.name)) for c in rig.cameras))
        names = self.annotations.categories
        try:
            self.rig = replace(rig, clock=clock, keyframe_interval_s=self._keyframe_interval_s(), categories=names)
        except RigError as error:
            raise SourceError(f"{folder}: {error}") from None

    def _keyframe_interval_s(self):
        """The median step between the keyframes of the tables; that of nuScenes where it is about as long, or none is known."""
        steps = keyframe_steps_us(self.samples)
        steps = steps[(0 < steps) & (steps <= MAX_KEYFRAME_STEP_US)]  # others are told where the chain is followed
        usual = NUSCENES.keyframe_interval_s
        median = 1e-6 * float(np.median(steps)) if len(steps) else usual
        return usual if abs(median - usual) < 0.2 * usual else round(median, 6)

    def _lens(self, folder, channel):
        """The distortion that all images of a camera have. Raises SourceError for several, or a tilted one."""
        rows = (row for row in self.calibration.values() if not isinstance(row, (str, SourceError)))
        lenses = {row[4] for row in rows if row[0] == channel}
        if len(lenses) > 1 or not all(map(can_keep, lenses)):
            why = "differs between its calibrations" if len(lenses) > 1 else "tilts the image plane"
            raise SourceError(
                f"{folder}: the distortion of {channel} {why}; leave out --keep-distortion, and it is rectified"
            )
        return lenses.pop() if lenses else None

    def _reference(self, sample, channel):
        token = self.keyframes.get((sample["token"], channel))
        if token is None:
            raise SourceError(f"sample {sample['token']}: has no {channel} keyframe")
        if isinstance(token, SourceError):
            raise SourceError(str(token))
        frame = refer(self.frames, token, "sample_data", f"sample {sample['token']}")
        check_offset(sample["timestamp"], frame.timestamp, f"sample_data {token} of sample {sample['token']}")
        return frame

    def _pose(self, frame):
        return transform(self.poses.rotation[frame.pose], self.poses.translation[frame.pose])

    def _sweeps(self, frame):
        """The frame and those before it, newest first, as many as the options ask for and the scene has."""
        chain = [frame]
        while len(chain) < self.options.sweeps and chain[-1].prev:
            last = chain[-1]
            what = f"sample_data {last.token}: its prev {last.prev}"
            if last.prev not in self.frames:
                raise SourceError(f"{what} does not exist")
            previous = refer(self.frames, last.prev, "sample_data", what)
            if previous.scene != frame.scene or previous.channel != frame.channel:
                raise SourceError(f"{what} is of another {'scene' if previous.scene != frame.scene else 'channel'}")
            check_sweep_step(previous.timestamp, last.timestamp, what)
            chain.append(previous)
        return chain

    def _cameras(self, sample):
        out = []
        for channel in self.cameras:
            frame = self._reference(sample, channel)
            intrinsics, distortion = self.calibration[frame.calibration][3:]
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
                    distortion,
                )
            )
        return out

    def _points(self, files, reference):
        """PointFiles of SensorFrames, in the ego frame of `reference`."""
        rows = [frame.pose for frame in files]
        global_T_ego = transform(self.poses.rotation[rows], self.poses.translation[rows])
        mountings = np.stack([self._mounting(frame.calibration) for frame in files])
        # All files of a keyframe in one product: at trainval scale there are 1.2 million of them.
        ego_T_sensor = rigid_inverse(self._pose(reference)) @ global_T_ego @ mountings
        check_moves(ego_T_sensor[:, :3, 3], files, reference.token)
        out = []
        for frame, matrix in zip(files, ego_T_sensor, strict=True):
            # Simple-BEV subtracts seconds, not microseconds: keep its rounding.
            lag = 1e-6 * reference.timestamp - 1e-6 * frame.timestamp
            out.append(PointFile(frame.channel, frame.token, frame.filename, frame.timestamp, lag, matrix))
        return out

    def _mounting(self, calibration):
        """ego_T_sensor (4, 4) of a calibrated_sensor token."""
        if calibration not in self._mountings:
            _, rotation, translation, *_ = self.calibration[calibration]
            self._mountings[calibration] = transform(rotation, translation)
        return self._mountings[calibration]

    def _radar(self, sample):
        there = [c for c in self.radars if (sample["token"], c) in self.keyframes]
        if not there:
            return []
        clock = self.rig.radar_clock
        reference = self._reference(sample, clock if clock in there else there[0])
        chains = [self._sweeps(self._reference(sample, c)) for c in there]
        moved = iter(self._points([frame for chain in chains for frame in chain], reference))
        chains = [[next(moved) for _ in chain] for chain in chains]
        longest = max(map(len, chains))
        return [[chain[k] for chain in chains if k < len(chain)] for k in range(longest)]


def _folder_of(dataroot, version):
    """The folder of the tables. Raises SourceError where it is not there."""
    folder = dataroot / version if version else dataroot / "-"  # of no version, which is asked for below
    if not dataroot.is_dir():
        raise SourceError(f"{dataroot}: no such folder; point DATAROOT (--dataroot) at nuScenes")
    if not folder.is_dir():
        others = ", ".join(sorted(p.name for p in dataroot.glob("v*") if p.is_dir())) or "none"
        if not version:
            raise SourceError(f"{dataroot}: give --version, the folder of its tables; found: {others}")
        raise SourceError(f"{folder}: no such folder; versions found in {dataroot}: {others}")
    return folder


def _megabytes(folder, name):
    """Of one table, rounded up; 0 where it is not there, which reading it tells."""
    path = folder / f"{name}.json"
    return -(-path.stat().st_size // 1_000_000) if path.is_file() else 0


def _read_scenes(folder, faults):
    """Rows of the scene table. Raises SourceError for two scenes of one name, which nothing could tell apart later."""
    scenes = by_token(read_table(folder, "scene"), "scene", faults, _check_scene)
    scenes = {token: row for token, row in scenes.items() if not isinstance(row, SourceError)}
    named = {}
    for token, row in scenes.items():
        other = named.setdefault(scene_key(row["name"]), token)
        if other != token:
            raise SourceError(f"scene {token}: has the name {row['name']!r} of scene {other}; rename one of them")
    return list(scenes.values())


def _check_scene(row):
    what = f"scene {row['token']}"
    _check_texts(row, what, ("name", "description"))
    for name, kind in (("log_token", None), ("nbr_samples", int), ("first_sample_token", str)):
        field_of(row, name, what, kind)


def _check_log(row):
    _check_texts(row, f"log {row['token']}", ("logfile", "vehicle", "date_captured", "location"))


def _check_sample(row):
    what = f"sample {row['token']}"
    timestamp_of(row, what)
    field_of(row, "scene_token", what, str)
    for name in ("prev", "next"):
        row[name] = link_of(row, name, what)


def _check_texts(row, what, fields):
    """Raise SourceError unless these fields of a row are texts; all but a name may be missing their text."""
    for name in fields:
        if field_of(row, name, what) is None and name != "name":
            row[name] = ""
        field_of(row, name, what, str)
