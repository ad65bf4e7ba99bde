"""What cameras, lidar and radars of the generated car see, all from the same boxes."""

import cv2
import numpy as np

from common.cameras import CAMERAS, RADAR_FIELDS, RADARS
from preprocess.frames import inverse
from preprocess.synth.world import BUILDING, planar

CAMERA_YAW = dict(zip(CAMERAS, np.deg2rad([55, 0, -55, 110, 180, -110]), strict=True))
RADAR_YAW = dict(zip(RADARS, np.deg2rad([-170, 170, 0, 85, -85]), strict=True))
EGO_T_LIDAR = planar(-np.pi / 2, [0.94, 0.0, 1.84])
NEAR_M, LIDAR_RANGE_M, RADAR_RANGE_M, RADAR_HALF_FOV = 0.3, 70.0, 80.0, np.deg2rad(55)
RINGS, AZIMUTHS = 32, 720
ID_SCALE = 8  # visibility is counted on images of 1/8 size
_FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [1, 5, 7, 3]])  # no bottom
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_SHADES = np.array([0.72, 0.8, 0.62, 0.9, 1.05])

RADAR_DTYPE = np.dtype(list(zip(RADAR_FIELDS, ["<f4"] * 3 + ["i1", "<i2"] + ["<f4"] * 5 + ["i1"] * 8, strict=True)))


def ego_T_camera(name):
    """(4, 4); camera axes X right, Y down, Z forward."""
    yaw = CAMERA_YAW[name]
    turned = planar(yaw, [0.6 + 1.0 * np.cos(yaw), 0.5 * np.sin(yaw), 1.55])
    axes = np.eye(4)
    axes[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return turned @ axes


def ego_T_radar(name):
    """(4, 4)."""
    yaw = RADAR_YAW[name]
    return planar(yaw, [1.4 + 2.0 * np.cos(yaw), 0.9 * np.sin(yaw), 0.5])


def intrinsics(name, image_hw):
    """(3, 3) for an image of that size."""
    height, width = image_hw
    focal = (0.5 if name == "CAM_BACK" else 0.79) * width
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def faces_in_camera(things, poses, cam_T_global, matrix):
    """Polygons of the visible faces, far boxes first: (box number, face number, (k, 2) pixels)."""
    sizes = np.array([t.wlh[[1, 0, 2]] for t in things])
    cam_T_box = cam_T_global @ poses
    corners = np.einsum("nij,nkj->nki", cam_T_box[:, :3, :3], _CORNERS * sizes[:, None]) + cam_T_box[:, None, :3, 3]
    out = []
    for n in np.argsort(-np.linalg.norm(cam_T_box[:, :3, 3], axis=1)):
        if corners[n, :, 2].max() < NEAR_M:
            continue
        middle = cam_T_box[n, :3, 3]
        for f, face in enumerate(_FACES):
            quad = corners[n, face]
            centre = quad.mean(0)
            if centre @ (centre - middle) >= 0:  # seen from behind
                continue
            polygon = _clip(quad)
            if len(polygon) > 2:
                pixels = polygon @ matrix.T
                out.append((n, f, pixels[:, :2] / pixels[:, 2:]))
    return out


def _clip(polygon):
    """The part of a polygon in front of the near plane."""
    if (polygon[:, 2] >= NEAR_M).all():
        return polygon
    out = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if a[2] >= NEAR_M:
            out.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            out.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
    return np.array(out)


def render(scene, faces, image_hw, rng):
    """(H, W, 3) uint8 RGB."""
    height, width = image_hw
    rows = np.linspace(-1, 1, height)[:, None]
    sky = scene.sky * (0.85 + 0.15 * rows)
    ground = scene.ground * (0.8 + 0.4 * rows)
    column = np.where(rows < 0, sky, ground) * scene.light
    image = np.repeat(column.clip(0, 255).astype(np.uint8)[:, None], width, 1)
    for n, f, pixels in faces:
        colour = scene.things[n].colour * _SHADES[f] * scene.light
        points = pixels.clip(-20000, 20000)
        cv2.fillConvexPoly(image, _fixed(points), colour.clip(0, 255).tolist(), shift=4)
        if scene.things[n].category.startswith("vehicle") and f < 4 and len(points) == 4:
            middle = points.mean(0)  # a darker pane, so that cars are not plain boxes
            pane = middle + (points - middle) * [0.8, 0.45]
            cv2.fillConvexPoly(image, _fixed(pane), (colour * 0.35).clip(0, 255).tolist(), shift=4)
    grain = rng.integers(0, 14, (height // 4, width // 4, 1), np.uint8)
    grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.add(image, cv2.merge([grain] * 3))


def _fixed(points):
    return np.round(points * 16).astype(np.int32)


def count_pixels(faces, image_hw, boxes):
    """(boxes, 2) int64: pixels of each box that are seen, and that would be seen were it alone."""
    small = (image_hw[0] // ID_SCALE, image_hw[1] // ID_SCALE)
    numbers = np.zeros(small, np.int16)
    counts = np.zeros((boxes, 2), np.int64)
    alone = np.zeros(small, np.uint8)
    at = 0
    while at < len(faces):
        n = faces[at][0]
        alone[:] = 0
        while at < len(faces) and faces[at][0] == n:
            points = np.round(faces[at][2].clip(-20000, 20000) / ID_SCALE).astype(np.int32)
            cv2.fillConvexPoly(alone, points, 1)
            at += 1
        mask = alone.astype(bool)
        numbers[mask] = n + 1
        counts[n, 1] = mask.sum()
    counts[:, 0] = np.bincount(numbers.ravel(), minlength=boxes + 1)[1:]
    return counts


_ELEVATION = np.deg2rad(np.linspace(-30, 10, RINGS))
_AZIMUTH = np.linspace(-np.pi, np.pi, AZIMUTHS, endpoint=False)


def lidar_sweep(things, poses, global_T_lidar, rng):
    """((n, 5) float32 x, y, z in the sensor's frame, intensity, ring; (n,) box number or -1 for the ground)."""
    az, el = np.meshgrid(_AZIMUTH, _ELEVATION, indexing="ij")
    rays = np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], -1)
    origin_z = global_T_lidar[2, 3]
    distance = np.where(rays[..., 2] < -1e-3, origin_z / -rays[..., 2].clip(None, -1e-3), np.inf)
    hit = np.full(distance.shape, -1)
    lidar_T_box = inverse(global_T_lidar) @ poses
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
    shine = np.where(hit[keep] < 0, 8.0, 20.0 + 7 * (hit[keep] % 20))
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


def radar_sweep(scene, poses, hits, ego, name, ego_velocity, rng):
    """(bytes of a binary PCD, box number of each point): returns of what the lidar sees too, radar by radar."""
    global_T_radar = ego @ ego_T_radar(name)
    radar_T_global = inverse(global_T_radar)
    rows, numbers = [], []
    for n in np.unique(hits[hits >= 0]):
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
            own = thing.speed * np.array([np.cos(thing.yaw), np.sin(thing.yaw)])
            comp = radar_T_global[:2, :2] @ own
            rel = radar_T_global[:2, :2] @ (own - ego_velocity)
            still = int(not thing.speed)
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
