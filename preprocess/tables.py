"""The JSON tables of a nuScenes folder, reduced to what the shards need and joined by position instead of token.

The devkit holds every table as Python dicts (about 9 GB for v1.0-trainval). Here each table is reduced to arrays as soon
as it is read, and only one is in memory as dicts at a time.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.errors import SourceError


@dataclass
class Poses:
    """Ego poses in float64: row of a token, quaternion wxyz (n, 4), translation (n, 3) metres."""

    row: dict
    rotation: np.ndarray
    translation: np.ndarray


@dataclass(slots=True)
class SensorFrame:
    """One row of sample_data, its ego pose resolved to a row of Poses."""

    token: str
    filename: str
    timestamp: int
    pose: int
    calibration: str
    prev: str
    height: int
    width: int


def _field(row, name, table, kind=None):
    try:
        value = row[name]
    except (KeyError, TypeError):
        token = row.get("token", "?") if isinstance(row, dict) else "?"
        raise SourceError(f"{table}: row {token} lacks the field {name!r}") from None
    if kind and (not isinstance(value, kind) or isinstance(value, bool) and kind is not bool):
        raise SourceError(f"{table}: row {row.get('token', '?')} has {name} = {value!r}")
    return value


def read_table(folder, name, optional=False):
    """Rows of one table as dicts. Raises SourceError for a missing or damaged file."""
    path = Path(folder) / f"{name}.json"
    try:
        rows = json.loads(path.read_bytes())
    except FileNotFoundError:
        if optional:
            return []
        raise SourceError(f"{path}: the table is missing; is this nuScenes folder complete?") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: not a readable JSON table ({error})") from None
    if not isinstance(rows, list):
        raise SourceError(f"{path}: not a list of rows")
    return rows


def by_token(rows, table, fields=()):
    """token -> row. Raises SourceError for a token that occurs twice and for a row that lacks one of the fields."""
    out = {}
    for row in rows:
        for name in fields:
            _field(row, name, table)
        token = _field(row, "token", table, str)
        if token in out:
            raise SourceError(f"{table}: the token {token} occurs twice")
        out[token] = row
    return out


def _get(mapping, token, table, wanted_by):
    try:
        return mapping[token]
    except (KeyError, TypeError):
        raise SourceError(f"{wanted_by}: refers to {table} {token!r}, which does not exist") from None


def _finite(values, shape, what):
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise SourceError(f"{what} is not numeric") from None
    if array.shape != shape:
        raise SourceError(f"{what} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise SourceError(f"{what} is not finite")
    return array


def read_poses(folder):
    """The ego_pose table. Raises SourceError for a pose that is not finite or has a zero quaternion."""
    rows = read_table(folder, "ego_pose")
    row_of = {_field(row, "token", "ego_pose", str): i for i, row in enumerate(rows)}
    if len(row_of) != len(rows):
        by_token(rows, "ego_pose")
    try:
        rotation = np.array([row["rotation"] for row in rows], np.float64).reshape(len(rows), 4)
        translation = np.array([row["translation"] for row in rows], np.float64).reshape(len(rows), 3)
    except (KeyError, TypeError, ValueError):
        for row in rows:  # find the culprit, slowly
            _finite(_field(row, "rotation", "ego_pose"), (4,), f"ego_pose {row['token']}: rotation")
            _finite(_field(row, "translation", "ego_pose"), (3,), f"ego_pose {row['token']}: translation")
        raise SourceError("ego_pose: the table cannot be understood") from None
    bad = ~(np.isfinite(rotation).all(1) & np.isfinite(translation).all(1) & (rotation != 0).any(1))
    if bad.any():
        token = rows[int(np.flatnonzero(bad)[0])]["token"]
        raise SourceError(f"ego_pose {token}: its rotation or translation is not a finite pose")
    return Poses(row_of, rotation, translation)


def read_calibration(folder):
    """calibrated_sensor token -> (channel, modality, quaternion (4,), translation (3,), intrinsics (3, 3) or None)."""
    sensors = by_token(read_table(folder, "sensor"), "sensor")
    out = {}
    for token, row in by_token(read_table(folder, "calibrated_sensor"), "calibrated_sensor").items():
        what = f"calibrated_sensor {token}"
        sensor = _get(sensors, _field(row, "sensor_token", what), "sensor", what)
        rotation = _finite(_field(row, "rotation", what), (4,), f"{what}: rotation")
        if not rotation.any():
            raise SourceError(f"{what}: rotation is the zero quaternion")
        translation = _finite(_field(row, "translation", what), (3,), f"{what}: translation")
        modality = _field(sensor, "modality", f"sensor {sensor['token']}", str)
        intrinsics = None
        if modality == "camera":
            intrinsics = _finite(_field(row, "camera_intrinsic", what), (3, 3), f"{what}: camera_intrinsic")
        channel = _field(sensor, "channel", f"sensor {sensor['token']}", str)
        out[token] = (channel, modality, rotation, translation, intrinsics)
    return out


def read_sensor_frames(folder, calibration, poses, samples):
    """sample_data: token -> SensorFrame, and (sample token, channel) -> token of the keyframe."""
    frames, keyframes = {}, {}
    for row in read_table(folder, "sample_data"):
        token = _field(row, "token", "sample_data", str)
        if token in frames:
            raise SourceError(f"sample_data: the token {token} occurs twice")
        what = f"sample_data {token}"
        sensor = _field(row, "calibrated_sensor_token", what)
        channel = _get(calibration, sensor, "calibrated_sensor", what)[0]
        is_key = _field(row, "is_key_frame", what, bool)
        frames[token] = SensorFrame(
            token=token,
            filename=_field(row, "filename", what, str),
            timestamp=_field(row, "timestamp", what, int),
            pose=_get(poses.row, _field(row, "ego_pose_token", what), "ego_pose", what),
            calibration=sensor,
            prev=_field(row, "prev", what, str),
            height=row.get("height") or 0,
            width=row.get("width") or 0,
        )
        if is_key:
            sample = _field(row, "sample_token", what)
            _get(samples, sample, "sample", what)
            if (sample, channel) in keyframes:
                raise SourceError(f"sample {sample}: two keyframes of {channel}")
            keyframes[sample, channel] = token
    return frames, keyframes


def read_annotations(folder, samples, has_annotations=True):
    """sample token -> its annotation rows in file order; each gets its category's name as "category_name"."""
    category = by_token(read_table(folder, "category", optional=not has_annotations), "category")
    instance = by_token(read_table(folder, "instance", optional=not has_annotations), "instance")
    attribute = by_token(read_table(folder, "attribute", optional=not has_annotations), "attribute")
    rows = by_token(
        read_table(folder, "sample_annotation", optional=not has_annotations),
        "sample_annotation",
        ("prev", "next", "visibility_token"),
    )
    by_sample = {}
    for token, row in rows.items():
        what = f"sample_annotation {token}"
        sample = _field(row, "sample_token", what)
        _get(samples, sample, "sample", what)
        track = _get(instance, _field(row, "instance_token", what), "instance", what)
        kind = _get(category, _field(track, "category_token", f"instance {track['token']}"), "category", what)
        row["category_name"] = _field(kind, "name", f"category {kind['token']}", str)
        row["attributes"] = [
            _get(attribute, t, "attribute", what)["name"] for t in _field(row, "attribute_tokens", what, list)
        ]
        _finite(_field(row, "translation", what), (3,), f"{what}: translation")
        _finite(_field(row, "size", what), (3,), f"{what}: size")
        if not _finite(_field(row, "rotation", what), (4,), f"{what}: rotation").any():
            raise SourceError(f"{what}: rotation is the zero quaternion")
        by_sample.setdefault(sample, []).append(row)
    return by_sample, rows
