"""A scene of one's own data that is being written: keyframes as they are given -> records, checked as nuScenes' are."""

import numpy as np

from common.keys import keyframe_key
from common.record import SAMPLE, SCHEMA_VERSION, decode_json, encode_json
from common.rigid import rigid_inverse
from preprocess.errors import SourceError
from preprocess.frames import quaternion_of, rotation_matrix
from preprocess.images import encode
from preprocess.keyframe import build_record
from preprocess.plausible import check_count, check_intrinsics, check_rigid
from preprocess.recipe import CameraFile, KeyframeRecipe, PointFile
from preprocess.steps import check_keyframe_step, check_offset, check_sweep_step

_DEFAULTS = {"intensity": 0.0, "ring": -1.0}  # of lidar columns that a source may not have


class Scene:
    """A scene that is being written. Its keyframes' records are held until it ends, since each names the next one's key."""

    def __init__(self, writer, scene, log):
        self._writer, self._scene, self._log = writer, scene, log
        self._records, self._last = [], None

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        if kind is None:
            self._end()
        return False

    def add(self, timestamp_us, global_T_ego, images, lidar=(), radar=(), boxes=(), conditions=None, token=None):
        """Add a keyframe, later than the one before.

        Args:
            timestamp_us: microseconds. global_T_ego: (4, 4) metres, the car's pose then.
            images: camera's name -> CameraImage; cameras may be missing. lidar, radar: for each sweep, newest first, lidar's
                or radar's name -> PointCloud. boxes: Boxes. conditions: of those that the rig names. token: of the sample.
        Raises:
            SourceError: what cannot be, naming keyframe and sensor; the scene is then left out with the shard.
        """
        index = len(self._records)
        key = keyframe_key(self._scene["name"], index)
        try:
            recipe, source = self._recipe(key, index, int(timestamp_us), _pose(global_T_ego, "global_T_ego"), images)
            if self._last is not None:
                check_keyframe_step(self._last, recipe.facts["timestamp_us"], key)
            recipe.facts |= {"conditions": dict(conditions or {}), "token": token or key}
            recipe.lidar = self._sweeps(recipe, source, lidar, self._writer.rig.lidars, "lidar")
            recipe.radar = self._sweeps(recipe, source, radar, self._writer.rig.radar_names, "radar")
            recipe.boxes = [self._box(box, n, recipe) for n, box in enumerate(boxes)]
            quality = self._writer.options["jpeg_quality"]
            members, _ = build_record(source, recipe, self._writer.facts, jpeg_quality=quality)
        except (TypeError, ValueError, AttributeError) as error:
            text = str(error)
            raise SourceError(text if key in text else f"{key}: {text}") from None
        self._last = recipe.facts["timestamp_us"]
        self._records.append((key, recipe.facts["token"], members))

    def _recipe(self, key, index, stamp, global_T_ego, images):
        """(KeyframeRecipe without points and boxes, {name: data of its images})."""
        rig, source, cameras = self._writer.rig, {}, []
        _only(images, rig.camera_names, "camera")
        distortions = {camera.name: camera.distortion for camera in self._writer.lenses}
        for name in (name for name in rig.camera_names if name in images):
            given, what = images[name], f"image of {name}"
            if self._writer.keeps_distortion and given.distortion not in (None, distortions[name]):
                raise SourceError(f"{what}: has another distortion than its rig; leave out keep_distortion")
            when = stamp if given.timestamp_us is None else int(given.timestamp_us)
            check_offset(stamp, when, what)
            where = global_T_ego if given.global_T_ego is None else _pose(given.global_T_ego, what)
            intrinsics = _array(given.intrinsics, (3, 3), f"{what}: intrinsics")
            check_intrinsics(intrinsics, what)
            source[what] = _jpeg(given.image, what, self._writer.options["jpeg_quality"])
            mounting = _pose(given.ego_T_cam, f"{what}: ego_T_cam")
            cameras.append(
                CameraFile(
                    name, "", what, when, 0, 0, intrinsics, mounting, where, given.distortion or distortions[name]
                )
            )
        facts = {
            "schema": SCHEMA_VERSION,
            "timestamp_us": stamp,
            "index": index,
            "prev": keyframe_key(self._scene["name"], index - 1) if index else "",
            "next": "",
            "scene": {**self._scene, "nbr_samples": 0},
            "log": self._log,
        }
        return KeyframeRecipe(key, facts, global_T_ego, cameras, [], [], []), source

    def _sweeps(self, recipe, source, sweeps, names, kind):
        if len(sweeps) > self._writer.options["sweeps"]:
            raise SourceError(
                f"{len(sweeps)} {kind} sweeps, the writer was told of {self._writer.options['sweeps']} at most"
            )
        fields = self._writer.rig.lidar_fields if kind == "lidar" else self._writer.rig.radar_fields
        out, newer = [], {}
        for number, clouds in enumerate(sweeps):
            _only(clouds, names, kind)
            files = []
            for name in (name for name in names if name in clouds):
                cloud, what = clouds[name], f"{kind} sweep {number} of {name}"
                file = _point_file(cloud, name, what, number, recipe)
                if name in newer:
                    check_sweep_step(file.timestamp, newer[name], what)
                newer[name] = file.timestamp
                source[what] = _points(cloud.columns, fields, what)
                files.append(file)
            if not files:
                raise SourceError(f"{kind} sweep {number}: has no points of any {kind}")
            out.append(files)
        return out

    def _box(self, box, number, recipe):
        what, table, rig = f"box {number}", self._writer.table, self._writer.rig
        name = table.get(box.category) if table else box.category
        if name not in rig.categories:
            known = table or rig.categories
            raise SourceError(f"{what}: category {box.category!r:.60} is none of {', '.join(map(str, known))[:200]}")
        if (box.yaw is None) == (box.rotation is None) or box.frame not in ("global", "ego"):
            raise SourceError(f"{what}: it has either yaw or rotation, in the frame global or ego")
        quaternion = (np.cos(box.yaw / 2), 0, 0, np.sin(box.yaw / 2)) if box.rotation is None else box.rotation
        quaternion = _array(quaternion, (4,), f"{what}: rotation")
        centre, size = _array(box.centre, (3,), f"{what}: centre"), _array(box.size, (3,), f"{what}: size")
        velocity = None if box.velocity is None else _array(box.velocity, (3,), f"{what}: velocity")
        if not quaternion.any() or (size < 0).any() or box.visibility not in range(5):
            raise SourceError(f"{what}: a zero quaternion, a negative side, or visibility {box.visibility!r}")
        for count in ("num_lidar_pts", "num_radar_pts"):
            check_count(getattr(box, count), what, count)
        if box.frame == "ego":
            turn = recipe.global_T_ego[:3, :3]
            quaternion = quaternion_of(turn @ rotation_matrix(quaternion))
            centre = turn @ centre + recipe.global_T_ego[:3, 3]
            velocity = None if velocity is None else turn @ velocity
        return {
            "token": f"{recipe.key}-{number}",
            "instance": box.instance or f"{recipe.key}-{number}",
            "category": name,
            "attributes": list(box.attributes),
            "visibility": box.visibility,
            "num_lidar_pts": box.num_lidar_pts,
            "num_radar_pts": box.num_radar_pts,
            "translation": centre.tolist(),
            "size": size.tolist(),
            "rotation": quaternion.tolist(),
            "velocity": None if velocity is None else velocity.tolist(),
        }

    def _end(self):
        if not self._records:
            raise SourceError(f"scene {self._scene['name']}: no keyframe was added")
        count, whole = len(self._records), []
        for index, (key, token, members) in enumerate(self._records):
            sample = decode_json(members[SAMPLE])
            sample["scene"]["nbr_samples"] = count
            sample["next"] = keyframe_key(self._scene["name"], index + 1) if index + 1 < count else ""
            whole.append((key, token, {**members, SAMPLE: encode_json(sample)}))
        self._writer.add_scene(self._scene["name"], whole)
        self._records = []


def _only(given, known, kind):
    for name in given:
        if name not in known:
            raise SourceError(f"the rig has no {kind} {name!r:.40}; it has {', '.join(known) or 'none'}")


def _array(value, shape, what):
    array = np.asarray(value, np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise SourceError(f"{what}: is no array of shape {shape} of finite numbers")
    return array


def _pose(value, what):
    pose = _array(value, (4, 4), what)
    check_rigid(pose, what)
    return pose


def _jpeg(image, what, quality):
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise SourceError(f"{what}: is neither the bytes of a JPEG nor an (H, W, 3) uint8 array")
    return encode(pixels, quality)


def _point_file(cloud, name, what, number, recipe):
    """PointFile of a cloud: moved by both poses where it has one of its own."""
    stamp = recipe.facts["timestamp_us"]
    if number and (cloud.timestamp_us is None or cloud.global_T_ego is None):
        raise SourceError(f"{what}: a sweep before the keyframe needs its timestamp_us and the car's global_T_ego")
    when = stamp if cloud.timestamp_us is None else int(cloud.timestamp_us)
    if not number:
        check_offset(stamp, when, what)
    ego_T_sensor = _pose(cloud.ego_T_sensor, f"{what}: ego_T_sensor")
    if cloud.global_T_ego is not None:
        moved = _pose(cloud.global_T_ego, f"{what}: global_T_ego")
        ego_T_sensor = rigid_inverse(recipe.global_T_ego) @ moved @ ego_T_sensor
    return PointFile(name, "", what, when, 1e-6 * stamp - 1e-6 * when, ego_T_sensor)


def _points(columns, fields, what):
    """(fields, n) float64 of named columns."""
    names = [field.name for field in fields]
    unknown = [name for name in columns if name not in names]
    missing = [name for name in names if name not in columns and name not in _DEFAULTS]
    if unknown or missing:
        odd = f"{'lacks' if missing else 'has'} the column {(missing or unknown)[0]!r:.40}"
        raise SourceError(f"{what}: {odd}; the rig's fields are {', '.join(names)}")
    count = len(np.atleast_1d(columns["x"]))
    rows = [np.asarray(columns.get(name, np.full(count, _DEFAULTS.get(name))), np.float64) for name in names]
    if any(row.shape != (count,) for row in rows):
        raise SourceError(f"{what}: its columns differ in length")
    return np.stack(rows)
