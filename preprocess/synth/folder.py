"""Scenes -> a nuScenes folder: tables and sensor files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from common.rigid import rigid_inverse
from preprocess.frames import quaternion_of
from preprocess.nuscenes import CAMERAS, LIDAR, RADARS
from preprocess.synth import cameras, sensors
from preprocess.synth.expansion import Expansion
from preprocess.synth.look import Look
from preprocess.synth.things import ATTRIBUTES, KINDS, OCCLUDERS
from preprocess.synth.traffic import sights
from preprocess.synth.world import KEYFRAME_S, Scene

TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
    *("sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
ANNOTATED_M = 55.0


def token(*parts):
    """32 hex digits that depend on nothing but the parts."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _upright(pose):
    """Quaternion w, x, y, z of a pose that is turned about Z alone."""
    half = np.arctan2(pose[1, 0], pose[0, 0]) / 2
    return [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))]


class Folder:
    """Writes scenes one by one, tables at the end. image_hw: pixels of every camera. occluders: see Scene."""

    def __init__(self, out, version, seed, image_hw=(900, 1600), tables_only=False, occluders=False):
        self.occluders = occluders
        self.out, self.version, self.seed = Path(out), version, seed
        self.image_hw, self.tables_only = tuple(image_hw), tables_only
        self.tables = {name: [] for name in TABLES}
        self.maps = {}  # location -> Expansion
        self.channels = (*CAMERAS, LIDAR, *RADARS)
        for channel in self.channels:
            for part in ("samples", "sweeps"):
                (self.out / part / channel).mkdir(parents=True, exist_ok=True)
        self._constants()

    def _constants(self):
        rows = self.tables
        for channel in self.channels:
            kind = channel.split("_")[0].lower().replace("cam", "camera")
            rows["sensor"].append({"token": token("sensor", channel), "channel": channel, "modality": kind})
        for name in KINDS:
            rows["category"].append({"token": token("category", name), "name": name, "description": ""})
        for level, name in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"), 1):
            rows["visibility"].append({"token": str(level), "level": name, "description": ""})
        for name in ATTRIBUTES:
            rows["attribute"].append({"token": token("attribute", name), "name": name, "description": ""})

    def add_scene(self, number, name, samples, sweeps):
        """Drive one scene of `samples` keyframes, `sweeps` lidar and radar sweeps before each but the first."""
        scene = Scene(self.seed, number, samples * KEYFRAME_S, self.occluders)
        log = self._log(name, scene.conditions)
        self.maps.setdefault(scene.conditions.location, Expansion(token)).add(scene.roads, name)
        if not self.tables_only:
            self.painter = cameras.Painter(scene, Look(scene, self.image_hw), self.image_hw)
            self.ground = sensors.GroundShine(scene.roads)
        self._calibrate(name)
        self.samples = [token("sample", name, k) for k in range(samples)]
        self.last = dict.fromkeys(self.channels)
        self.annotations = {}
        for k in range(samples):
            for j in range(sweeps if k else 0):
                self._moment(scene, number, name, k - 1 + (j + 1) / (sweeps + 1), k, False)
            self._moment(scene, number, name, k, k, True)
        for k, own in enumerate(self.samples):
            self.tables["sample"].append(
                dict(
                    token=own,
                    timestamp=self._time(scene, k),
                    scene_token=token("scene", name),
                    prev=self.samples[k - 1] if k else "",
                    next=self.samples[k + 1] if k + 1 < samples else "",
                )
            )
        self._tracks()
        self.tables["scene"].append(
            dict(
                token=token("scene", name),
                log_token=log,
                nbr_samples=samples,
                first_sample_token=self.samples[0],
                last_sample_token=self.samples[-1],
                name=name,
                description=scene.conditions.describe(sights(scene)),
            )
        )

    def _log(self, name, conditions):
        """Enter a log of its own for a scene; its token."""
        self.tables["log"].append(
            dict(
                token=token("log", name),
                logfile=conditions.logfile,
                vehicle=conditions.vehicle,
                date_captured=f"{conditions.begin:%Y-%m-%d}",
                location=conditions.location,
            )
        )
        return token("log", name)

    def _time(self, scene, k):
        return scene.conditions.timestamp_us + round(k * KEYFRAME_S * 1e6)

    def _calibrate(self, scene):
        for channel in self.channels:
            matrix = self._mounting(channel)
            camera = cameras.intrinsics(channel, self.image_hw).tolist() if channel in CAMERAS else []
            self.tables["calibrated_sensor"].append(
                dict(
                    token=token("calibration", scene, channel),
                    sensor_token=token("sensor", channel),
                    translation=matrix[:3, 3].tolist(),
                    rotation=quaternion_of(matrix[:3, :3]).tolist(),
                    camera_intrinsic=camera,
                )
            )

    def _mounting(self, channel):
        if channel in CAMERAS:
            return cameras.ego_T_camera(channel)
        return sensors.EGO_T_LIDAR if channel == LIDAR else sensors.ego_T_radar(channel)

    def _moment(self, scene, number, name, at, sample, is_key):
        """All sensors at keyframe number `at`, a fraction for sweeps, which have no images."""
        seconds = at * KEYFRAME_S
        rng = np.random.default_rng((self.seed, number, round(at * 1000)))
        ego = scene.ego(seconds)
        poses = scene.poses(seconds)
        when = self._time(scene, at)
        pose = token("pose", name, at)
        self.tables["ego_pose"].append(
            dict(
                token=pose,
                timestamp=when,
                rotation=_upright(ego),
                translation=ego[:3, 3].tolist(),
            )
        )
        row = dict(scene=name, pose=pose, when=when, sample=sample, is_key=is_key)
        counts = np.zeros((len(scene.things), 4), np.int64)  # seen and possible pixels, lidar and radar points
        points, hits = np.zeros((0, 5), "<f4"), np.zeros(0, int)
        if not self.tables_only:
            points, hits = sensors.lidar_sweep(scene.things, poses, ego @ sensors.EGO_T_LIDAR, self.ground, rng)
        counts[:, 2] = np.bincount(hits + 1, minlength=len(scene.things) + 1)[1:]
        self._data(LIDAR, "pcd.bin", points.tobytes(), row)
        seen, velocities = np.flatnonzero(counts[:, 2]), (None, None)
        if len(seen):
            velocities = scene.velocities(seconds), scene.ego_velocity(seconds)
        for channel in RADARS:
            data, numbers = sensors.radar_sweep(scene, poses, seen, ego, channel, *velocities, rng)
            np.add.at(counts[:, 3], np.array(numbers, int), 1)
            self._data(channel, "pcd", data, row)
        if is_key:
            for channel in CAMERAS:
                self._camera(scene, poses, ego, channel, row, counts, rng)
            self._annotate(scene, poses, ego, name, sample, counts)

    def _camera(self, scene, poses, ego, channel, row, counts, rng):
        data = b""
        if not self.tables_only:
            cam_T_global = rigid_inverse(ego @ cameras.ego_T_camera(channel))
            matrix = cameras.intrinsics(channel, self.image_hw)
            faces = cameras.faces_in_camera(scene.sizes, poses, cam_T_global, matrix)
            counts[:, :2] += cameras.count_pixels(faces, self.image_hw, len(scene.things))
            image = self.painter.render(channel, faces, poses, ego, rng)
            data = simplejpeg.encode_jpeg(image, quality=85, colorsubsampling="420")
        self._data(channel, "jpg", data, row)

    def _data(self, channel, ending, data, row):
        part = "samples" if row["is_key"] else "sweeps"
        filename = f"{part}/{channel}/{row['scene']}__{channel}__{row['when']}.{ending}"
        if not self.tables_only:
            (self.out / filename).write_bytes(data)
        own = token("data", row["scene"], channel, row["when"])
        previous = self.last[channel]
        if previous:
            previous["next"] = own
        height, width = self.image_hw if ending == "jpg" else (0, 0)
        self.last[channel] = dict(
            token=own,
            sample_token=self.samples[row["sample"]],
            ego_pose_token=row["pose"],
            calibrated_sensor_token=token("calibration", row["scene"], channel),
            timestamp=row["when"],
            fileformat=ending.split(".")[0],
            is_key_frame=row["is_key"],
            height=height,
            width=width,
            filename=filename,
            prev=previous["token"] if previous else "",
            next="",
        )
        self.tables["sample_data"].append(self.last[channel])

    def _annotate(self, scene, poses, ego, name, sample, counts):
        for n, thing in enumerate(scene.things):
            if thing.category in OCCLUDERS or np.hypot(*(poses[n, :2, 3] - ego[:2, 3])) > ANNOTATED_M:
                continue
            seen, possible, lidar, radar = counts[n].tolist()
            share = seen / possible if possible else 0.0
            attributes = [token("attribute", thing.attribute)] if thing.attribute else []
            row = dict(
                token=token("annotation", name, sample, n),
                sample_token=self.samples[sample],
                instance_token=token("instance", name, n),
                visibility_token=str(1 + sum(share >= limit for limit in (0.4, 0.6, 0.8))),
                attribute_tokens=attributes,
                translation=poses[n, :3, 3].tolist(),
                size=thing.wlh.tolist(),
                rotation=_upright(poses[n]),
                prev="",
                next="",
                num_lidar_pts=lidar,
                num_radar_pts=radar,
            )
            self.annotations.setdefault((row["instance_token"], thing.category), []).append(row)
            self.tables["sample_annotation"].append(row)

    def _tracks(self):
        for (own, category), rows in self.annotations.items():
            for first, second in zip(rows, rows[1:], strict=False):
                first["next"], second["prev"] = second["token"], first["token"]
            self.tables["instance"].append(
                dict(
                    token=own,
                    category_token=token("category", category),
                    nbr_annotations=len(rows),
                    first_annotation_token=rows[0]["token"],
                    last_annotation_token=rows[-1]["token"],
                )
            )

    def close(self):
        """Write the 13 tables and the maps."""
        (self.out / "maps" / "expansion").mkdir(parents=True, exist_ok=True)
        for location, expansion in self.maps.items():
            (self.out / "maps" / "expansion" / f"{location}.json").write_text(expansion.dump())
        for location in sorted({row["location"] for row in self.tables["log"]}):
            filename = f"maps/{token('map', location)}.png"
            Image.new("L", (64, 64)).save(self.out / filename)
            logs = [row["token"] for row in self.tables["log"] if row["location"] == location]
            self.tables["map"].append(
                dict(token=token("map", location), category="semantic_prior", filename=filename, log_tokens=logs)
            )
        folder = self.out / self.version
        folder.mkdir(exist_ok=True)
        for name, rows in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(rows))
