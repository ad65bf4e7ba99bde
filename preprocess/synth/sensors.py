"""What lidar and radars of the generated car see, all from the same boxes and the same painted ground."""

import cv2
import numpy as np

from common.rigid import rigid_inverse
from preprocess.nuscenes import RADAR_FIELDS, RADARS
from preprocess.synth.things import BUILDING
from preprocess.synth.world import planar

RADAR_YAW = dict(zip(RADARS, np.deg2rad([-170, 170, 0, 85, -85]), strict=True))
EGO_T_LIDAR = planar(-np.pi / 2, [0.94, 0.0, 1.84])
LIDAR_RANGE_M, RADAR_RANGE_M, RADAR_HALF_FOV = 70.0, 80.0, np.deg2rad(55)
RINGS, AZIMUTHS = 32, 720

RADAR_DTYPE = np.dtype(list(zip(RADAR_FIELDS, ["<f4"] * 3 + ["i1", "<i2"] + ["<f4"] * 5 + ["i1"] * 8, strict=True)))


def ego_T_radar(name):
    """(4, 4)."""
    yaw = RADAR_YAW[name]
    return planar(yaw, [1.4 + 2.0 * np.cos(yaw), 0.9 * np.sin(yaw), 0.5])


class GroundShine:
    """Lidar intensity of the ground: what it is paved with, and paint above all, returns more or less of a pulse."""

    _CELL_M, _BESIDE = 0.25, 8
    _OF = dict(walkway=12, kerb=16, carpark=6, asphalt=5, yellow=36, white=44)

    def __init__(self, roads):
        quads = np.array([quad for _, quad in roads.paint])
        self.corner = quads.min((0, 1))
        columns, rows = np.ceil((quads.max((0, 1)) - self.corner) / self._CELL_M).astype(int) + 1
        self.cells = np.full((rows, columns), self._BESIDE, np.uint8)
        fixed = np.round((quads - self.corner) / self._CELL_M * 16 - 8).astype(np.int32)
        for (surface, _), quad in zip(roads.paint, fixed, strict=True):
            cv2.fillConvexPoly(self.cells, quad, self._OF[surface], shift=4)

    def at(self, xy):
        """(n, 2) global metres -> (n,) intensities."""
        column, row = np.floor((xy - self.corner) / self._CELL_M).astype(int).T
        inside = (row >= 0) & (row < self.cells.shape[0]) & (column >= 0) & (column < self.cells.shape[1])
        return np.where(inside, self.cells[row * inside, column * inside], self._BESIDE)


_ELEVATION = np.deg2rad(np.linspace(-30, 10, RINGS))
_AZIMUTH = np.linspace(-np.pi, np.pi, AZIMUTHS, endpoint=False)
_RAYS = np.stack(
    np.broadcast_arrays(
        np.cos(_ELEVATION) * np.cos(_AZIMUTH)[:, None],
        np.cos(_ELEVATION) * np.sin(_AZIMUTH)[:, None],
        np.sin(_ELEVATION)[None],
    ),
    -1,
)


def lidar_sweep(things, poses, global_T_lidar, ground, rng):
    """((n, 5) float32 x, y, z in the sensor's frame, intensity, ring; (n,) box number or -1 for the ground).

    ground: GroundShine.
    """
    rays, origin_z = _RAYS, global_T_lidar[2, 3]
    distance = np.where(rays[..., 2] < -1e-3, origin_z / -rays[..., 2].clip(None, -1e-3), np.inf)
    hit = np.full(distance.shape, -1)
    lidar_T_box = rigid_inverse(global_T_lidar) @ poses
    for n, thing in enumerate(things):
        centre = lidar_T_box[n, :3, 3]
        flat = np.hypot(centre[0], centre[1])
        radius = np.hypot(thing.wlh[0], thing.wlh[1]) / 2
        if flat - radius > LIDAR_RANGE_M:
            continue
        half = np.arcsin(min(radius / max(flat, 1e-6), 1.0)) if flat > radius else np.pi
        turn = np.arctan2(centre[1], centre[0])
        columns = np.flatnonzero(np.abs((_AZIMUTH - turn + np.pi) % (2 * np.pi) - np.pi) <= half + 0.01)
        entry = _slab(rays[columns], lidar_T_box[n], thing.wlh[[1, 0, 2]] / 2)
        nearer = entry < distance[columns]
        distance[columns] = np.where(nearer, entry, distance[columns])
        hit[columns] = np.where(nearer, n, hit[columns])
    keep = distance < LIDAR_RANGE_M
    points = rays[keep] * (distance[keep] + rng.normal(0, 0.015, keep.sum()))[:, None]
    ring = np.broadcast_to(np.arange(RINGS), distance.shape)[keep]
    shine = 20.0 + 7 * (hit[keep] % 20)
    bare = hit[keep] < 0
    shine[bare] = ground.at(points[bare] @ global_T_lidar[:2, :3].T + global_T_lidar[:2, 3])
    return np.column_stack([points, shine, ring]).astype("<f4"), hit[keep]


def _slab(rays, sensor_T_box, half):
    """Distance at which rays from the sensor's origin enter a box; inf where they miss (Kay & Kajiya's slabs)."""
    rotation = sensor_T_box[:3, :3]
    origin = -rotation.T @ sensor_T_box[:3, 3]
    slopes = rays @ rotation
    slopes = np.where(np.abs(slopes) < 1e-9, 1e-9, slopes)
    one, two = (-half - origin) / slopes, (half - origin) / slopes
    entry, leave = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
    return np.where((entry <= leave) & (entry > 0), entry, np.inf)


def radar_sweep(scene, poses, seen, ego, name, velocities, ego_velocity, rng):
    """(bytes of a binary PCD, box number of each point): returns of what the lidar sees too, radar by radar.

    seen: numbers of the boxes that the lidar hits; velocities (boxes, 2) and ego_velocity (2,): global, metres per second.
    """
    global_T_radar = ego @ ego_T_radar(name)
    radar_T_global = rigid_inverse(global_T_radar)
    rows, numbers = [], []
    for n in seen:
        thing = scene.things[n]
        box = radar_T_global @ poses[n]
        if np.hypot(*box[:2, 3]) > RADAR_RANGE_M:
            continue
        facing = -(box[:3, :3].T @ box[:3, 3])  # the sensor from the box's middle
        half = thing.wlh[[1, 0, 2]] / 2
        nearest = facing.clip(-half, half)
        for _ in range(6 if thing.category == BUILDING else int(rng.integers(1, 4))):
            local = nearest + rng.normal(0, 0.15, 3) * half.clip(None, 2)
            point = box[:3, :3] @ local.clip(-half, half) + box[:3, 3]
            if abs(np.arctan2(point[1], point[0])) > RADAR_HALF_FOV:
                continue
            comp = radar_T_global[:2, :2] @ velocities[n]
            rel = radar_T_global[:2, :2] @ (velocities[n] - ego_velocity)
            still = int(not thing.along)
            rows.append(
                (*point[:2], 0, still, len(rows), 5 + 10 * rng.random(), *rel, *comp, 1, 3, 19, 19, 0, 1, 16, 3)
            )
            numbers.append(n)
    return _pcd(np.array(rows, RADAR_DTYPE)), numbers


def _pcd(rows):
    if not len(rows):  # nuScenes writes an empty cloud as one point of NaN
        rows = np.zeros(1, RADAR_DTYPE)
        rows["x"] = rows["y"] = rows["z"] = np.nan
    kinds = [RADAR_DTYPE[name] for name in RADAR_FIELDS]
    head = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(RADAR_FIELDS)}",
        f"SIZE {' '.join(str(k.itemsize) for k in kinds)}",
        f"TYPE {' '.join('F' if k.kind == 'f' else 'I' for k in kinds)}",
        f"COUNT {' '.join('1' for _ in kinds)}",
        f"WIDTH {len(rows)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(rows)}",
        "DATA binary",
    ]
    return "\n".join(head).encode() + b"\n" + rows.tobytes() + b"\n"  # the devkit wants a byte after the last point
