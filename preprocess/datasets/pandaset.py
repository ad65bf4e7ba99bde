"""PandaSet (https://pandaset.org): sequences of eight seconds at 10 Hz, in the layout of its devkit.

Of its conventions those that differ from nuScenes': points and boxes are in a world frame; the car's frame has x to the right
and y ahead (here x ahead, y to the left); a box's dimensions are width, length, height, its yaw is counted from world y; stamps
are the ends of lidar sweeps; an object that both lidars saw may have two boxes, of which the one for the cameras is taken here.
A camera has a pose of its own at its own time; it is split into the car's pose then and what is left, the calibration.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.record import SCHEMA_VERSION
from common.rig import LIDAR_FIELDS, Camera, Field, Rig
from common.rigid import rigid_inverse
from preprocess.datasets.frame_pickle import read_frame
from preprocess.errors import SourceError
from preprocess.frames import transform
from preprocess.motion import Track, velocities
from preprocess.nuscenes import MIN_DISTANCE_M
from preprocess.plausible import check_intrinsics
from preprocess.pointclouds import lidar_problem, remove_ego_returns
from preprocess.recipe import CameraFile, KeyframeRecipe, PointFile
from preprocess.steps import check_keyframe_step

RATE_HZ = 10.0
CAMERAS = ("front_left_camera", "front_camera", "front_right_camera", "left_camera", "back_camera", "right_camera")
REFERENCE = "front_camera"
LIDARS = ("pandar64", "pandar_gt")  # column `d` of a point: 0, 1
# Where the turning lidar stands in the frame x ahead, y left: from the devkit's calibration and the cameras' poses, README.
LIDAR_IN_EGO_M = (0.8, 0.0, 1.85)
_CAR_T_EGO = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
CATEGORIES = {
    "Car": "vehicle.car",
    "Pickup Truck": "vehicle.truck",
    "Medium-sized Truck": "vehicle.truck",
    "Semi-truck": "vehicle.truck",
    "Towed Object": "vehicle.trailer",
    "Motorcycle": "vehicle.motorcycle",
    "Motorized Scooter": "vehicle.motorcycle",
    "Bicycle": "vehicle.bicycle",
    "Bus": "vehicle.bus",
    "Emergency Vehicle": "vehicle.emergency",
    "Train": "vehicle.train",
    "Trolley": "vehicle.train",
    "Tram / Subway": "vehicle.train",
    "Other Vehicle - Construction Vehicle": "vehicle.construction",
    "Other Vehicle - Uncommon": "vehicle.other",
    "Other Vehicle - Pedicab": "vehicle.other",
    "Personal Mobility Device": "human.pedestrian.personal_mobility",
    "Pedestrian": "human.pedestrian",
    "Pedestrian with Object": "human.pedestrian",
    "Animals - Bird": "animal",
    "Animals - Other": "animal",
    "Cones": "movable_object.trafficcone",
    "Pylons": "movable_object.trafficcone",
    "Road Barriers": "movable_object.barrier",
    "Temporary Construction Barriers": "movable_object.barrier",
    "Rolling Containers": "movable_object.pushable_pullable",
    "Construction Signs": "static_object.sign",
    "Signs": "static_object.sign",
}
_ATTRIBUTES = {
    "attributes.object_motion": {"Parked": "vehicle.parked", "Moving": "vehicle.moving", "Stopped": "vehicle.stopped"},
    "attributes.rider_status": {"With Rider": "cycle.with_rider", "Without Rider": "cycle.without_rider"},
    "attributes.pedestrian_behavior": {"Walking": "pedestrian.moving", "Standing": "pedestrian.standing"},
}
_NUMBERS = ("yaw", "position.x", "position.y", "position.z", "dimensions.x", "dimensions.y", "dimensions.z")
_COLUMNS = ("uuid", "label", "cuboids.sensor_id", "cuboids.sibling_id", *_NUMBERS)


def lidar_points(data, path, files, facts, found):
    """Clouds of the two lidars of a file, x ahead, around the turning one; see preprocess.datasets."""
    columns = read_frame(data, path)
    try:
        values = np.stack([np.asarray(columns[name], np.float64) for name in ("x", "y", "z", "i", "t", "d")])
    except (KeyError, ValueError, TypeError) as error:
        raise SourceError(
            f"{path}: its points lack a column of x, y, z, i, t, d, or have one of another kind ({error})"
        ) from None
    clouds = []
    for file in files:
        own = values[:, values[5] == LIDARS.index(file.channel)]
        xyz = file.sensor_T_file[:3, :3] @ own[:3] + file.sensor_T_file[:3, 3:]
        ring = np.full(own.shape[1], -1.0)
        points = np.concatenate([xyz, own[3:4], ring[None], own[4:5] - 1e-6 * file.timestamp])
        problem = lidar_problem(points)
        if problem is not None:
            raise SourceError(f"{path}: {problem}")
        clouds.append(remove_ego_returns(points))
    return clouds


class Dataset:
    """The sequences of a folder; see preprocess.datasets. Their boxes are read when a scene is planned, one scene at a time."""

    annotated = True
    min_distance_m = MIN_DISTANCE_M

    def __init__(self, dataroot, version, options, on_error="stop", say=lambda text: None):
        self.version, self.options, self.root = version or "pandaset", options, Path(dataroot)
        names = sorted(p.parent.parent.name for p in self.root.glob("*/lidar/poses.json"))
        if not names:
            raise SourceError(f"{self.root}: no sequence of PandaSet is in it, such as 001/lidar/poses.json")
        self.scenes = [{"name": name, "token": name} for name in names]
        self.step = _step(options.hz)
        lidar = options.sensors is None or "lidar" in options.sensors
        if options.sensors and "radar" in options.sensors:
            raise SourceError("PandaSet has no radar; leave radar out of --sensors")
        self.rig = Rig(
            dataset="PandaSet",
            licence="PandaSet data: CC BY 4.0 by its site, https://pandaset.org; shards carry the same licence",
            cameras=tuple(Camera(name, reference=name == REFERENCE) for name in CAMERAS),
            clock=LIDARS[0],
            keyframe_interval_s=self.step / RATE_HZ,
            lidars=LIDARS if lidar else (),
            lidar_fields=(*LIDAR_FIELDS, Field("time", "s")),
            categories=tuple(dict.fromkeys(CATEGORIES.values())),
        )
        self._sequence = None

    def splits(self):
        raise SourceError("PandaSet has no official splits; give --split-file")

    def tokens(self, scene):
        """Of every keyframe: sequence and number of the frame."""
        sequence = self._of(scene)
        return [f"{scene['name']}-{n:02d}" for n in range(0, len(sequence.stamps_us), self.step)]

    def tokens_at_least(self, scene):
        return [scene["name"]]

    def numbers(self, scene, tokens):
        return list(range(0, self.step * len(tokens), self.step))

    def keyframe(self, scene, tokens, keys, i):
        """KeyframeRecipe of frame i · step of a sequence."""
        sequence, n = self._of(scene), i * self.step
        return KeyframeRecipe(
            key=keys[i],
            facts={
                "schema": SCHEMA_VERSION,
                "token": tokens[i],
                "timestamp_us": sequence.stamps_us[n],
                "index": i,
                "prev": keys[i - 1] if i else "",
                "next": keys[i + 1] if i + 1 < len(keys) else "",
                "conditions": {},
                "scene": {"name": scene["name"], "token": scene["name"], "description": "", "nbr_samples": len(keys)},
                "log": sequence.log,
            },
            global_T_ego=sequence.ego.poses[n],
            cameras=[sequence.camera(name, n, tokens[i]) for name in CAMERAS],
            lidar=sequence.sweeps(n, self.options.sweeps) if self.rig.lidars else [],
            radar=[],
            boxes=sequence.boxes(n, tokens[i]),
        )

    def _of(self, scene):
        """The _Sequence of a scene; the last one is kept."""
        if self._sequence is None or self._sequence.name != scene["name"]:
            self._sequence = _Sequence(self.root, scene["name"])
        return self._sequence


def _step(hz):
    """Frames from one keyframe to the next. Raises SourceError for a rate that frames at 10 Hz do not give."""
    step = 1 if hz is None else round(RATE_HZ / hz)
    if step < 1 or hz is not None and abs(step * hz - RATE_HZ) > 0.01 * RATE_HZ:
        raise SourceError(f"--hz {hz:g}: PandaSet's frames are at {RATE_HZ:g} Hz; give 10, 5, 2 or 1")
    return step


class _Sequence:
    """What one sequence's small files say. Numbers are those of frames, whether their sensor files are there or not."""

    def __init__(self, root, name):
        self.root, self.name, self._cuboids = root, name, {}
        stamps = _read_json(root / name / "meta" / "timestamps.json")
        self.stamps_us = [round(1e6 * t) for t in stamps]
        for n, (earlier, later) in enumerate(pairwise(self.stamps_us)):
            check_keyframe_step(earlier, later, f"{root / name}: frame {n + 1}")
        self.ego = Track(self.stamps_us, self._poses("lidar") @ _CAR_T_EGO)
        self.cameras = {camera: self._camera(camera) for camera in CAMERAS}
        self.there = {path.name[:2] for path in (root / name / "lidar").glob("*.pkl.gz")}
        place = _read_json(root / name / "meta" / "gps.json")[0]
        self.log = {
            "token": name,
            "logfile": name,
            "vehicle": "",
            "date_captured": str(np.datetime64(self.stamps_us[0], "us"))[:10],
            "location": f"{place['lat']:.2f},{place['long']:.2f}",
        }

    def _poses(self, folder):
        """(frames, 4, 4) world poses of a sensor."""
        path = self.root / self.name / folder / "poses.json"
        rows = _read_json(path)
        try:
            rotation = np.array([[row["heading"][k] for k in "wxyz"] for row in rows], np.float64)
            translation = np.array([[row["position"][k] for k in "xyz"] for row in rows], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path}: not a list of poses ({error})") from None
        if len(rows) != len(self.stamps_us) or not np.isfinite([*rotation.flat, *translation.flat]).all():
            raise SourceError(f"{path}: {len(rows)} poses, some not finite, for {len(self.stamps_us)} timestamps")
        return transform(rotation, translation)

    def _camera(self, name):
        """(intrinsics, world poses, timestamps in microseconds) of a camera."""
        folder = self.root / self.name / "camera" / name
        given = _read_json(folder / "intrinsics.json")
        try:
            intrinsics = np.array([[given["fx"], 0, given["cx"]], [0, given["fy"], given["cy"]], [0, 0, 1]], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{folder / 'intrinsics.json'}: lacks a number of fx, fy, cx, cy ({error})") from None
        check_intrinsics(intrinsics, folder / "intrinsics.json")
        stamps = [round(1e6 * t) for t in _read_json(folder / "timestamps.json")]
        if len(stamps) != len(self.stamps_us):
            raise SourceError(
                f"{folder / 'timestamps.json'}: {len(stamps)} of them, the sequence has {len(self.stamps_us)}"
            )
        return intrinsics, self._poses(f"camera/{name}"), stamps

    def camera(self, name, n, token):
        """CameraFile of frame n: the pose in the world is the file's, to the last bit that the product leaves."""
        intrinsics, poses, stamps = self.cameras[name]
        global_T_ego = self.ego.at(stamps[n])
        filename = f"{self.name}/camera/{name}/{n:02d}.jpg"
        mounting = rigid_inverse(global_T_ego) @ poses[n]
        return CameraFile(name, f"{token}-{name}", filename, stamps[n], 0, 0, intrinsics, mounting, global_T_ego)

    def sweeps(self, n, count):
        """The files of frame n and of those of the count - 1 frames before it that are there, newest first."""
        numbers = [n] + [k for k in range(n - 1, max(n - count, -1), -1) if f"{k:02d}" in self.there]
        ego_T_lidar = np.eye(4)
        ego_T_lidar[:3, 3] = LIDAR_IN_EGO_M
        out = []
        for k in numbers:
            lag = 1e-6 * self.stamps_us[n] - 1e-6 * self.stamps_us[k]
            world_T_lidar = self.ego.poses[k] @ ego_T_lidar
            name, ego_T_sensor = f"{self.name}/lidar/{k:02d}.pkl.gz", rigid_inverse(self.ego.poses[n]) @ world_T_lidar
            where = name, self.stamps_us[k], lag, ego_T_sensor, rigid_inverse(world_T_lidar)
            out.append([PointFile(lidar, f"{self.name}-{k:02d}-{lidar}", *where) for lidar in LIDARS])
        return out

    def boxes(self, n, token):
        """Boxes of frame n: of an object that has two, the one that fits the cameras."""
        rows = self._of_frame(n)
        near = {k: self._of_frame(k) for k in (n - 1, n + 1) if 0 <= k < len(self.stamps_us)}
        around = [(self.stamps_us[k], near[k]["places"]) for k in sorted(near)]
        places = [rows["places"][uuid] for uuid in rows["uuid"]]
        speeds = velocities(rows["uuid"], places, self.stamps_us[n], around)
        out = []
        for row in rows["kept"]:
            uuid = rows["uuid"][row]
            heading = 0.5 * (rows["yaw"][row] + np.pi / 2)
            out.append(
                {
                    "token": f"{token}-{uuid}",
                    "instance": uuid,
                    "category": rows["category"][row],
                    "attributes": rows["attributes"][row],
                    "visibility": 0,
                    "num_lidar_pts": -1,
                    "num_radar_pts": -1,
                    "translation": rows["places"][uuid].tolist(),
                    "size": rows["size"][row],
                    "rotation": [float(np.cos(heading)), 0.0, 0.0, float(np.sin(heading))],
                    "velocity": speeds[row],
                }
            )
        return out

    def _of_frame(self, n):
        """The cuboids of frame n, read once."""
        if n not in self._cuboids:
            path = self.root / self.name / "annotations" / "cuboids" / f"{n:02d}.pkl.gz"
            try:
                data = path.read_bytes()
            except OSError as error:
                raise SourceError(f"{path}: cuboids cannot be read ({error.strerror})") from None
            self._cuboids[n] = _cuboids(read_frame(data, path), path)
        return self._cuboids[n]


def _cuboids(frame, path):
    """Columns of a frame's cuboids: uuid, category, attributes, yaw, size (w, l, h), kept (rows); places of uuids.

    Raises SourceError.
    """
    missing = [name for name in _COLUMNS if name not in frame]
    if missing:
        raise SourceError(f"{path}: lacks the column {missing[0]}")
    uuid, labels = frame["uuid"].tolist(), frame["label"].tolist()
    unknown = [label for label in labels if label not in CATEGORIES]
    if unknown:
        raise SourceError(f"{path}: the label {unknown[0]!r:.60} is none that PandaSet's devkit names")
    if len(set(uuid)) != len(uuid):
        raise SourceError(f"{path}: two cuboids have the same uuid")
    try:
        numbers = {
            name: np.asarray(frame[name], np.float64)
            for name in _COLUMNS
            if name[:8] in ("yaw", "position", "dimensio")
        }
    except (TypeError, ValueError) as error:
        raise SourceError(f"{path}: a column of numbers holds something else ({error})") from None
    if not all(np.isfinite(values).all() for values in numbers.values()):
        raise SourceError(f"{path}: a cuboid has a number that is not finite")
    centres = np.stack([numbers[f"position.{k}"] for k in "xyz"], 1)
    sizes = np.stack([numbers[f"dimensions.{k}"] for k in "xyz"], 1)
    if (sizes < 0).any():
        raise SourceError(f"{path}: a cuboid has a negative side")
    return {
        "uuid": uuid,
        "category": [CATEGORIES[label] for label in labels],
        "attributes": _attributes(frame, len(uuid)),
        "yaw": numbers["yaw"],
        "size": sizes.tolist(),
        "places": dict(zip(uuid, centres, strict=True)),
        "kept": _kept(uuid, frame["cuboids.sensor_id"].tolist(), frame["cuboids.sibling_id"].tolist()),
    }


def _kept(uuid, sensor, sibling):
    """Rows that are left when of an object's two boxes that of the solid-state lidar goes.

    What it names as its sibling, which the files at times cut short, begins the uuid of a box of the turning one.
    """
    turning = [name for name, number in zip(uuid, sensor, strict=True) if number == 0]
    return [
        row
        for row, number in enumerate(sensor)
        if number != 1 or not (len(sibling[row]) > 1 and any(name.startswith(sibling[row]) for name in turning))
    ]


def _attributes(frame, count):
    """Of each cuboid the names of its attributes: nuScenes' where they mean the same."""
    out = [[] for _ in range(count)]
    for column, names in _ATTRIBUTES.items():
        for row, value in enumerate(frame.get(column, [None] * count)):
            if isinstance(value, str) and value:
                out[row].append(names.get(value, f"{column.partition('.')[2]}.{value}"))
    return out


def _read_json(path):
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(rows, (list, dict)) or not rows:
        raise SourceError(f"{path}: is empty")
    return rows
