"""Layer `map` -> masks in the BEV grid, drawn in the loader's threads as nuscenes-devkit draws its map masks.

The devkit's rules (`NuScenesMap.get_map_mask`, version 1.2): each shape is clipped to the patch first; a polygon's exteriors
are rounded to whole cells and filled with 1, then its holes with 0, whatever earlier polygons of its layer left there; lines
are truncated and two cells thick. A hole that the edge of the patch cuts is part of the exterior from then on: it erases
nothing, and its outline stays 1. Only what crosses the edge is clipped, by the few lines of NumPy in `_cut`.
"""

import cv2
import numpy as np

from common.map_layers import MAP_LAYERS
from common.map_shapes import EXTERIOR, HOLE, LINE

THICKNESS = 2  # cells, of lines


def map_masks(shapes, groups, mem_T_ego, grid_zx):
    """Masks of groups of map layers; a group's is 1 where one of its layers' is.

    Args:
        shapes: MapShapes. groups: list of K tuples of names of map layers. mem_T_ego: (4, 4), ego frame to voxel coordinates x,
            y, z. grid_zx: rows Z and columns X of the grid.
    Returns:
        (K, Z, X) uint8. In a grid of the ego frame they equal the devkit's mask of the same patch, rows and columns turned so
        that Z is forward and X to the right. The devkit's cell i is what lies nearest to i cells from the patch's edge, so that
        its masks lie half a cell behind and half a cell to the right of the grid's cells; this is kept.
    """
    rows, columns = grid_zx
    names = tuple(dict.fromkeys(name for group in groups for name in group))
    shapes = shapes.of_layers(names)
    canvas = _Canvas(_to_canvas(shapes.xy, mem_T_ego, columns), shapes.rings, (columns, rows))
    drawn = {name: canvas.draw(MAP_LAYERS.index(name)) for name in names}
    out = np.zeros((len(groups), rows, columns), np.uint8)
    for mask, group in zip(out, groups, strict=True):
        for name in group:
            mask |= drawn[name][::-1].T
    return out


def _to_canvas(xy, mem_T_ego, columns):
    """(n, 2) float64: forward and leftward cells from the right rear corner of the patch, as the devkit counts them.

    xy: (n, 2) ego metres, taken to lie on the ground, z = 0.
    """
    mem = xy.astype(np.float64) @ np.asarray(mem_T_ego, np.float64)[[0, 2], :2].T + np.asarray(mem_T_ego)[[0, 2], 3]
    # A voxel's coordinate is that of its middle, half a cell from its edge.
    return np.stack([mem[:, 1] + 0.5, columns - 0.5 - mem[:, 0]], 1)


def _clipped(start, step, far):
    """Where segments enter and leave the canvas: (s,) first and last share of each in [0, 1], and whether any of it lies there.

    By Liang and Barsky (1984). start, step: (s, 2). far: (2,) the canvas's last corner, its first being 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = -start / step, (far - start) / step
    low, high = np.fmin(low, high), np.fmax(low, high)
    is_still = step == 0  # along this axis the segment is on the canvas for good, or never
    is_inside = (start >= 0) & (start <= far)
    low = np.where(is_still, np.where(is_inside, -np.inf, np.inf), low).max(1)
    high = np.where(is_still, np.where(is_inside, np.inf, -np.inf), high).min(1)
    first, last = low.clip(0, 1), high.clip(0, 1)
    return first, last, (low < high) & (first < last)


class _Canvas:
    """Rings on a canvas whose rows run left and whose columns run forward, as those of the devkit's masks in the ego frame.

    points: (n, 2) column and row of each point. rings: of MapShapes. size: rows, columns.
    """

    def __init__(self, points, rings, size):
        self.size, self.far, self.points = size, np.array(size[::-1], float), points
        self.layers, self.kinds = rings["layer"], rings["kind"]
        self.ends = np.cumsum(rings["points"], dtype=np.int64)
        self.starts = self.ends - rings["points"]
        both = (np.minimum, np.maximum)
        least, most = (r.reduceat(points, self.starts) if len(rings) else np.empty((0, 2)) for r in both)
        self.is_near = ((most >= 0) & (least <= self.far)).all(1)
        self.crosses = np.stack([least < 0, most > self.far], 2)  # (r, axis, which end)
        self.rounded = np.rint(points.clip(-self.far, 2 * self.far)).astype(np.int32)
        self.segments, self.segment_layers = self._segments(rings)

    def _segments(self, rings):
        """(s, 2, 2) int32: what of the lines lies on the canvas, segment by segment, truncated; and (s,) their layers."""
        is_start = np.repeat((self.kinds == LINE) & self.is_near, rings["points"])
        is_start[self.ends - 1] = False
        start = self.points[is_start]
        step = self.points[np.flatnonzero(is_start) + 1] - start
        first, last, kept = _clipped(start, step, self.far)
        share = np.stack([first, last], 1)[kept]
        cut = start[kept, None] + share[..., None] * step[kept, None]
        return cut.clip(0, self.far).astype(np.int32), np.repeat(self.layers, rings["points"])[is_start][kept]

    def draw(self, layer):
        """(rows, columns) uint8 mask of one map layer."""
        mask = np.zeros(self.size, np.uint8)
        for exterior in np.flatnonzero((self.layers == layer) & (self.kinds == EXTERIOR) & self.is_near):
            filled, emptied = self._polygon(exterior)
            cv2.fillPoly(mask, filled, 1)
            cv2.fillPoly(mask, emptied, 0)
        lines = self.segments[self.segment_layers == layer]
        if len(lines):
            cv2.polylines(mask, list(lines), False, 1, THICKNESS)
        return mask

    def _polygon(self, exterior):
        """Rounded rings (n, 2) of a polygon on the canvas: a list of what is filled, and a list of its holes."""
        cut, emptied, number = [exterior], [], exterior + 1
        while number < len(self.kinds) and self.kinds[number] == HOLE:
            if self.crosses[number].any():
                cut.append(number)
            elif self.is_near[number]:
                emptied.append(self.rounded[self.starts[number] : self.ends[number]])
            number += 1
        if not self.crosses[exterior].any():
            return [self.rounded[self.starts[exterior] : self.ends[exterior]]], emptied
        rings = [_turned(self.points[self.starts[n] : self.ends[n]], n == exterior) for n in cut if self.is_near[n]]
        for axis, end in np.argwhere(self.crosses[exterior]):
            rings = _cut(rings, axis, self.far[axis] * end, 1 - 2 * end)
        return [np.rint(ring).astype(np.int32) for ring in rings], emptied


def _turned(ring, is_exterior):
    """A ring (n, 2) in the sense in which exteriors go round here, or holes, which go the other way."""
    x, y = ring.T
    area = np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:]) + x[-1] * y[0] - y[-1] * x[0]
    return ring if (area > 0) == is_exterior else ring[::-1]


def _cut(rings, axis, limit, sign):
    """Clip a polygon to the half plane sign * (p[axis] - limit) >= 0; it may fall into several.

    Where it crosses the limit it goes on along it, from each place where it leaves to the neighbouring one where it comes back;
    these come in pairs, as they lie along the limit, since the polygon is inside between the two of a pair and outside between
    pairs (Weiler and Atherton 1977, for one straight edge).

    Args:
        rings: list of (n, 2), exteriors and holes in opposite senses.
    Returns:
        List of (n, 2).
    """
    whole, chains = [], []
    for ring in rings:
        inside = sign * (ring[:, axis] - limit) >= 0
        if inside.all():
            whole.append(ring)
        elif inside.any():
            chains += _chains(ring, inside, axis, limit)
    along = 1 - axis
    places = sorted(
        [(c[0, along], n, 0) for n, c in enumerate(chains)] + [(c[-1, along], n, 1) for n, c in enumerate(chains)]
    )
    following = {}  # chain -> the one that it goes on in
    for one, other in zip(places[::2], places[1::2], strict=True):
        (_, enters, _), (_, leaves, _) = sorted((one, other), key=lambda place: place[2])
        following[leaves] = enters
    while following:
        number, parts = next(iter(following)), []
        while number in following:
            parts.append(chains[number])
            number = following.pop(number)
        whole.append(np.concatenate(parts))
    return whole


def _chains(ring, inside, axis, limit):
    """The parts of a ring that lie inside, each from where it enters to where it leaves: list of (n, 2).

    inside: (n,) bool, of its points, some but not all of them.
    """
    edges = np.flatnonzero(
        inside != np.concatenate([inside[1:], inside[:1]])
    )  # from a point to the next; they enter, leave, enter
    start, end = ring[edges], ring[(edges + 1) % len(ring)]
    crossings = start + ((limit - start[:, axis]) / (end[:, axis] - start[:, axis]))[:, None] * (end - start)
    crossings[:, axis] = limit
    out = []
    for enters in range(int(inside[edges[0]]), len(edges), 2):
        leaves = (enters + 1) % len(edges)
        first, last = edges[enters] + 1, edges[leaves] + 1
        own = [ring[first:last]] if first <= last else [ring[first:], ring[:last]]
        out.append(np.concatenate([crossings[enters, None], *own, crossings[leaves, None]]))
    return out
