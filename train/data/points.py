"""Lidar and radar members of one keyframe -> points, in a loader thread."""

import numpy as np

from common.record import (
    RecordError,
    decode_planes,
    decode_points,
    lidar_files,
    lidar_member,
    merge_planes,
    radar_member,
)
from common.rig import LIDAR_FIELDS

# The devkit's default radar filters (RadarPointCloud.default_filters): field -> values kept.
RADAR_FILTERS = {"invalid_state": (0,), "dyn_prop": tuple(range(7)), "ambig_state": (3,)}
_LIDAR_ROWS = len(LIDAR_FIELDS)


def lidar_points(members, sample, rig, nsweeps):
    """Points of a keyframe's newest sweeps, the keyframe's own first.

    Args:
        members: dict from member name to bytes. sample: what parse_sample gives. rig: Rig.
    Returns:
        (points (6, V) float32 x, y, z, intensity, ring, lag; index (V,) int16, each point's lidar by its place in the rig, None
        where there is one; points of the keyframe's own sweep).
    Raises:
        RecordError: no lidar, or a damaged member.
    """
    sweeps = lidar_files(sample)[:nsweeps]
    clouds = [decode_planes(members[m], m, rig.lidar_planes) for m in map(lidar_member, range(len(sweeps)))]
    if not clouds:
        raise RecordError("has no lidar; train without --use_lidar")
    ends = np.cumsum([0] + [cloud.shape[2] for cloud in clouds]).tolist()
    points = np.empty((_LIDAR_ROWS + 1, ends[-1]), np.float32)
    index = np.empty(ends[-1], np.int16) if len(rig.lidars) > 1 else None
    for k, (cloud, files, start, end) in enumerate(zip(clouds, sweeps, ends[:-1], ends[1:], strict=True)):
        merge_planes(cloud[:_LIDAR_ROWS], points[:_LIDAR_ROWS, start:end])
        if index is None:
            points[_LIDAR_ROWS, start:end] = files[0]["lag_s"]
        else:
            index[start:end], points[_LIDAR_ROWS, start:end] = _numbered(cloud[-1:], files, rig, lidar_member(k))
    return points, index, ends[1]


def _numbered(planes, files, rig, what):
    """Of each point its lidar's number and the lag of that lidar's sweep. planes: (1, 4, V) bytes of the number."""
    numbers = np.empty((1, planes.shape[2]), np.float32)
    merge_planes(planes, numbers)
    lags = np.full(len(rig.lidars), np.nan, np.float32)
    for file in files:
        lags[rig.lidars.index(file["channel"])] = file["lag_s"]
    sound = np.isin(numbers[0], np.flatnonzero(np.isfinite(lags)))
    if not sound.all():
        raise RecordError(f"{what}: a point is of a lidar that the sweep does not have")
    return numbers[0], lags[numbers[0].astype(np.int64)]


def radar_points(members, rig, nsweeps, use_filters):
    """(fields and lag, R) float32, radar by radar and newest sweep first within each, as Simple-BEV concatenates them.

    Args:
        members, rig, nsweeps: as for lidar_points. use_filters: keep what the devkit's default filters keep.
    Raises:
        RecordError: no radar, a damaged member, or filters of fields that this rig's radars do not have.
    """
    names = [m for k in range(nsweeps) if (m := radar_member(k)) in members]
    clouds = [decode_points(members[m], m, rig.radar_planes) for m in names]
    if not clouds:
        raise RecordError("has no radar; train without --use_radar")
    points = np.concatenate(clouds, axis=1)
    points = points[:, np.argsort(points[-1], kind="stable")][:-1]  # the last row is the radar's place in the rig
    if use_filters:
        fields = [field.name for field in rig.radar_fields]
        if not set(fields) >= set(RADAR_FILTERS):
            raise RecordError("its radars lack the fields that radar filters look at; leave out --use_radar_filters")
        keep = np.ones(points.shape[1], bool)
        for name, values in RADAR_FILTERS.items():
            keep &= np.isin(points[fields.index(name)], values)
        points = points[:, keep]
    return points
