"""The JSON tables of a nuScenes folder, reduced to what the shards need and joined by position instead of token.

The devkit holds every table as Python dicts (about 9 GB for v1.0-trainval). Here each table is reduced to arrays as soon
as it is read, and only one is in memory as dicts at a time.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.errors import SourceError
from preprocess.options import channel_names
from preprocess.plausible import check_intrinsics


@dataclass
class Poses:
    """Ego poses in float64: row of a token, quaternion wxyz (n, 4), translation (n, 3) metres."""

    row: dict
    rotation: np.ndarray
    translation: np.ndarray


@dataclass(slots=True)
class SensorFrame:
    """One row of sample_data: channel by nuScenes' name, scene by its token, ego pose by its row of Poses."""

    token: str
    channel: str
    scene: str
    filename: str
    timestamp: int
    pose: int
    calibration: str
    prev: str
    height: int
    width: int


_KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}
MAX_TIMESTAMP_US = 1 << 62


def field_of(row, name, table, kind=None):
    """row[name]. Raises SourceError, naming table and row, where it is missing or not of the type `kind`."""
    try:
        value = row[name]
    except (KeyError, TypeError):
        token = row.get("token", "?") if isinstance(row, dict) else "?"
        raise SourceError(f"{table}: row {token} lacks the field {name!r}") from None
    if kind and (not isinstance(value, kind) or isinstance(value, bool) and kind is not bool):
        raise SourceError(f"{table}: row {row.get('token', '?')} has {name} = {value!r}, not {_KINDS[kind]}")
    return value


def read_table(folder, name, optional=False):
    """Rows of one table as dicts. Raises SourceError for a missing or damaged file."""
    path = Path(folder) / f"{name}.json"
    try:
        data = path.read_bytes()
        rows = json.loads(data)
        if b"\\ud" in data or b"\\uD" in data:  # half a surrogate pair is text that nothing can write again
            json.dumps(rows, ensure_ascii=False).encode()
    except FileNotFoundError:
        if optional:
            return []
        raise SourceError(f"{path}: the table is missing; is this nuScenes folder complete?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not a readable JSON table ({error})") from None
    if not isinstance(rows, list):
        raise SourceError(f"{path}: not a list of rows")
    return rows


def by_token(rows, table, fields=()):
    """token -> row. Raises SourceError for a token that occurs twice and for a row that lacks one of the fields."""
    out = {}
    for row in rows:
        for name in fields:
            field_of(row, name, table)
        token = field_of(row, "token", table, str)
        if token in out:
            raise SourceError(f"{table}: the token {token} occurs twice")
        out[token] = row
    return out


def timestamp_of(row, table):
    """The timestamp of a row in microseconds. Raises SourceError for one that is text, fractional, or out of range."""
    value = field_of(row, "timestamp", table, int)
    if not 0 <= value < MAX_TIMESTAMP_US:
        raise SourceError(f"{table}: row {row.get('token', '?')} has timestamp = {value!r}")
    return value


def refer(mapping, token, table, wanted_by):
    """mapping[token]. Raises SourceError, naming who refers to it, where it does not exist."""
    try:
        return mapping[token]
    except (KeyError, TypeError):
        raise SourceError(f"{wanted_by}: refers to {table} {token!r}, which does not exist") from None


def finite(values, shape, what):
    """Float64 array of that shape. Raises SourceError for anything else, texts and missing numbers included."""
    try:
        array = np.array(values)
        if array.dtype.kind not in "iuf":
            raise ValueError
        array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError):
        raise SourceError(f"{what} is not numeric") from None
    if array.shape != shape:
        raise SourceError(f"{what} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise SourceError(f"{what} is not finite")
    return array


def column(rows, name, width, table):
    """(n, width) float64 of one field of a table's rows, read at once. Raises SourceError, naming the row at fault."""
    try:
        values = np.array([row[name] for row in rows]) if rows else np.zeros((0, width))
        if values.dtype.kind in "if" and values.shape == (len(rows), width) and np.isfinite(values).all():
            return values.astype(np.float64, copy=False)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    for row in rows:  # find the culprit, slowly
        what = f"{table} {row.get('token', '?')}"
        finite(field_of(row, name, what), (width,), f"{what}: {name}")
    raise SourceError(f"{table}: the field {name!r} cannot be understood")


def check_quaternions(rows, rotation, table):
    """Raise SourceError for a row whose quaternion is zero and so turns nothing anywhere."""
    zero = ~rotation.any(1)
    if zero.any():
        raise SourceError(f"{table} {rows[int(np.flatnonzero(zero)[0])]['token']}: rotation is the zero quaternion")


def read_poses(folder):
    """The ego_pose table. Raises SourceError for a pose that is not finite or has a zero quaternion."""
    rows = read_table(folder, "ego_pose")
    row_of = {field_of(row, "token", "ego_pose", str): i for i, row in enumerate(rows)}
    if len(row_of) != len(rows):
        by_token(rows, "ego_pose")
    rotation, translation = column(rows, "rotation", 4, "ego_pose"), column(rows, "translation", 3, "ego_pose")
    check_quaternions(rows, rotation, "ego_pose")
    return Poses(row_of, rotation, translation)


def read_calibration(folder, channels=()):
    """calibrated_sensor token -> (channel, quaternion (4,), translation (3,), intrinsics (3, 3) or None).

    channels: (name of nuScenes, name in the tables) pairs; channels come out under nuScenes' names.
    """
    sensors = by_token(read_table(folder, "sensor"), "sensor")
    kinds = {}
    for token, row in sensors.items():
        kinds[field_of(row, "channel", f"sensor {token}", str)] = field_of(row, "modality", f"sensor {token}", str)
    names = channel_names(channels, kinds)
    out = {}
    for token, row in by_token(read_table(folder, "calibrated_sensor"), "calibrated_sensor").items():
        what = f"calibrated_sensor {token}"
        sensor = refer(sensors, field_of(row, "sensor_token", what), "sensor", what)
        rotation = finite(field_of(row, "rotation", what), (4,), f"{what}: rotation")
        if not rotation.any():
            raise SourceError(f"{what}: rotation is the zero quaternion")
        translation = finite(field_of(row, "translation", what), (3,), f"{what}: translation")
        intrinsics = None
        if sensor["modality"] == "camera":
            intrinsics = finite(field_of(row, "camera_intrinsic", what), (3, 3), f"{what}: camera_intrinsic")
            check_intrinsics(intrinsics, what)
        out[token] = (names[sensor["channel"]], rotation, translation, intrinsics)
    return out


def read_sensor_frames(folder, calibration, poses, samples):
    """sample_data: token -> SensorFrame, and (sample token, channel) -> token of the keyframe."""
    frames, keyframes = {}, {}
    for row in read_table(folder, "sample_data"):
        token = field_of(row, "token", "sample_data", str)
        if token in frames:
            raise SourceError(f"sample_data: the token {token} occurs twice")
        what = f"sample_data {token}"
        sensor = field_of(row, "calibrated_sensor_token", what)
        channel = refer(calibration, sensor, "calibrated_sensor", what)[0]
        sample = field_of(row, "sample_token", what)
        is_key = field_of(row, "is_key_frame", what, bool)
        # A sweep whose sample was cut out of the tables matters to nobody who does not follow a chain to it.
        scene = refer(samples, sample, "sample", what)["scene_token"] if is_key or sample in samples else ""
        prev = field_of(row, "prev", what, str)
        if token in (prev, row.get("next")):
            raise SourceError(f"{what}: its {'prev' if token == prev else 'next'} points to itself")
        frames[token] = SensorFrame(
            token=token,
            channel=channel,
            scene=scene,
            filename=field_of(row, "filename", what, str),
            timestamp=timestamp_of(row, what),
            pose=refer(poses.row, field_of(row, "ego_pose_token", what), "ego_pose", what),
            calibration=sensor,
            prev=prev,
            height=row.get("height") or 0,
            width=row.get("width") or 0,
        )
        if type(frames[token].height) is not int or type(frames[token].width) is not int:
            raise SourceError(f"{what}: height and width {row['height']!r}, {row['width']!r} are no numbers of pixels")
        if is_key:
            if (sample, channel) in keyframes:
                raise SourceError(f"sample {sample}: two keyframes of {channel}")
            keyframes[sample, channel] = token
    return frames, keyframes
