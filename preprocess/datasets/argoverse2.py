"""Argoverse 2, the sensor data set: logs at 10 Hz, in its own layout. https://argoverse.github.io/user-guide/datasets/sensor.html

Of its conventions those that differ from nuScenes': times are nanoseconds, and a sweep's is that of its start; boxes and points
are in the car's frame of their own stamp; both lidars are in one file; ring_front_center stands upright. Published images are
undistorted already, so the coefficients beside the intrinsics are not used. Tables are Arrow files, read by pyarrow.
"""

import bisect
from pathlib import Path

import numpy as np

from common.record import SCHEMA_VERSION
from common.rig import LIDAR_FIELDS, Camera, Field, Rig
from common.rigid import rigid_inverse
from preprocess.errors import SourceError
from preprocess.frames import quaternion_of, transform
from preprocess.motion import Track, velocities
from preprocess.plausible import check_intrinsics
from preprocess.pointclouds import lidar_problem
from preprocess.recipe import CameraFile, KeyframeRecipe, PointFile

RATE_HZ = 10.0
CAMERAS = (
    *("ring_front_left", "ring_front_center", "ring_front_right"),
    *("ring_side_left", "ring_side_right", "ring_rear_left", "ring_rear_right"),
)
REFERENCE = "ring_front_center"
LIDAR = "lidars"  # both of them: which of the laser numbers are whose is not said
FARTHEST_IMAGE_S = 0.06  # from a keyframe: cameras take twenty images per second
CATEGORIES = {
    "REGULAR_VEHICLE": "vehicle.car",
    "LARGE_VEHICLE": "vehicle.truck",
    "BOX_TRUCK": "vehicle.truck",
    "TRUCK": "vehicle.truck",
    "TRUCK_CAB": "vehicle.truck",
    "VEHICULAR_TRAILER": "vehicle.trailer",
    "BUS": "vehicle.bus",
    "SCHOOL_BUS": "vehicle.bus",
    "ARTICULATED_BUS": "vehicle.bus",
    "MOTORCYCLE": "vehicle.motorcycle",
    "BICYCLE": "vehicle.bicycle",
    "RAILED_VEHICLE": "vehicle.train",
    "PEDESTRIAN": "human.pedestrian",
    "OFFICIAL_SIGNALER": "human.pedestrian",
    "BICYCLIST": "human.rider",
    "MOTORCYCLIST": "human.rider",
    "WHEELED_RIDER": "human.rider",
    "WHEELED_DEVICE": "human.pedestrian.personal_mobility",
    "STROLLER": "human.pedestrian.stroller",
    "WHEELCHAIR": "human.pedestrian.wheelchair",
    "ANIMAL": "animal",
    "DOG": "animal",
    "CONSTRUCTION_CONE": "movable_object.trafficcone",
    "CONSTRUCTION_BARREL": "movable_object.barrier",
    "MESSAGE_BOARD_TRAILER": "movable_object.trailer",
    "TRAFFIC_LIGHT_TRAILER": "movable_object.trailer",
    "MOBILE_PEDESTRIAN_CROSSING_SIGN": "static_object.sign",
    "SIGN": "static_object.sign",
    "STOP_SIGN": "static_object.sign",
    "BOLLARD": "static_object.bollard",
}
_QUATERNION, _PLACE, _SIZE = ("qw", "qx", "qy", "qz"), ("tx_m", "ty_m", "tz_m"), ("width_m", "length_m", "height_m")


def lidar_points(data, path, files, facts, found):
    """The cloud of both lidars, in the car's frame at the sweep's stamp; see preprocess.datasets."""
    columns = read_feather(data, path, ("x", "y", "z", "intensity", "laser_number", "offset_ns"))
    # float16, in which nothing is computed.
    rows = [columns[name].astype(np.float64) for name in ("x", "y", "z", "intensity", "laser_number")]
    points = np.stack([*rows, 1e-9 * columns["offset_ns"]])
    problem = lidar_problem(points)
    if problem is not None:
        raise SourceError(f"{path}: {problem}")
    return [points for _ in files]


def read_feather(source, path, columns):
    """{name: (n,) array} of the columns of an Arrow file, of its bytes or its path. Raises SourceError."""
    try:
        import pyarrow
        import pyarrow.feather
    except ImportError:
        raise SourceError("Argoverse 2 needs pyarrow: pip install 'bevshards[argoverse2]'") from None
    try:
        table = pyarrow.feather.read_table(source if isinstance(source, Path) else pyarrow.BufferReader(source))
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise SourceError(f"{path}: lacks the column {missing[0]}")
        return {name: table[name].to_numpy() for name in columns}
    except (OSError, pyarrow.ArrowException) as error:
        raise SourceError(f"{path}: not an Arrow file that can be read ({error})") from None


class Dataset:
    """The logs of a folder with train, val or test in it; see preprocess.datasets. One log is looked at at a time."""

    annotated = True
    min_distance_m = 0.0  # the car's own returns are not in the files

    def __init__(self, dataroot, version, options, on_error="stop", say=lambda text: None):
        self.version, self.options, self.root = version or "argoverse2", options, Path(dataroot)
        self.folders = {}
        for split in ("train", "val", "test"):
            self.folders[split] = sorted(p.parent for p in (self.root / split).glob("*/city_SE3_egovehicle.feather"))
        logs = [folder for split in self.folders.values() for folder in split]
        if not logs:
            raise SourceError(
                f"{self.root}: no log of Argoverse 2 is in it, such as val/LOG/city_SE3_egovehicle.feather"
            )
        self.scenes = [{"name": folder.name, "token": folder.name, "folder": folder} for folder in logs]
        self.step = 1 if options.hz is None else round(RATE_HZ / options.hz)
        if self.step < 1 or options.hz is not None and abs(self.step * options.hz - RATE_HZ) > 0.01 * RATE_HZ:
            raise SourceError(f"--hz {options.hz:g}: Argoverse 2 is annotated at {RATE_HZ:g} Hz; give 10, 5, 2 or 1")
        if options.sensors and "radar" in options.sensors:
            raise SourceError("Argoverse 2 has no radar; leave radar out of --sensors")
        lidar = options.sensors is None or "lidar" in options.sensors
        self.rig = Rig(
            dataset="Argoverse 2",
            licence="Argoverse 2 data: CC BY-NC-SA 4.0, https://www.argoverse.org/about.html; shards carry the same licence",
            cameras=tuple(Camera(name, reference=name == REFERENCE) for name in CAMERAS),
            clock=LIDAR,
            keyframe_interval_s=self.step / RATE_HZ,
            lidars=(LIDAR,) if lidar else (),
            lidar_fields=(*LIDAR_FIELDS, Field("time", "s")),
            categories=tuple(dict.fromkeys(CATEGORIES.values())),
        )
        self._log = None

    def splits(self):
        """The folders of logs that are annotated."""
        return {
            split: [folder.name for folder in self.folders[split]] for split in ("train", "val") if self.folders[split]
        }

    def tokens(self, scene):
        """Of every keyframe: log and stamp in nanoseconds."""
        return [f"{scene['name']}-{stamp}" for stamp in self._of(scene).stamps[:: self.step]]

    def tokens_at_least(self, scene):
        return [scene["name"]]

    def numbers(self, scene, tokens):
        return list(range(0, self.step * len(tokens), self.step))

    def keyframe(self, scene, tokens, keys, i):
        """KeyframeRecipe of the annotated stamp i · step of a log."""
        log, n = self._of(scene), i * self.step
        stamp = log.stamps[n]
        return KeyframeRecipe(
            key=keys[i],
            facts={
                "schema": SCHEMA_VERSION,
                "token": tokens[i],
                "timestamp_us": _us(stamp),
                "index": i,
                "prev": keys[i - 1] if i else "",
                "next": keys[i + 1] if i + 1 < len(keys) else "",
                "conditions": {},
                "scene": {"name": scene["name"], "token": scene["name"], "description": "", "nbr_samples": len(keys)},
                "log": log.facts,
            },
            global_T_ego=log.pose(stamp),
            cameras=[log.camera(name, stamp, tokens[i]) for name in CAMERAS],
            lidar=log.sweeps(stamp, self.options.sweeps) if self.rig.lidars else [],
            radar=[],
            boxes=log.boxes(n, tokens[i]),
        )

    def _of(self, scene):
        """The _Log of a scene; the last one is kept."""
        if self._log is None or self._log.folder != scene["folder"]:
            self._log = _Log(scene["folder"], self.root)
        return self._log


def _us(nanoseconds):
    return (int(nanoseconds) + 500) // 1000


class _Log:
    """What one log's tables say. stamps: of its annotations, nanoseconds."""

    def __init__(self, folder, root):
        self.folder, self.root = folder, root
        path = folder / "city_SE3_egovehicle.feather"
        rows = read_feather(path, path, ("timestamp_ns", *_QUATERNION, *_PLACE))
        order = np.argsort(rows["timestamp_ns"], kind="stable")
        self.ego = Track(rows["timestamp_ns"][order].tolist(), _transforms(rows, path)[order])
        self.row_of = {stamp: n for n, stamp in enumerate(self.ego.stamps_us)}
        path = folder / "annotations.feather"
        columns = ("timestamp_ns", "track_uuid", "category", "num_interior_pts")
        self.rows = read_feather(path, path, (*columns, *_SIZE, *_QUATERNION, *_PLACE))
        unknown = sorted(set(self.rows["category"].tolist()) - set(CATEGORIES))
        if unknown:
            raise SourceError(f"{path}: the category {unknown[0]!r:.60} is none of Argoverse 2's")
        self.ego_T_box = _transforms(self.rows, path)
        self.sizes = np.stack([self.rows[name] for name in _SIZE], 1)
        if not np.isfinite(self.sizes).all() or (self.sizes < 0).any():
            raise SourceError(f"{path}: a box has a side that is negative or not finite")
        self.stamps, first = np.unique(self.rows["timestamp_ns"], return_inverse=True)
        self.places_of = [np.flatnonzero(first == n) for n in range(len(self.stamps))]
        self.stamps = self.stamps.tolist()
        self.images = {name: _stamps(folder / "sensors" / "cameras" / name, ".jpg") for name in CAMERAS}
        self.clouds = _stamps(folder / "sensors" / "lidar", ".feather")
        self._calibration = None
        city = next((p.name.split("____")[-1][:3] for p in (folder / "map").glob("log_map_archive_*.json")), "")
        name = folder.name
        self.facts = {"token": name, "logfile": name, "vehicle": "", "date_captured": "", "location": city}

    def pose(self, stamp):
        """(4, 4) city_T_ego at a time: a stated one, or between the nearest two (5 ms apart)."""
        row = self.row_of.get(stamp)
        return self.ego.at(stamp) if row is None else self.ego.poses[row]

    def calibration(self, name):
        """(intrinsics (3, 3), (height, width), ego_T_cam) of a camera."""
        if self._calibration is None:
            self._calibration = _calibration(self.folder / "calibration")
        return self._calibration[name]

    def camera(self, name, stamp, token):
        """CameraFile of the image that was taken next to a stamp."""
        nearest = min(self.images[name], key=lambda other: abs(other - stamp), default=None)
        if nearest is None or abs(nearest - stamp) > 1e9 * FARTHEST_IMAGE_S:
            raise SourceError(f"{self.folder / 'sensors' / 'cameras' / name}: there is no image of {token}")
        intrinsics, (height, width), ego_T_cam = self.calibration(name)
        filename = self._name("cameras", name, f"{nearest}.jpg")
        where = ego_T_cam, self.pose(nearest)
        return CameraFile(name, f"{token}-{name}", filename, _us(nearest), height, width, intrinsics, *where)

    def sweeps(self, stamp, count):
        """The sweep of a stamp and those of the count - 1 before it that are there, newest first."""
        end = bisect.bisect_left(self.clouds, stamp)
        oldest = stamp - int(1.05e9 * (count - 1) / RATE_HZ)
        before = [other for other in reversed(self.clouds[:end]) if other >= oldest][: count - 1]
        ego_T_city, out = rigid_inverse(self.pose(stamp)), []
        for other in (stamp, *before):
            lag = 1e-9 * (stamp - other)
            name = self._name("lidar", f"{other}.feather")
            out.append(
                [PointFile(LIDAR, f"{self.folder.name}-{other}", name, _us(other), lag, ego_T_city @ self.pose(other))]
            )
        return out

    def _name(self, *parts):
        return str((self.folder / "sensors").joinpath(*parts).relative_to(self.root))

    def boxes(self, n, token):
        """Boxes of annotated stamp n."""
        rows, names = self.places_of[n], self.rows["track_uuid"]
        city_T_box = self.pose(self.stamps[n]) @ self.ego_T_box[rows]
        around = [(_us(self.stamps[k]), self._centres(k)) for k in (n - 1, n + 1) if 0 <= k < len(self.stamps)]
        tracks = names[rows].tolist()
        speeds = velocities(tracks, city_T_box[:, :3, 3], _us(self.stamps[n]), around)
        return [
            {
                "token": f"{token}-{track}",
                "instance": track,
                "category": CATEGORIES[self.rows["category"][row]],
                "attributes": [],
                "visibility": 0,
                "num_lidar_pts": int(self.rows["num_interior_pts"][row]),
                "num_radar_pts": -1,
                "translation": pose[:3, 3].tolist(),
                "size": self.sizes[row].tolist(),
                "rotation": quaternion_of(pose[:3, :3]).tolist(),
                "velocity": speed,
            }
            for row, track, pose, speed in zip(rows.tolist(), tracks, city_T_box, speeds, strict=True)
        ]

    def _centres(self, n):
        """track -> centre in the city frame, of annotated stamp n."""
        rows = self.places_of[n]
        centres = (self.pose(self.stamps[n]) @ self.ego_T_box[rows])[:, :3, 3]
        return dict(zip(self.rows["track_uuid"][rows].tolist(), centres, strict=True))


def _transforms(rows, path):
    """(n, 4, 4) of columns qw … and tx_m …. Raises SourceError for numbers that are none."""
    rotation, place = (np.stack([rows[name] for name in names], 1) for names in (_QUATERNION, _PLACE))
    if not np.isfinite(rotation).all() or not np.isfinite(place).all() or not rotation.any(1).all():
        raise SourceError(f"{path}: a pose in it is not finite, or a quaternion of zeros")
    return transform(rotation, place)


def _stamps(folder, ending):
    """Sorted nanoseconds that the names of a folder's files are."""
    return sorted(int(p.stem) for p in folder.glob(f"*{ending}") if p.stem.isdigit())


def _calibration(folder):
    """camera -> (intrinsics (3, 3), (height, width), ego_T_cam (4, 4))."""
    paths = folder / "egovehicle_SE3_sensor.feather", folder / "intrinsics.feather"
    if not all(path.is_file() for path in paths):
        raise SourceError(f"{folder}: the log has no calibration; leave it out by a --split-file, or --on-error skip")
    mounted = read_feather(paths[0], paths[0], ("sensor_name", *_QUATERNION, *_PLACE))
    optics = read_feather(
        paths[1], paths[1], ("sensor_name", "fx_px", "fy_px", "cx_px", "cy_px", "height_px", "width_px")
    )
    poses = dict(zip(mounted["sensor_name"].tolist(), _transforms(mounted, paths[0]), strict=True))
    out = {}
    for n, name in enumerate(optics["sensor_name"].tolist()):
        fx, fy, cx, cy, height, width = (float(optics[column][n]) for column in list(optics)[1:])
        intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        if name in CAMERAS:
            check_intrinsics(intrinsics, f"{paths[1]}: {name}")
            out[name] = intrinsics, (int(height), int(width)), poses.get(name)
    missing = next((name for name in CAMERAS if name not in out or out[name][2] is None), None)
    if missing:
        raise SourceError(f"{folder}: lacks {missing}")
    return out
