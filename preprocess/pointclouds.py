"""Lidar and radar files -> arrays of points."""

import re

import numpy as np

from common.cameras import LIDAR_FIELDS, MIN_DISTANCE_M, RADAR_FIELDS
from preprocess.errors import SourceError

_NUMPY_KIND = {
    ("F", 4): "<f4",
    ("F", 8): "<f8",
    ("I", 1): "<i1",
    ("I", 2): "<i2",
    ("I", 4): "<i4",
    ("I", 8): "<i8",
}
_NUMPY_KIND |= {("U", size): f"<u{size}" for size in (1, 2, 4, 8)}


def parse_lidar(data, path):
    """(5, n) float32 x, y, z [m, sensor frame], intensity, ring from the bytes of a `.pcd.bin`.

    Raises SourceError for an empty or cut file, or coordinates that are not finite.
    """
    row = 4 * len(LIDAR_FIELDS)
    if not data or len(data) % row:
        raise SourceError(f"{path}: {len(data)} bytes are not a whole number of {row}-byte lidar points")
    points = np.frombuffer(data, "<f4").reshape(-1, len(LIDAR_FIELDS)).T
    if not np.isfinite(points[:3]).all():
        raise SourceError(f"{path}: a lidar point has a coordinate that is not finite")
    return points


def parse_radar(data, path):
    """(18, n) float64 radar fields in the order of RADAR_FIELDS, x, y, z in metres in the sensor frame, unfiltered.

    Follows the PCD 0.7 binary format as the devkit reads it: a first point with a NaN means an empty cloud.
    Raises SourceError for another header or a short file.
    """
    head, _, rest = data.partition(b"\nDATA binary\n")
    if not rest and not data.endswith(b"\nDATA binary\n"):
        raise SourceError(f"{path}: not a binary radar PCD")
    dtype, count = _pcd_layout(head, path)
    if dtype.names != RADAR_FIELDS:
        raise SourceError(f"{path}: radar fields {' '.join(dtype.names)}, expected {' '.join(RADAR_FIELDS)}")
    if len(rest) < count * dtype.itemsize:
        raise SourceError(f"{path}: {len(rest)} bytes of points, its header promises {count * dtype.itemsize}")
    rows = np.frombuffer(rest, dtype, count)
    points = np.stack([rows[name].astype(np.float64) for name in RADAR_FIELDS])
    if count and np.isnan(points[:, 0]).any():
        return points[:, :0]
    if not np.isfinite(points[:3]).all():
        raise SourceError(f"{path}: a radar point has a coordinate that is not finite")
    return points


def _pcd_layout(head, path):
    lines = dict(re.findall(rb"^(FIELDS|SIZE|TYPE|COUNT|WIDTH|HEIGHT|POINTS)[ \t]+(.*?)\s*$", head, re.MULTILINE))
    try:
        fields = lines[b"FIELDS"].decode().split()
        kinds = zip(lines[b"TYPE"].decode().split(), map(int, lines[b"SIZE"].split()), strict=True)
        dtype = np.dtype(list(zip(fields, (_NUMPY_KIND[kind] for kind in kinds), strict=True)))
        count = int(lines[b"WIDTH"]) * int(lines[b"HEIGHT"])
        if count < 0 or set(lines.get(b"COUNT", b"1").split()) != {b"1"}:
            raise ValueError
        return dtype, count
    except (KeyError, ValueError):
        raise SourceError(f"{path}: its PCD header cannot be understood") from None


def remove_ego_returns(points):
    """Points (fields, n) without those of the square |x|, |y| < MIN_DISTANCE_M around the sensor."""
    close = (np.abs(points[0]) < MIN_DISTANCE_M) & (np.abs(points[1]) < MIN_DISTANCE_M)
    return points[:, ~close]


def to_frame(points, ego_T_sensor):
    """Copy of points (fields, n) as float32 with x, y, z moved by the (4, 4) transform, computed in float64."""
    out = points.astype(np.float32)
    xyz = np.asarray(points[:3], np.float64)
    out[:3] = ego_T_sensor[:3, :3] @ xyz + ego_T_sensor[:3, 3:]
    return out
