"""Lidar and radar files -> arrays of points, after checking that they hold what they should."""

import re

import numpy as np

from preprocess.errors import SourceError
from preprocess.nuscenes import LIDAR_FIELDS, MIN_DISTANCE_M, RADAR_FIELDS

LIDAR_COLUMNS = (4, 5, 6)  # x, y, z, intensity; and ring; and one more, which is dropped
MAX_RANGE_M = 1e4  # ten kilometres: no lidar or radar of a car sees as far
MAX_RING = 1023

RADAR_TYPES = ("<f4",) * 3 + ("<i1", "<i2") + ("<f4",) * 5 + ("<i1",) * 8
RADAR_DTYPE = np.dtype(list(zip(RADAR_FIELDS, RADAR_TYPES, strict=True)))
_RADAR_HEADER = {
    b"FIELDS": " ".join(RADAR_FIELDS),
    b"SIZE": " ".join(str(RADAR_DTYPE[name].itemsize) for name in RADAR_FIELDS),
    b"TYPE": " ".join(RADAR_DTYPE[name].kind.upper() for name in RADAR_FIELDS),
    b"COUNT": " ".join("1" for _ in RADAR_FIELDS),
    b"HEIGHT": "1",
}


def parse_lidar(data, path, columns=5):
    """(5, n) float32 x, y, z [m, sensor frame], intensity, ring from the bytes of a `.pcd.bin`.

    Args:
        columns: float32 values a point in the file: 5; 4, where there is no ring, which becomes -1; or 6, whose last is
            dropped.
    Raises:
        SourceError: an empty or cut file, one of another number of columns, numbers that are not finite or out of range.
    """
    points = _columns(data, columns)
    if points is None:
        raise SourceError(f"{path}: {len(data)} bytes are not a whole number of {4 * columns}-byte lidar points")
    problem = lidar_problem(points)
    if problem is None and columns == 4 and points.shape[1] > 1:
        # A file with rings read as if it had none: what tells is that its fifth numbers are rings through and through.
        others = [c for c in (5, 6) if (p := _columns(data, c)) is not None and not _same(p) and not lidar_problem(p)]
        problem = f"it reads as {others[0]} columns" if others else None
    if problem is not None:
        fitting = [c for c in LIDAR_COLUMNS if c != columns and len(data) % (4 * c) == 0]
        remedy = f"; give --lidar-columns if it has {' or '.join(map(str, fitting))}" if fitting else ""
        raise SourceError(f"{path}: not a lidar file of {columns} columns, {problem}{remedy}")
    return points


def _columns(data, columns):
    """(5, n) float32, rows contiguous, of `columns` values a point; None where the bytes are not a whole number of points."""
    if not data or len(data) % (4 * columns):
        return None
    rows = np.frombuffer(data, "<f4").reshape(-1, columns).T
    if columns == 4:
        return np.concatenate([rows, np.full((1, rows.shape[1]), -1, "<f4")])
    return np.ascontiguousarray(rows[: len(LIDAR_FIELDS)])


def _same(points):
    """Whether all points have the same ring: a constant says nothing about the number of columns."""
    return (points[4] == points[4, 0]).all()


def lidar_problem(points):
    """What is wrong with (5, n) points x, y, z, intensity, ring, as a clause; None where nothing is."""
    if not np.isfinite(points).all():
        return "a point has a coordinate, intensity or ring that is not finite"
    if points.size and np.abs(points[:3]).max() > MAX_RANGE_M:
        return f"a point lies {np.abs(points[:3]).max():.3g} m away"
    ring = points[4]
    if points.size and (ring.min() < -1 or ring.max() > MAX_RING or (ring != np.rint(ring)).any()):
        return "its fifth column is no number of a ring"
    return None


def parse_radar(data, path):
    """(18, n) float64 radar fields in the order of RADAR_FIELDS, x, y, z in metres in the sensor frame, unfiltered.

    Follows the PCD 0.7 binary format. nuScenes writes an empty cloud as a single point with NaN, so that, or points none of
    which lies anywhere, is one. The devkit takes any first point with a NaN for it and drops the sound ones after it; here that
    is an error. After the points may come zeros, with which PCL fills a file up to a page more than its points, or one line
    feed, since the devkit wants a byte there. Raises SourceError for another header, a short file, other bytes, or a number
    that is not finite.
    """
    head, _, rest = data.partition(b"\nDATA binary\n")
    if not rest and not data.endswith(b"\nDATA binary\n"):
        raise SourceError(f"{path}: not a binary radar PCD")
    size = _radar_count(head, path) * RADAR_DTYPE.itemsize
    if len(rest) < size:
        raise SourceError(f"{path}: {len(rest)} bytes of points, its header promises {size}")
    after = rest[size:]
    if after != b"\n" and after.strip(b"\0"):
        raise SourceError(f"{path}: {len(after)} bytes that are not zeros follow the {size} that its header promises")
    rows = np.frombuffer(rest, RADAR_DTYPE, size // RADAR_DTYPE.itemsize)
    points = np.stack([rows[name].astype(np.float64) for name in RADAR_FIELDS])
    nan = np.isnan(points)
    if nan.any() if points.shape[1] == 1 else nan[:3].all():
        return points[:, :0]
    problem = radar_problem(points)
    if problem is not None:
        raise SourceError(f"{path}: {problem}")
    return points


def radar_problem(points):
    """What is wrong with (18 or more, n) radar points, as a clause; None where nothing is."""
    bad = ~np.isfinite(points)
    if bad.any():
        field, point = np.argwhere(bad)[0]
        return f"radar point {point} has {RADAR_FIELDS[field]} = {points[field, point]}"
    if points.size and np.abs(points[:3]).max() > MAX_RANGE_M:
        return f"a radar point lies {np.abs(points[:3]).max():.3g} m away"
    return None


def _radar_count(head, path):
    """Number of points that the header of a radar PCD promises. Raises SourceError where it is not the prescribed one."""
    names = rb"^(FIELDS|SIZE|TYPE|COUNT|WIDTH|HEIGHT|POINTS)[ \t]+(.*?)\s*$"
    lines = {name: b" ".join(text.split()) for name, text in re.findall(names, head, re.MULTILINE)}
    for name, wanted in _RADAR_HEADER.items():
        found = lines.get(name, wanted.encode() if name == b"COUNT" else b"").decode("ascii", "replace")
        if found != wanted:
            raise SourceError(f"{path}: its radar header has {name.decode()} {found[:200]!r}, expected {wanted}")
    width, points = lines.get(b"WIDTH", b""), lines.get(b"POINTS", lines.get(b"WIDTH"))
    if not re.fullmatch(rb"\d{1,9}", width) or points != width:
        raise SourceError(f"{path}: its PCD header cannot be understood: WIDTH and POINTS must say the same number")
    return int(width)


def remove_ego_returns(points):
    """Points (fields, n) without those of the square |x|, |y| < MIN_DISTANCE_M around the sensor."""
    close = (np.abs(points[0]) < MIN_DISTANCE_M) & (np.abs(points[1]) < MIN_DISTANCE_M)
    return points.compress(~close, axis=1)


def to_frame(points, ego_T_sensor):
    """Copy of points (fields, n) as float32 with x, y, z moved by the (4, 4) transform, computed in float64."""
    out = points.astype(np.float32)
    xyz = np.asarray(points[:3], np.float64)
    out[:3] = ego_T_sensor[:3, :3] @ xyz + ego_T_sensor[:3, 3:]
    return out
