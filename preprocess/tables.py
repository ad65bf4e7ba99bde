"""The JSON tables of a nuScenes folder, reduced to what the shards need and joined by position instead of token.

The devkit holds every table as Python dicts (about 9 GB for v1.0-trainval). Here each table is reduced to arrays as soon
as it is read, and only one is in memory as dicts at a time.

A row that cannot be used stands in its table's mapping as the SourceError that says why, which is raised to whoever needs it.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from common.rig import Distortion, RigError
from preprocess.errors import SourceError, sample_error
from preprocess.options import CANONICAL, channel_names
from preprocess.plausible import check_intrinsics


class Faults:
    """What is wrong with rows of tables. With `skips` it is kept, for the samples that need them; else it is raised at once."""

    def __init__(self, skips):
        self.skips, self.found = skips, []

    def met(self, error):
        """The SourceError, to be put in the row's place. Raises it unless faults are skipped."""
        if not self.skips:
            raise sample_error(str(error)) from None
        self.found.append(str(error))
        return error


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
_GZIP = b"\x1f\x8b"
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


def link_of(row, name, table):
    """The token that row[name] refers to; "" at a chain's end, which some converters write as null. Raises SourceError."""
    return "" if field_of(row, name, table) is None else field_of(row, name, table, str)


def read_table(folder, name, optional=False):
    """Rows of one table as dicts, of NAME.json or NAME.json.gz. Raises SourceError for a missing or damaged file."""
    path = Path(folder) / f"{name}.json"
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists() and packed.exists():
        path = packed
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
        rows = json.loads(data)
        if b"\\ud" in data or b"\\uD" in data:  # half a surrogate pair is text that nothing can write again
            json.dumps(rows, ensure_ascii=False).encode()
    except FileNotFoundError:
        if optional:
            return []
        raise SourceError(f"{path}: the table is missing; is this nuScenes folder complete?") from None
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise SourceError(f"{path}: not a readable JSON table ({error})") from None
    if not isinstance(rows, list):
        raise SourceError(f"{path}: not a list of rows")
    return rows


def named(rows, table, faults):
    """The rows that have a token. A row without one nobody can refer to: it is a fault, and left out."""
    if all(isinstance(row, dict) and isinstance(row.get("token"), str) for row in rows):
        return rows
    kept = []
    for row in rows:
        try:
            field_of(row, "token", table, str)
            kept.append(row)
        except SourceError as error:
            faults.met(error)
    return kept


def by_token(rows, table, faults, check=lambda row: None):
    """token -> row, or the SourceError of a row that `check` refuses or whose token is not its own.

    check: called with each row; raises SourceError.
    """
    out = {}
    for row in named(rows, table, faults):
        token = row["token"]
        try:
            if token in out:
                raise SourceError(f"{table}: the token {token} occurs twice")
            check(row)
            out[token] = row
        except SourceError as error:
            out[token] = faults.met(error)
    return out


def timestamp_of(row, table):
    """The timestamp of a row in microseconds. Raises SourceError for one that is text, fractional, or out of range."""
    value = field_of(row, "timestamp", table, int)
    if not 0 <= value < MAX_TIMESTAMP_US:
        raise SourceError(f"{table}: row {row.get('token', '?')} has timestamp = {value!r}")
    return value


def refer(mapping, token, table, wanted_by):
    """mapping[token]. Raises SourceError where it does not exist, naming who refers to it, and one that stands in its place."""
    try:
        value = mapping[token]
    except (KeyError, TypeError):
        raise SourceError(f"{wanted_by}: refers to {table} {token!r}, which does not exist") from None
    if isinstance(value, SourceError):
        raise SourceError(str(value))
    return value


def finite(values, shape, what):
    """Float64 array of that shape. Raises SourceError for anything else, texts and missing numbers included."""
    try:
        array = np.array(values)
        if array.dtype.kind not in "iuf":
            raise ValueError
        array = array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError):
        raise SourceError(f"{what} holds something that is no number") from None
    if array.shape != shape:
        raise SourceError(f"{what} has numbers in the shape {array.shape}, it must be {shape}")
    if not np.isfinite(array).all():
        raise SourceError(f"{what} is not finite")
    return array


def column(rows, name, width, table, faults):
    """One field of a table's rows, read at once: ((n, width) float64, {place: SourceError of a row without such numbers})."""
    try:
        values = np.array([row[name] for row in rows]) if rows else np.zeros((0, width))
        if values.dtype.kind in "if" and values.shape == (len(rows), width) and np.isfinite(values).all():
            return values.astype(np.float64, copy=False), {}
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    values, bad = np.ones((len(rows), width)), {}
    for place, row in enumerate(rows):  # find the culprits, slowly
        what = f"{table} {row['token']}"
        try:
            values[place] = finite(field_of(row, name, what), (width,), f"{what}: {name}")
        except SourceError as error:
            bad[place] = faults.met(error)
    return values, bad


def quaternions(rows, table, faults):
    """`column` of the rotations; a quaternion of zeros, which turns nothing anywhere, is a fault."""
    values, bad = column(rows, "rotation", 4, table, faults)
    for place in np.flatnonzero(~values.any(1)).tolist():
        bad[place] = faults.met(SourceError(f"{table} {rows[place]['token']}: rotation is the zero quaternion"))
    return values, bad


def read_poses(folder, faults):
    """The ego_pose table. A pose that is not finite or has a zero quaternion is a fault."""
    rows = named(read_table(folder, "ego_pose"), "ego_pose", faults)
    row_of = {row["token"]: place for place, row in enumerate(rows)}
    if len(row_of) != len(rows):
        row_of = {
            token: row if isinstance(row, SourceError) else row_of[token]
            for token, row in by_token(rows, "ego_pose", faults).items()
        }
    rotation, turned = quaternions(rows, "ego_pose", faults)
    translation, moved = column(rows, "translation", 3, "ego_pose", faults)
    row_of |= {rows[place]["token"]: error for place, error in (turned | moved).items()}
    return Poses(row_of, rotation, translation)


def read_calibration(folder, channels, faults):
    """calibrated_sensor token -> (channel, quaternion (4,), translation (3,), intrinsics (3, 3) or None, Distortion or None).

    The channel alone for a sensor that nobody asks for, whose rows may have any form. channels: (name of nuScenes, name in
    the tables) pairs; channels come out under nuScenes' names.
    """
    sensors = by_token(
        read_table(folder, "sensor"),
        "sensor",
        faults,
        lambda row: field_of(row, "channel", f"sensor {row['token']}", str),
    )
    kinds = {row["channel"]: row.get("modality") for row in sensors.values() if not isinstance(row, SourceError)}
    names = channel_names(channels, kinds)
    out = {}
    for token, row in by_token(read_table(folder, "calibrated_sensor"), "calibrated_sensor", faults).items():
        try:
            out[token] = row if isinstance(row, SourceError) else _mounted(row, sensors, names)
        except SourceError as error:
            out[token] = faults.met(error)
    return out


def _mounted(row, sensors, names):
    """What read_calibration gives for a row. Raises SourceError."""
    what = f"calibrated_sensor {row['token']}"
    sensor = refer(sensors, field_of(row, "sensor_token", what), "sensor", what)
    channel = names[sensor["channel"]]
    if channel not in CANONICAL:
        return channel
    rotation = finite(field_of(row, "rotation", what), (4,), f"{what}: rotation")
    if not rotation.any():
        raise SourceError(f"{what}: rotation is the zero quaternion")
    translation = finite(field_of(row, "translation", what), (3,), f"{what}: translation")
    intrinsics = distortion = None
    if sensor["modality"] == "camera":
        distortion = _distortion(row.get("camera_distortion"), what)
        intrinsics = finite(field_of(row, "camera_intrinsic", what), (3, 3), f"{what}: camera_intrinsic")
        check_intrinsics(intrinsics, what)
    return channel, rotation, translation, intrinsics, distortion


def _distortion(value, what):
    """Distortion of {"model": …, "coefficients": […]}, as tables may have it; None of None. Raises SourceError."""
    if value is None:
        return None
    try:
        return Distortion(value["model"], value["coefficients"])
    except (KeyError, TypeError, RigError) as error:
        raise SourceError(f"{what}: camera_distortion is no object of model and coefficients ({error})") from None


def read_sensor_frames(folder, calibration, poses, samples, faults):
    """sample_data: token -> SensorFrame, and (sample token, channel) -> token of the keyframe; either may be a SourceError.

    Rows of sensors that nobody asks for are left out.
    """
    frames, keyframes = {}, {}
    for row in named(read_table(folder, "sample_data"), "sample_data", faults):
        token, what = row["token"], f"sample_data {row['token']}"
        place = None
        try:
            mounted = refer(calibration, field_of(row, "calibrated_sensor_token", what), "calibrated_sensor", what)
            if isinstance(mounted, str):
                continue
            sample, is_key = field_of(row, "sample_token", what), field_of(row, "is_key_frame", what, bool)
            place = (sample, mounted[0]) if is_key and isinstance(sample, str) else None
            if token in frames:
                raise SourceError(f"sample_data: the token {token} occurs twice")
            frames[token] = _frame(row, mounted[0], poses, samples)
            if place in keyframes:
                keyframes[place] = faults.met(SourceError(f"sample {sample}: two keyframes of {mounted[0]}"))
        except SourceError as error:
            frames[token] = faults.met(error)
        if place is not None:
            keyframes.setdefault(place, token)
    return frames, keyframes


def _frame(row, channel, poses, samples):
    """SensorFrame of a row of sample_data. Raises SourceError."""
    token, what, sample = row["token"], f"sample_data {row['token']}", row["sample_token"]
    # A sweep whose sample was cut out of the tables matters to nobody who does not follow a chain to it.
    known = row["is_key_frame"] or isinstance(sample, str) and sample in samples
    prev = link_of(row, "prev", what)
    if token in (prev, row.get("next")):
        raise SourceError(f"{what}: its {'prev' if token == prev else 'next'} points to itself")
    frame = SensorFrame(
        token=token,
        channel=channel,
        scene=refer(samples, sample, "sample", what)["scene_token"] if known else "",
        filename=path_within(field_of(row, "filename", what, str), what),
        timestamp=timestamp_of(row, what),
        pose=refer(poses.row, field_of(row, "ego_pose_token", what), "ego_pose", what),
        calibration=row["calibrated_sensor_token"],
        prev=prev,
        height=row.get("height") or 0,
        width=row.get("width") or 0,
    )
    if type(frame.height) is not int or type(frame.width) is not int:
        raise SourceError(f"{what}: height and width {row['height']!r}, {row['width']!r} are no numbers of pixels")
    return frame


def path_within(filename, what):
    """A file name of the tables, with slashes where Windows wrote backslashes. Raises SourceError where it leads elsewhere."""
    path = PurePosixPath(filename.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in filename:
        raise SourceError(f"{what}: filename {filename!r} is no path within the data set's folder")
    return filename.replace("\\", "/")
