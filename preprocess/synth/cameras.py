"""What the cameras of the generated car see: streets, shadows and boxes, far things first, in light and weather."""

import cv2
import numpy as np

from common.rigid import rigid_inverse
from preprocess.nuscenes import CAMERAS
from preprocess.synth.look import CAMERA_HEIGHT_M
from preprocess.synth.things import BUILDING, SCREEN
from preprocess.synth.world import planar

CAMERA_YAW = dict(zip(CAMERAS, np.deg2rad([55, 0, -55, 110, 180, -110]), strict=True))
NEAR_M, GROUND_NEAR_M, PAINT_M = 0.3, 1.0, 75.0  # thin paint is not drawn beyond PAINT_M
ID_SCALE = 8  # visibility is counted on images of 1/8 size
_FURTHEST_PX = 1_000_000  # where corners beside the image are cut; far enough to leave the edges in the image straight
# Corners of each face, the first two along its lower edge; no bottom. Rear, front, right, left, top.
_FACES = np.array([[0, 2, 3, 1], [4, 6, 7, 5], [0, 4, 5, 1], [2, 6, 7, 3], [1, 5, 7, 3]])
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_FOOTPRINT = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
_SHADES = np.array([0.72, 0.8, 0.62, 0.9, 1.05])
_GLASS, _TYRE, _TROUSERS, _SKIN = (38, 44, 52), (24, 24, 26), (46, 48, 66), (196, 160, 130)
_LAMPS = ((140, 26, 26), (215, 215, 205)), ((255, 40, 30), (255, 246, 214))  # rear, front; off, on


def ego_T_camera(name):
    """(4, 4); camera axes X right, Y down, Z forward."""
    yaw = CAMERA_YAW[name]
    turned = planar(yaw, [0.6 + 1.0 * np.cos(yaw), 0.5 * np.sin(yaw), CAMERA_HEIGHT_M])
    axes = np.eye(4)
    axes[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return turned @ axes


def intrinsics(name, image_hw):
    """(3, 3) for an image of that size."""
    height, width = image_hw
    focal = (0.5 if name == "CAM_BACK" else 0.79) * width
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def faces_in_camera(sizes, poses, cam_T_global, matrix):
    """Visible faces, hidden boxes before those that hide them: (box number, face number, (k, 2) pixels, (4, 3) or None).

    sizes (n, 3) w, l, h; the last item: homogeneous pixels of the face's corners, None where the near plane cuts it.
    """
    cam_T_box = cam_T_global @ poses
    corners = np.einsum("nij,nkj->nki", cam_T_box[:, :3, :3], _CORNERS * sizes[:, None, [1, 0, 2]])
    corners += cam_T_box[:, None, :3, 3]
    seen = np.flatnonzero(~_outside(corners, matrix, NEAR_M))
    homogeneous = corners @ matrix.T
    out = []
    for n in seen[_back_to_front(corners[seen][:, [0, 4, 6, 2]][..., [0, 2]])]:
        quads = corners[n, _FACES]
        centres = quads.mean(1)
        for f in np.flatnonzero((centres * (centres - cam_T_box[n, :3, 3])).sum(1) < 0):
            if corners[n, :, 2].min() >= NEAR_M:
                points = homogeneous[n, _FACES[f]]
                out.append((n, f, points[:, :2] / points[:, 2:], points))
                continue
            polygon = _clip(quads[f], NEAR_M)
            if len(polygon) > 2:
                pixels = polygon @ matrix.T
                out.append((n, f, pixels[:, :2] / pixels[:, 2:], None))
    return out


def _outside(points, matrix, near):
    """(n, k, 3) in the camera's frame -> (n,) bool: all k beside or behind what the image shows."""
    x, z = points[..., 0], points[..., 2]
    wide = matrix[0, 2] / matrix[0, 0] * z
    return (z < near).all(1) | (x > wide).all(1) | (x < -wide).all(1)


def _back_to_front(footprints):
    """(n, 4, 2) convex footprints, corners in turn, seen from the origin -> order in which none hides a later one.

    A side of one box that separates two boxes tells which is on the eye's side; distances of middles would not do, as
    houses are long.
    """
    count = len(footprints)
    edges = np.roll(footprints, -1, 1) - footprints
    normals = np.stack([edges[..., 1], -edges[..., 0]], -1)
    middles = footprints.mean(1)
    normals *= np.sign(((footprints - middles[:, None]) * normals).sum(-1))[..., None]
    offsets = (normals * footprints).sum(-1)
    beyond = np.einsum("jed,icd->ijec", normals, footprints).min(-1) - offsets
    apart = beyond > -0.05 * np.linalg.norm(normals, axis=-1)  # [i, j, side]: all of i beyond a side of j
    before = (apart & (offsets < 0)).any(-1) | (apart & (offsets >= 0)).any(-1).T  # [i, j]: j cannot hide i
    hides = before & ~before.T  # [i, j]: i may hide j, which is drawn first
    far = (middles**2).sum(1)
    order, waiting = [], hides.sum(1)
    for _ in range(count):
        free = waiting == 0
        n = int(np.argmax(np.where(free, far, -1.0) if free.any() else np.where(waiting > 0, far, -1.0)))
        order.append(n)
        waiting -= hides[:, n]
        waiting[n] = -count
    return np.array(order, int)


def _clip(polygon, near):
    """The part of a polygon in front of the near plane."""
    if (polygon[:, 2] >= near).all():
        return polygon
    out = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        if a[2] >= near:
            out.append(a)
        if (a[2] >= near) != (b[2] >= near):
            out.append(a + (b - a) * (near - a[2]) / (b[2] - a[2]))
    return np.array(out)


class Painter:
    """Draws one scene's images. look: its colours."""

    def __init__(self, scene, look, image_hw):
        self.scene, self.look, self.image_hw = scene, look, image_hw
        surfaces = [surface for surface, _ in scene.roads.paint]
        self.quads = np.array([quad for _, quad in scene.roads.paint])
        self.thin = np.array([surface in ("kerb", "yellow", "white") for surface in surfaces])
        self.colours = np.array([look.paved[surface] for surface in surfaces]) * look.light
        self.veils = {name: self._veil(name) for name in CAMERAS}

    def render(self, channel, faces, poses, ego, rng):
        """(H, W, 3) uint8 RGB of one camera; faces as faces_in_camera gives them."""
        ego_T_cam = ego_T_camera(channel)
        cam_T_global = rigid_inverse(ego @ ego_T_cam)
        matrix = intrinsics(channel, self.image_hw)
        image = self.look.background.copy()
        self._skyline(image, np.arctan2(ego[1, 0], ego[0, 0]) + CAMERA_YAW[channel], matrix)
        self._ground(image, cam_T_global, matrix)
        self._shadows(image, poses, cam_T_global, matrix)
        half = image[self.image_hw[0] // 2 :]
        gain, haze = self.veils[channel]
        cv2.add(cv2.multiply(half, gain, dst=half, scale=1 / 32), haze, dst=half)
        self._boxes(image, faces, rigid_inverse(ego) @ poses)
        y, x = rng.integers(0, 64, 2)
        return cv2.add(image, self.look.grain[y : y + image.shape[0], x : x + image.shape[1]])

    def _veil(self, channel):
        """Headlights and haze on the ground: (h, W, 3) uint8 to multiply the lower half of the image by, over 32; to add."""
        height, width = self.image_hw[0] - self.image_hw[0] // 2, self.image_hw[1]
        matrix = intrinsics(channel, self.image_hw)
        small = (max(height // 4, 1), max(width // 16, 1))
        v, u = np.meshgrid(*((np.arange(n) + 0.5) / n for n in small), indexing="ij")
        depth = CAMERA_HEIGHT_M * matrix[1, 1] / (v * height)
        across = (u * width - matrix[0, 2]) / matrix[0, 0] * depth
        ego_T_cam = ego_T_camera(channel)
        points = np.stack([across, np.full_like(depth, CAMERA_HEIGHT_M), depth]).reshape(3, -1)
        forward, left, _ = ego_T_cam[:3, :3] @ points + ego_T_cam[:3, 3:]
        metres = np.hypot(forward, left)
        lit = 1 + self.look.lit(forward, left) / self.look.light
        share = np.exp(-metres / self.look.haze_m)
        gain = (32 * share * lit).clip(0, 255).reshape(small).astype(np.uint8)
        haze = ((1 - share)[:, None] * self.look.sky[1]).reshape(*small, 3).astype(np.uint8)
        gain, haze = (cv2.resize(a, (width, height), interpolation=cv2.INTER_LINEAR) for a in (gain, haze))
        return cv2.merge([gain] * 3), haze

    def _skyline(self, image, yaw, matrix):
        """Far houses on the horizon."""
        columns = np.linspace(0, image.shape[1], 161)
        off = np.arctan2(columns[:-1] + columns[1] / 2 - matrix[0, 2], matrix[0, 0])
        at = np.searchsorted(self.look.skyline[:, 0], (yaw - off + np.pi) % (2 * np.pi) - np.pi)
        rise = matrix[0, 0] * self.look.skyline[at % len(self.look.skyline), 1] / np.cos(off)
        top = np.column_stack([np.repeat(columns, 2)[1:-1], matrix[1, 2] - np.repeat(rise, 2)])
        outline = np.concatenate([top, [[image.shape[1], matrix[1, 2]], [0, matrix[1, 2]]]])
        cv2.fillPoly(image, [_fixed(outline)], (self.look.sky[1] * 0.72).tolist(), shift=4)

    def _ground(self, image, cam_T_global, matrix):
        """Streets and paint, each quadrilateral over those before it."""
        points = on_ground(self.quads, cam_T_global)
        seen = ~_outside(points, matrix, GROUND_NEAR_M)
        seen &= ~(self.thin & (points[..., 2].min(1) > PAINT_M))
        _fill(image, points[seen], self.colours[seen], matrix)

    def _shadows(self, image, poses, cam_T_global, matrix):
        """What stands on the ground darkens it."""
        sizes = self.scene.sizes[:, None, [1, 0]] * 1.08 + 0.1
        local = _FOOTPRINT * sizes
        quads = np.einsum("nij,nkj->nki", poses[:, :2, :2], local) + poses[:, None, :2, 3]
        points = on_ground(quads, cam_T_global)
        seen = ~_outside(points, matrix, GROUND_NEAR_M)
        colour = self.look.paved["asphalt"] * self.look.light * 0.45
        _fill(image, points[seen], np.broadcast_to(colour, (seen.sum(), 3)), matrix)

    def _boxes(self, image, faces, ego_T_box):
        look, things = self.look, self.scene.things
        metres = np.hypot(*ego_T_box[:, :2, 3].T)
        light = look.light + look.lit(ego_T_box[:, 0, 3], ego_T_box[:, 1, 3]) + np.zeros(len(things))
        for n, f, pixels, corners in faces:
            colour = look.hazed(things[n].colour * _SHADES[f] * light[n], metres[n])
            cv2.fillConvexPoly(image, _fixed(pixels), colour.clip(0, 255).tolist(), shift=4)
            low, high = pixels.min(0), pixels.max(0)
            if corners is None or f == 4 or (high - low).min() < 5:
                continue
            for area, shown, glows in _details(things[n], f, look):
                shown = np.asarray(shown, float)
                shown = shown if glows else look.hazed(shown * (_SHADES[f] * light[n]), metres[n])
                (u, v), (u2, v2) = area
                along, up = corners[1] - corners[0], corners[3] - corners[0]
                quad = np.array([corners[0] + a * along + b * up for a, b in ((u, v), (u2, v), (u2, v2), (u, v2))])
                cv2.fillConvexPoly(image, _fixed(quad[:, :2] / quad[:, 2:]), shown.clip(0, 255).tolist(), shift=4)


def on_ground(quads, cam_T_global):
    """(n, k, 2) global metres on the ground -> (n, k, 3) in the camera's frame."""
    return quads @ cam_T_global[:3, :2].T + cam_T_global[:3, 3]


def _fill(image, points, colours, matrix):
    """Fill (n, 4, 3) quadrilaterals of the camera's frame with (n, 3) colours."""
    whole = (points[..., 2] >= GROUND_NEAR_M).all(1)
    pixels = points @ matrix.T
    fixed = _fixed(pixels[..., :2] / np.where(whole[:, None, None], pixels[..., 2:], 1.0))
    for polygon, inside, quad, colour in zip(fixed, whole, points, colours.clip(0, 255).tolist(), strict=True):
        if not inside:
            cut = _clip(quad, GROUND_NEAR_M) @ matrix.T
            polygon = _fixed(cut[:, :2] / cut[:, 2:])
        cv2.fillConvexPoly(image, polygon, colour, shift=4)


def _details(thing, face, look):
    """(((u, v), (u, v)) corners within a face, 0 to 1 from its lower first corner; colour; whether it glows by itself)."""
    if thing.category == BUILDING:
        floors = max(1, round(thing.wlh[2] / 3.4))
        lit = look.night and face % 2
        for k in range(floors):
            glass = (190, 160, 100) if lit and (k + face + floors) % 3 == 0 else _GLASS
            yield ((0.04, (k + 0.35) / floors), (0.96, (k + 0.75) / floors)), glass, glass is not _GLASS
    elif thing.category == SCREEN:
        return
    elif thing.category == "human.pedestrian.adult":
        yield ((0.05, 0.0), (0.95, 0.46)), _TROUSERS, False
        yield ((0.25, 0.86), (0.75, 1.0)), _SKIN, False
    elif thing.category == "movable_object.trafficcone":
        yield ((0.0, 0.4), (1.0, 0.65)), (235, 235, 235), False
    elif thing.wlh[1] > 3 and face < 2:
        if thing.category != "vehicle.trailer":
            yield ((0.12, 0.55), (0.88, 0.88)), _GLASS, False
        on = look.lamps and thing.attribute != "vehicle.parked"
        for u in (0.06, 0.78):
            yield ((u, 0.34), (u + 0.16, 0.46)), _LAMPS[on][face], on
    elif thing.wlh[1] > 3:
        if thing.category != "vehicle.trailer":
            yield ((0.2, 0.55), (0.84, 0.88)), _GLASS, False
        for u in (0.12, 0.72):
            yield ((u, 0.0), (u + 0.16, 0.3)), _TYRE, False
    elif face > 1:  # two wheels
        yield ((0.0, 0.0), (0.36, 0.42)), _TYRE, False
        yield ((0.64, 0.0), (1.0, 0.42)), _TYRE, False
        if thing.attribute == "cycle.with_rider":
            yield ((0.3, 0.45), (0.7, 1.0)), _TROUSERS, False


def _fixed(points):
    return np.round(points.clip(-_FURTHEST_PX, _FURTHEST_PX) * 16).astype(np.int32)


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
            points = np.round(faces[at][2].clip(-_FURTHEST_PX, _FURTHEST_PX) / ID_SCALE).astype(np.int32)
            cv2.fillConvexPoly(alone, points, 1)
            at += 1
        mask = alone.astype(bool)
        numbers[mask] = n + 1
        counts[n, 1] = mask.sum()
    counts[:, 0] = np.bincount(numbers.ravel(), minlength=boxes + 1)[1:]
    return counts
