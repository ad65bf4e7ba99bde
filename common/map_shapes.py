"""What layer `map` holds of one keyframe: polygons and lines around the car, and how they lie in two members.

shards/README.md is the specification. Coordinates are metres in the keyframe's ego frame turned level: x forward, y left, the
yaw of the ego pose alone, as nuscenes-devkit turns its map patches. A polygon is its exterior and, after it, its holes;
polygons follow one another in the order of the map's records. Drawn in this order, one map layer at a time, they give the
devkit's masks.
"""

from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from common.map_layers import MAP_LAYERS
from common.record import RecordError, decode_points, decode_rows, encode_points, encode_rows

MAP_LAYER = "map"
POINTS_MEMBER = "points.planes.zst"
RINGS_MEMBER = "rings.npy.zst"
MEMBERS = (RINGS_MEMBER, POINTS_MEMBER)

EXTERIOR, HOLE, LINE = range(3)
RING_DTYPE = np.dtype([("layer", "u1"), ("kind", "u1"), ("points", "<u4")])
DEFAULT_EXTENT_M = 80.0


@dataclass(frozen=True)
class MapShapes:
    """Rings and lines of one keyframe, in drawing order.

    rings: (r,) of RING_DTYPE: place of the layer in MAP_LAYERS, kind, number of points. xy: (n, 2) float32 metres, ring after
    ring; a ring does not repeat its first point.

    Raises ValueError where the numbers of points do not add up, or a layer or kind is unknown.
    """

    rings: np.ndarray
    xy: np.ndarray

    def __post_init__(self):
        if int(self.rings["points"].sum()) != len(self.xy):
            raise InputError(f"{len(self.xy)} points where the rings name {self.rings['points'].sum()}")
        if (self.rings["layer"] >= len(MAP_LAYERS)).any() or (self.rings["kind"] > LINE).any():
            raise InputError("a ring of an unknown layer or kind")
        if (self.rings["points"] == 0).any():
            raise InputError("a ring without points")

    def of_layers(self, names):
        """The MapShapes of these map layers alone."""
        wanted = np.isin(self.rings["layer"], [MAP_LAYERS.index(name) for name in names])
        return MapShapes(self.rings[wanted], self.xy[np.repeat(wanted, self.rings["points"])])


def encode_shapes(shapes):
    """MapShapes -> dict from member name to bytes."""
    return {RINGS_MEMBER: encode_rows(shapes.rings), POINTS_MEMBER: encode_points(shapes.xy.T)}


def decode_shapes(members):
    """MapShapes of a dict from member name to bytes. Raises RecordError for members that are missing or damaged."""
    try:
        rings = decode_rows(members[RINGS_MEMBER], RING_DTYPE, RINGS_MEMBER)
        points = decode_points(members[POINTS_MEMBER], POINTS_MEMBER, 2)
    except KeyError as error:
        raise RecordError(f"layer {MAP_LAYER} lacks {error}") from None
    try:
        return MapShapes(rings, np.ascontiguousarray(points.T))
    except ValueError as error:
        raise RecordError(f"{RINGS_MEMBER}: {error}") from None
