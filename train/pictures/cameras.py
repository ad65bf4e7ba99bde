"""Camera images with projected 3D boxes, and all of them side by side in the order of the rig."""

from dataclasses import replace

import cv2
import numpy as np
import torch

from common.lens import bend
from train.pictures.palette import DEPTH_RAMP, FAINT_INK, FAR_M, GROUND, PAGE, colour_of, ramp
from train.pictures.text import fitting, tag, write

NEAR_M = 0.1  # edges are cut here, just before the image plane
_EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]])
_FRONT = np.array([0, 1, 2, 3])
BENT_STEPS = 8  # straight pieces that an edge is drawn in where a lens bends it
_SHIFT = 4  # OpenCV draws at sixteenths of a pixel
_FAR_PIXEL = 1 << 16  # beyond this, a corner's pixel is of no use to OpenCV's integers


def in_camera(points, camera):
    """(..., 3) ego metres -> (..., 3) in the camera's frame."""
    rotation, translation = camera.ego_T_cam[:3, :3], camera.ego_T_cam[:3, 3]
    return (points - translation) @ rotation


def to_pixels(points, intrinsics, lens=None):
    """(..., 3) in the camera's frame, Z > 0 -> (..., 2) column and row. With a lens, (n, 3); NaN where it does not see."""
    if lens is None:
        projected = points @ intrinsics.T
        return projected[..., :2] / projected[..., 2:]
    x, y, seen = (v.numpy() for v in bend(torch.from_numpy(points), torch.from_numpy(lens.astype(float))))
    bent = np.stack([x, y, np.ones_like(x)], -1) @ intrinsics.T
    return np.where(seen[:, None], bent[:, :2], np.nan)


def _lines(starts, ends, camera):
    """Pixels (n, 2) of the ends of the lines that edges (n, 3) to (n, 3) are in the image; short ones, where a lens bends."""
    if camera.lens is not None:
        steps = np.linspace(0, 1, BENT_STEPS + 1)[:, None, None]
        along = starts + steps * (ends - starts)
        starts, ends = along[:-1].reshape(-1, 3), along[1:].reshape(-1, 3)
    starts, ends = (to_pixels(points, camera.intrinsics, camera.lens) for points in (starts, ends))
    seen = np.isfinite(starts).all(1) & np.isfinite(ends).all(1)
    return starts[seen], ends[seen]


def clip_edges(starts, ends, near=NEAR_M):
    """Edges (n, 3) to (n, 3) in a camera's frame, cut at Z = near: (kept (n,) bool, starts, ends)."""
    z0, z1 = starts[:, 2], ends[:, 2]
    kept = (z0 > near) | (z1 > near)
    span = np.where(z1 == z0, 1.0, z1 - z0)
    crossing = starts + ((near - z0) / span)[:, None] * (ends - starts)
    return kept, np.where((z0 < near)[:, None], crossing, starts), np.where((z1 < near)[:, None], crossing, ends)


def clip_polygon(points, near=NEAR_M):
    """The part of a polygon (n, 3) in a camera's frame with Z >= near, (m, 3); m may be 0."""
    out = []
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        if a[2] >= near:
            out.append(a)
        if (a[2] >= near) != (b[2] >= near):
            out.append(a + (b - a) * (near - a[2]) / (b[2] - a[2]))
    return np.array(out).reshape(-1, 3)


def draw_boxes(camera, boxes, thickness=1):
    """(H, W, 3) uint8: the camera's image with the boxes that it sees, far ones first.

    Colours are by category; the face towards which a thing drives is tinted; boxes of visibility 1 are dimmed.
    """
    sharp = camera.image.copy()
    corners = in_camera(boxes.corners(), camera)
    depth = corners[..., 2].mean(1)
    order = [n for n in np.argsort(-depth) if _is_seen(corners[n], camera)]
    for dim in (True, False):
        layer = sharp.copy() if dim else sharp
        for n in order:
            if (boxes.visibility[n] == 1) == dim:
                _draw_box(layer, corners[n], camera, colour_of(boxes.categories[n]), thickness)
        if dim:
            sharp = cv2.addWeighted(layer, 0.45, sharp, 0.55, 0)
    return sharp


def _is_seen(corners, camera):
    """Whether any part of the box may lie within the image."""
    ahead = corners[corners[:, 2] > NEAR_M]
    if not len(ahead):
        return False
    if len(ahead) < len(corners):
        return True
    pixels = to_pixels(ahead, camera.intrinsics, camera.lens)
    pixels = pixels[np.isfinite(pixels).all(1)]
    if not len(pixels):
        return False
    height, width = camera.image.shape[:2]
    return bool((pixels.max(0) >= 0).all() and (pixels.min(0) < [width, height]).all())


def _draw_box(image, corners, camera, colour, thickness):
    front = clip_polygon(corners[_FRONT])
    outline = to_pixels(front, camera.intrinsics, camera.lens) if len(front) > 2 else np.full((1, 2), np.nan)
    if np.isfinite(outline).all():
        _tint(image, outline, colour)
    kept, starts, ends = clip_edges(corners[_EDGES[:, 0]], corners[_EDGES[:, 1]])
    for start, end in zip(*map(_fixed, _lines(starts[kept], ends[kept], camera)), strict=True):
        cv2.line(image, start, end, colour, thickness, cv2.LINE_AA, _SHIFT)


def _tint(image, polygon, colour):
    """Mix a third of the colour into a convex polygon (n, 2), touching no more of the image than it covers."""
    height, width = image.shape[:2]
    low = np.floor(polygon.min(0)).clip(0, [width, height]).astype(int)
    high = np.ceil(polygon.max(0) + 1).clip(0, [width, height]).astype(int)
    if (low >= high).any():
        return
    part = image[low[1] : high[1], low[0] : high[0]]
    filled = part.copy()
    cv2.fillConvexPoly(filled, np.array(_fixed(polygon - low)), colour, cv2.LINE_AA, _SHIFT)
    cv2.addWeighted(filled, 0.33, part, 0.67, 0, dst=part)


def _fixed(pixels):
    pixels = np.nan_to_num(pixels).clip(-_FAR_PIXEL, _FAR_PIXEL)
    return np.round(pixels * (1 << _SHIFT)).astype(np.int32).tolist()


def resized(camera, width, height):
    """The Camera with its image at another size and the intrinsics that go with it."""
    rows, columns = camera.image.shape[:2]
    if (rows, columns) == (height, width):
        return camera
    smaller = cv2.INTER_AREA if width < columns else cv2.INTER_LINEAR
    image = cv2.resize(camera.image, (width, height), interpolation=smaller)
    scale = np.array([width / columns, height / rows, 1.0])
    return replace(camera, image=image, intrinsics=camera.intrinsics * scale[:, None])


def draw_points(camera, points, radius=0):
    """The Camera with points (3, V) in ego drawn into its image, coloured by depth, near ones on top.

    radius: pixels around each point's own. What hides a point is not asked: one that lies beside its thing shows how far the
    calibration or the clocks are off.
    """
    seen = in_camera(points.T, camera)
    seen = seen[seen[:, 2] > NEAR_M]
    height, width = camera.image.shape[:2]
    places = to_pixels(seen, camera.intrinsics, camera.lens)
    inside = ((places >= 0) & (places < [width, height])).all(1)
    places, depth = np.floor(places[inside]).astype(int), seen[inside, 2]
    order = np.argsort(-depth, kind="stable")
    image, colours = camera.image.copy(), ramp(DEPTH_RAMP, depth, 0.0, FAR_M)
    if not radius:
        image[places[order, 1], places[order, 0]] = colours[order]
    else:
        for n in order:
            cv2.circle(image, places[n].tolist(), radius, colours[n].tolist(), -1, cv2.LINE_AA)
    return replace(camera, image=image)


def draw_camera(camera, boxes, width, height=None, note="", clouds=()):
    """(height, width, 3) uint8: the image at that size with boxes and the camera's name.

    clouds: points (3, V) in ego and the radius that each is drawn with.
    """
    height = height or round(width * camera.image.shape[0] / camera.image.shape[1])
    small = resized(camera, width, height)
    for points, radius in clouds:
        small = draw_points(small, points, radius)
    image = draw_boxes(small, boxes, thickness=1 if width < 700 else 2)
    letters, name = (9, camera.name) if width >= 300 else (7, camera.name.removeprefix("CAM_"))
    tag(image, fitting(name + note, width - 16, letters), (4, 4), letters)
    return image


def mosaic(cameras, boxes, width, gap=6, reference=None, names=(), clouds=()):
    """(H, width, 3) uint8: three cameras per row, each named; a plain field where one is missing.

    names: of the rig's cameras in its order, nuScenes' front ones before its back ones; without it only those that are there.
    reference: name of the camera in whose frame the BEV maps are, to be marked; None marks none. clouds: see draw_camera.
    """
    by_name = {camera.name: camera for camera in cameras}
    names = [name for name in names or by_name if name in by_name or len(by_name) > 2]
    columns = min(3, max(len(names), 1))
    cell = (width - gap * (columns - 1)) // columns
    height = max((round(cell * c.image.shape[0] / c.image.shape[1]) for c in cameras), default=cell * 9 // 16)
    rows = -(-max(len(names), 1) // columns)
    out = np.full((rows * height + (rows - 1) * gap, width, 3), PAGE, np.uint8)
    for place, name in enumerate(names):
        row, column = divmod(place, columns)
        top, left = row * (height + gap), column * (cell + gap)
        field = out[top : top + height, left : left + cell]
        if name in by_name:
            note = "  reference" if name == reference else ""
            field[:] = draw_camera(by_name[name], boxes, cell, height, note, clouds)
        else:
            field[:] = GROUND
            write(field, f"no {name}", (cell / 2, height / 2), colour=FAINT_INK, align="centre")
    return out
