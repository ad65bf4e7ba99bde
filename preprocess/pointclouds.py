"""Lidar and radar files -> arrays of points, after checking that they hold what they should."""

from collections import Counter

import numpy as np

from common.rig import NUSCENES
from preprocess.errors import SourceError
from preprocess.nuscenes import LIDAR_FIELDS, MIN_DISTANCE_M, RADAR_FIELDS
from preprocess.pcd import check_tail, is_pcd, pcd_header, pcd_rows, point_count

LIDAR_COLUMNS = (4, 5, 6)  # x, y, z, intensity; and ring; and one more, which is dropped
MAX_RANGE_M = 1e4  # ten kilometres: no lidar or radar of a car sees as far
MAX_RING = 1023
_RING = "its fifth column is no number of a ring"

RADAR_TYPES = ("<f4",) * 3 + ("<i1", "<i2") + ("<f4",) * 5 + ("<i1",) * 8
RADAR_DTYPE = np.dtype(list(zip(RADAR_FIELDS, RADAR_TYPES, strict=True)))
_RADAR_HEADER = {
    "FIELDS": " ".join(RADAR_FIELDS),
    "SIZE": " ".join(str(RADAR_DTYPE[name].itemsize) for name in RADAR_FIELDS),
    "TYPE": " ".join(RADAR_DTYPE[name].kind.upper() for name in RADAR_FIELDS),
    "COUNT": " ".join("1" for _ in RADAR_FIELDS),
    "HEIGHT": "1",
}
# What may be met in lidar files, is read, and is counted.
DROPPED = "lidar points with a NaN, which are no returns, were dropped"
NO_RING = "lidar files have a fifth column that is no ring: their points have none"


def parse_lidar(data, path, columns=5, found=None):
    """(5, n) float32 x, y, z [m, sensor frame], intensity, ring from the bytes of a `.pcd.bin`, or of a binary PCD.

    Points with a NaN, by which drivers say that nothing came back, are dropped. A fifth column that is no ring, such as a time,
    becomes -1.

    Args:
        columns: float32 values per point in the file: 5; 4, where there is no ring, which becomes -1; or 6, whose last is
            dropped. A PCD says itself what it has; it needs x, y, z and intensity.
        found: Counter to which what was dropped is added, under DROPPED and NO_RING.
    Raises:
        SourceError: an empty or cut file, one of another number of columns or of float64, numbers that are infinite or out of
            range.
    """
    found = Counter() if found is None else found
    if is_pcd(data):
        points = _returns(_of_pcd(data, path), path, found)
        problem = lidar_problem(points)
        if problem is not None:
            raise SourceError(f"{path}: {problem}")
        return points
    points = _columns(data, columns)
    if points is None:
        raise SourceError(f"{path}: {len(data)} bytes are not a whole number of {4 * columns}-byte lidar points")
    points = _returns(points, path, found)
    problem = lidar_problem(points)
    if problem == _RING and _is_no_ring(points, data, columns):
        points[4], problem = -1, None
        found[NO_RING] += 1
    if problem is None and columns == 4 and points.shape[1] > 1:
        # A file with rings read as if it had none: what tells is that its fifth numbers are rings through and through.
        others = [c for c in (5, 6) if (p := _columns(data, c)) is not None and not _same(p) and not lidar_problem(p)]
        problem = f"it reads as {others[0]} columns" if others else None
    if problem is not None:
        raise SourceError(f"{path}: not a lidar file of {columns} columns, {problem}{_remedy(data, columns)}")
    return points


def _remedy(data, columns):
    """What a file of other columns may be, as a clause."""
    for wide in (3, *LIDAR_COLUMNS):
        if len(data) % (8 * wide) == 0:
            rows = np.frombuffer(data, "<f8").reshape(-1, wide)[:, :3]
            with np.errstate(invalid="ignore"):
                if (np.abs(rows) <= MAX_RANGE_M).all() and (np.abs(rows) > 1e-6).any(1).mean() > 0.5:
                    return "; its numbers are float64: convert them to float32"
    fitting = [c for c in LIDAR_COLUMNS if c != columns and len(data) % (4 * c) == 0]
    return f"; give --lidar-columns if it has {' or '.join(map(str, fitting))}" if fitting else ""


def _returns(points, path, found):
    """The points none of whose x, y, z and intensity is NaN."""
    nothing = np.isnan(points[:4]).any(0)
    if not nothing.any():
        return points
    if nothing.all():
        raise SourceError(f"{path}: every one of its {len(nothing)} lidar points has a NaN")
    found[DROPPED] += int(nothing.sum())
    return points.compress(~nothing, axis=1)


def _is_no_ring(points, data, columns):
    """Whether it is the fifth column alone that is not as expected: most of its values are no rings, and it is in its place.

    Read with another number of columns, the coordinates of a file go through all columns, and intensities are negative.
    """
    ring = points[4]
    rings = (ring >= -1) & (ring <= MAX_RING) & (ring == np.rint(ring))
    others = (_columns(data, c) for c in LIDAR_COLUMNS if c != columns)
    return (
        rings.mean() < 0.5 and _in_place(points) and not any(other is not None and _in_place(other) for other in others)
    )


def _in_place(points):
    """Whether points may have been read with their own number of columns: none is far away, no intensity is negative."""
    near = np.abs(points[:3]) <= MAX_RANGE_M
    return bool(near.all() and (points[3] >= 0).all())


def _of_pcd(data, path):
    """(5, n) float32 of a binary PCD with x, y, z and intensity, and ring where it has one."""
    rows = pcd_rows(data, path)
    missing = [name for name in ("x", "y", "z", "intensity") if name not in rows.dtype.names]
    if missing:
        raise SourceError(
            f"{path}: a lidar PCD without {missing[0]}; its fields are {', '.join(rows.dtype.names)[:200]}"
        )
    points = np.full((len(LIDAR_FIELDS), len(rows)), -1, np.float32)
    for place, name in enumerate(LIDAR_FIELDS):
        if name in rows.dtype.names:
            points[place] = rows[name]
    return points


def _columns(data, columns):
    """(5, n) float32, rows contiguous, of `columns` values per point; None where the bytes are not a whole number of points."""
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
    """What is wrong with (5 or more, n) points x, y, z, intensity, ring, as a clause; None where nothing is."""
    finite = np.isfinite(points)
    if not finite[:4].all() or not finite[5:].all():
        return "a point has a coordinate or intensity that is not finite"
    if points.size and np.abs(points[:3]).max() > MAX_RANGE_M:
        return f"a point lies {np.abs(points[:3]).max():.3g} m away"
    ring = points[4]
    if points.size and not ((ring >= -1) & (ring <= MAX_RING) & (ring == np.rint(ring))).all():
        return _RING
    return None


def parse_radar(data, path):
    """(18, n) float64 radar fields in the order of RADAR_FIELDS, x, y, z in metres in the sensor frame, unfiltered.

    Follows the PCD 0.7 binary format. nuScenes writes an empty cloud as a single point with NaN, so that, or points none of
    which lies anywhere, is one. The devkit takes any first point with a NaN for it and drops the sound ones after it; here that
    is an error. After the points may come zeros, with which PCL fills a file up to a page more than its points, or one line
    feed, since the devkit wants a byte there. Raises SourceError for another header, a short file, other bytes, or a number
    that is not finite.
    """
    head, rest = pcd_header(data, path)
    for name, wanted in _RADAR_HEADER.items():
        found = head.get(name, wanted if name == "COUNT" else "")
        if found != wanted:
            raise SourceError(f"{path}: its radar header has {name} {found[:200]!r}, expected {wanted}")
    size = point_count(head, path) * RADAR_DTYPE.itemsize
    if len(rest) < size:
        raise SourceError(f"{path}: {len(rest)} bytes of points, its header promises {size}; cut short, copy it anew")
    check_tail(rest, size, path)
    rows = np.frombuffer(rest, RADAR_DTYPE, size // RADAR_DTYPE.itemsize)
    points = np.stack([rows[name].astype(np.float64) for name in RADAR_FIELDS])
    nan = np.isnan(points)
    if nan.any() if points.shape[1] == 1 else nan[:3].all():
        return points[:, :0]
    problem = radar_problem(points)
    if problem is not None:
        raise SourceError(f"{path}: {problem}")
    return points


def radar_problem(points, fields=NUSCENES.radar_fields):
    """What is wrong with radar points (fields and more, n) of a rig's Fields, as a clause; None where nothing is."""
    bad = ~np.isfinite(points)
    if bad.any():
        field, point = np.argwhere(bad)[0]
        name = fields[field].name if field < len(fields) else f"field {field}"
        return f"radar point {point} has {name} = {points[field, point]}"
    if points.size and np.abs(points[:3]).max() > MAX_RANGE_M:
        return f"a radar point lies {np.abs(points[:3]).max():.3g} m away"
    return None


def remove_ego_returns(points, distance_m=MIN_DISTANCE_M):
    """Points (fields, n) without those of the square |x|, |y| < distance_m around the sensor."""
    close = (np.abs(points[0]) < distance_m) & (np.abs(points[1]) < distance_m)
    return points.compress(~close, axis=1)


def to_frame(points, ego_T_sensor):
    """Copy of points (fields, n) as float32 with x, y, z moved by the (4, 4) transform, computed in float64."""
    out = points.astype(np.float32)
    xyz = np.asarray(points[:3], np.float64)
    out[:3] = ego_T_sensor[:3, :3] @ xyz + ego_T_sensor[:3, 3:]
    return out
