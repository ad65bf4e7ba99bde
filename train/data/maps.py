"""Layer `map` -> masks in the BEV grid, drawn in the loader's threads as nuscenes-devkit draws its map masks.

The devkit's rules (`NuScenesMap.get_map_mask`, version 1.2): each shape is clipped to the patch first; a polygon's exteriors
are rounded to whole cells and filled with 1, then its holes with 0, whatever earlier polygons of its layer left there; lines
are truncated and two cells thick. Here nothing but lines is clipped, since OpenCV clips what it fills and clipping polygons
takes longer than drawing them. What clipping would change is drawn after: a hole that the edge of the patch cuts becomes part
of the exterior there, so that its outline stays 1.
"""

import cv2
import numpy as np

from common.map_shapes import EXTERIOR, HOLE, LINE, MAP_LAYERS

THICKNESS = 2  # cells, of lines
_FAR = 1 << 20  # cells


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
        self.size, self.far = size, np.array(size[::-1], float)
        self.layers, self.kinds = rings["layer"], rings["kind"]
        ends = np.cumsum(rings["points"], dtype=np.int64)
        starts = ends - rings["points"]
        least, most = (r.reduceat(points, starts) if len(rings) else np.empty((0, 2)) for r in (np.minimum, np.maximum))
        self.is_near = ((most >= -1) & (least <= self.far + 1)).all(1)
        self.is_cut = ((least < 0) | (most > self.far)).any(1)
        following = np.arange(1, len(points) + 1)
        following[ends - 1] = starts
        step = points[following] - points
        first, last, is_seen = _clipped(points, step, self.far)
        is_closing = np.zeros(len(points), bool)
        is_closing[ends - 1] = True
        is_line = np.repeat(self.kinds == LINE, rings["points"])
        self.segments = self._segments(points, step, first, last, is_seen & is_line & ~is_closing)
        self.segment_layers = np.repeat(self.layers, rings["points"])[is_seen & is_line & ~is_closing]
        self._round(points, step, first, last, is_seen & ~is_line, ends)

    def _segments(self, start, step, first, last, kept):
        """(s, 2, 2) int32: what of the lines lies on the canvas, truncated."""
        share = np.stack([first, last], 1)[kept]
        cut = start[kept, None] + share[..., None] * step[kept, None]
        return cut.clip(0, self.far).astype(np.int32)

    def _round(self, points, step, first, last, is_seen, ends):
        """Round the rings, with a corner more wherever one crosses the canvas's edge, as clipping would make it.

        Without it the rounding of a corner far away would turn the whole edge that leads there.
        """
        enters, leaves = np.flatnonzero(is_seen & (first > 0)), np.flatnonzero(is_seen & (last < 1))
        more = np.concatenate([points[n] + share[n, None] * step[n] for n, share in ((enters, first), (leaves, last))])
        after = (
            np.concatenate([enters, leaves]) + 1
        )  # np.insert keeps their order: what enters comes before what leaves
        order = np.argsort(after, kind="stable")
        self.rounded = np.rint(np.insert(points, after[order], more[order], axis=0)).clip(-_FAR, _FAR).astype(np.int32)
        self.ends = ends + np.searchsorted(after[order], ends, side="right")
        self.starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    def draw(self, layer):
        """(rows, columns) uint8 mask of one map layer."""
        mask = np.zeros(self.size, np.uint8)
        for number in np.flatnonzero((self.layers == layer) & self.is_near & (self.kinds != LINE)):
            ring = self.rounded[self.starts[number] : self.ends[number]]
            if self.kinds[number] == EXTERIOR:
                cv2.fillPoly(mask, [ring], 1)
            elif self.kinds[number] == HOLE:
                cv2.fillPoly(mask, [ring], 0)
                if self.is_cut[number]:
                    cv2.polylines(mask, [ring], True, 1)
        lines = self.segments[self.segment_layers == layer]
        if len(lines):
            cv2.polylines(mask, list(lines), False, 1, THICKNESS)
        return mask
