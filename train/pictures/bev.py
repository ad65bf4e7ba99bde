"""The scene from above, in metres around the car: rings, axes, points and boxes. Forward is up, left is left."""

from dataclasses import dataclass

import cv2
import numpy as np

from train.pictures.palette import (
    EGO,
    FAINT_INK,
    GROUND,
    HEIGHT_RAMP,
    HIGH_HEIGHT_M,
    INK,
    LINE,
    LOW_HEIGHT_M,
    MASKED,
    RADAR,
    colour_of,
    dimmed,
    ramp,
)
from train.pictures.text import write

EGO_LENGTH_M, EGO_WIDTH_M, EGO_REAR_M = 4.1, 1.7, 1.0  # of the nuScenes cars; the ego origin is the rear axle's middle
ARROW_S = 1.0  # arrows reach where a thing will be after this time
SLOWEST_M_S = 0.4  # slower ones get none
HATCH_PX = 7  # between two lines
_SHIFT = 4


@dataclass(frozen=True)
class Ground:
    """A square picture of size_px rows and columns that reaches reach_m from the ego origin to each side."""

    size_px: int
    reach_m: float

    @property
    def px_per_m(self):
        return self.size_px / (2 * self.reach_m)

    def to_pixels(self, xy):
        """(..., 2) ego x, y -> (..., 2) column and row; the first pixel reaches from 0 to 1."""
        return (self.reach_m - np.asarray(xy, float)[..., ::-1]) * self.px_per_m

    def of_pixels(self):
        """(size, size, 2) ego x, y of every pixel's middle."""
        at = self.reach_m - (np.arange(self.size_px) + 0.5) / self.px_per_m
        return np.stack(np.meshgrid(at, at, indexing="ij"), -1)

    def empty(self):
        """(size, size, 3) uint8 picture of nothing."""
        return np.full((self.size_px, self.size_px, 3), GROUND, np.uint8)


def _fixed(pixels):
    # A pixel's middle is a whole number to OpenCV.
    return np.round((np.asarray(pixels) - 0.5) * (1 << _SHIFT)).astype(np.int32).tolist()


def ring_step(ground):
    """Metres between rings: few enough to be read, fewer on a small picture."""
    most = min(6, ground.size_px / 60)
    return next(step for step in (1, 2, 5, 10, 20, 50, 100) if ground.reach_m / step <= most or step == 100)


def draw_rings(image, ground, labels=True):
    """Range rings with their metres, the two axes, and the car, in place."""
    step, centre = ring_step(ground), _fixed(ground.to_pixels([0.0, 0.0]))
    for n in range(1, int(ground.reach_m * 1.42 / step) + 1):
        radius = round(n * step * ground.px_per_m * (1 << _SHIFT))
        cv2.circle(image, centre, radius, LINE, 1, cv2.LINE_AA, _SHIFT)
    far = ground.reach_m
    for ends in (((far, 0), (-far, 0)), ((0, far), (0, -far))):
        start, end = _fixed(ground.to_pixels(ends))
        cv2.line(image, start, end, LINE, 1, cv2.LINE_AA, _SHIFT)
    if labels:
        _label_rings(image, ground, step)


def _label_rings(image, ground, step):
    letters = 7 if ground.size_px < 450 else 8
    for n in range(1, int(ground.reach_m / step) + 1):
        if n * step > 0.93 * ground.reach_m:
            continue
        column, row = ground.to_pixels([0.0, -n * step])
        write(
            image,
            f"{n * step} m" if n == 1 else f"{n * step}",
            (column - 2, row + letters + 4),
            letters,
            INK,
            "right",
            halo=GROUND,
        )
    if ground.size_px < 250:
        return  # no room for the names of the axes
    column, row = ground.to_pixels([ground.reach_m, 0.0])
    write(image, "x forward", (column + 5, row + letters + 5), letters, INK, halo=GROUND)
    column, row = ground.to_pixels([0.0, ground.reach_m])
    write(image, "y left", (column + 5, row - 5), letters, INK, halo=GROUND)


def draw_ego(image, ground):
    """The car as an arrowhead of its true size, at least large enough to be seen; in place."""
    front, back, side = EGO_LENGTH_M - EGO_REAR_M, -EGO_REAR_M, EGO_WIDTH_M / 2
    larger = max(1.0, 9 / (ground.px_per_m * EGO_LENGTH_M))
    shape = np.array([[front, 0], [back, side], [back + 0.9, 0], [back, -side]]) * larger
    cv2.fillPoly(image, [np.array(_fixed(ground.to_pixels(shape)))], EGO, cv2.LINE_AA, _SHIFT)


def draw_lidar(image, ground, lidar):
    """Lidar points (4, V) by their height over the ground, the highest on top, in place."""
    column, row = np.floor(ground.to_pixels(lidar[:2].T)).astype(int).T
    inside = (row >= 0) & (row < ground.size_px) & (column >= 0) & (column < ground.size_px)
    order = np.flatnonzero(inside)[np.argsort(lidar[2][inside], kind="stable")]
    image[row[order], column[order]] = ramp(HEIGHT_RAMP, lidar[2][order], LOW_HEIGHT_M, HIGH_HEIGHT_M)


def draw_radar(image, ground, radar):
    """Radar returns (5, R) as dots, each with an arrow of its velocity where it moves, in place."""
    starts = _fixed(ground.to_pixels(radar[:2].T))
    ends = _fixed(ground.to_pixels((radar[:2] + ARROW_S * radar[3:5]).T))
    moving = np.hypot(*radar[3:5]) > SLOWEST_M_S
    radius = round(max(1.3, 0.3 * ground.px_per_m) * (1 << _SHIFT))
    for start, end, moves in zip(starts, ends, moving, strict=True):
        cv2.circle(image, start, radius, RADAR, -1, cv2.LINE_AA, _SHIFT)
        if moves:
            _arrow(image, start, end, RADAR)


def _arrow(image, start, end, colour):
    length = np.hypot(end[0] - start[0], end[1] - start[1]) / (1 << _SHIFT)
    cv2.arrowedLine(image, start, end, colour, 1, cv2.LINE_AA, _SHIFT, min(0.4, 4 / max(length, 1)))


def footprints(boxes):
    """(n, 4, 2) ego x, y of the boxes' upper faces, going round from the left end of the front."""
    return boxes.corners()[:, [0, 1, 5, 4], :2]


def draw_boxes_above(image, ground, boxes):
    """Outlines by category with a line from the middle to the front, and the velocity where it is known, in place.

    Boxes of visibility 1 are dimmed, and drawn first.
    """
    polygons = ground.to_pixels(footprints(boxes))
    for n in np.argsort(boxes.visibility != 1, kind="stable"):
        colour = colour_of(boxes.categories[n])
        if boxes.visibility[n] == 1:
            colour = dimmed(colour)
        outline = np.array(_fixed(polygons[n]))
        cv2.polylines(image, [outline], True, colour, 1, cv2.LINE_AA, _SHIFT)
        middle, front = polygons[n].mean(0), polygons[n][:2].mean(0)
        cv2.line(image, *_fixed([middle, front]), colour, 1, cv2.LINE_AA, _SHIFT)
        speed = np.hypot(*boxes.velocity[n, :2])
        if speed > SLOWEST_M_S:  # False for NaN
            ahead = ground.to_pixels(boxes.ego_T_box[n, :2, 3] + ARROW_S * boxes.velocity[n, :2])
            _arrow(image, *_fixed([front, front + ahead - middle]), colour)


def hatch(image, mask, colour=MASKED):
    """Thin slanting lines over the pixels of a mask (H, W), in place."""
    rows, columns = np.nonzero(mask)
    on = (rows + columns) % HATCH_PX < 2
    image[rows[on], columns[on]] = colour


def from_above(view, ground, lidar=True, radar=True):
    """(size, size, 3) uint8: lidar by height, radar with velocity arrows, boxes, rings and the car."""
    image = ground.empty()
    draw_rings(image, ground, labels=False)
    if lidar and view.lidar is not None:
        draw_lidar(image, ground, view.lidar)
    draw_boxes_above(image, ground, view.boxes)
    if radar and view.radar is not None:
        draw_radar(image, ground, view.radar)
    draw_ego(image, ground)
    _label_rings(image, ground, ring_step(ground))
    missing = [
        name
        for name, on, points in (("lidar", lidar, view.lidar), ("radar", radar, view.radar))
        if on and points is None
    ]
    if missing:
        write(
            image, f"no {' and no '.join(missing)}", (ground.size_px / 2, ground.size_px - 10), 8, FAINT_INK, "centre"
        )
    return image
