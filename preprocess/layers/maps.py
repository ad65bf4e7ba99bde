"""nuScenes' map expansion (version 1.3) -> the MapShapes around a keyframe."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import shapely

from common.map_layers import LINE_LAYERS, MAP_LAYERS, POLYGON_LAYERS
from common.map_shapes import EXTERIOR, HOLE, LINE, RING_DTYPE, MapShapes
from preprocess.errors import SourceError

POLYGON, LINESTRING = 3, 1  # shapely.get_type_id
WHERE = "download 'Map expansion pack (v1.3)' from nuscenes.org and unpack it into maps/ of the nuScenes folder"


@dataclass(frozen=True)
class MapLayer:
    """One layer's geometries, in the order of the map's records; tree: STRtree of them."""

    geometries: np.ndarray
    tree: shapely.STRtree

    @classmethod
    def of(cls, geometries):
        array = np.array(geometries, dtype=object)
        return cls(array, shapely.STRtree(array))


class VectorMap:
    """The map of one location. file: the JSON of the expansion, maps/expansion/<location>.json.

    As nuscenes-devkit has it, a polygon that is not valid is left out; one of the drivable area, which the devkit keeps, is
    repaired, since intersecting it can fail.

    Raises SourceError: no such file, or one that is not of version 1.3's form.
    """

    def __init__(self, file):
        self.file = Path(file)
        try:
            tables = json.loads(self.file.read_bytes())
        except FileNotFoundError:
            raise SourceError(f"{self.file}: there is no such map; {WHERE}") from None
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.file}: not readable ({error}); {WHERE}") from None
        try:
            nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
            polygons = {row["token"]: row for row in tables["polygon"]}
            lines = {row["token"]: row for row in tables["line"]}
            self.layers = {name: MapLayer.of(_polygons(tables, name, polygons, nodes)) for name in POLYGON_LAYERS}
            self.layers |= {name: MapLayer.of(_lines(tables, name, lines, nodes)) for name in LINE_LAYERS}
        except (KeyError, TypeError, ValueError, IndexError, shapely.errors.ShapelyError) as error:
            raise SourceError(
                f"{self.file}: not a map of version 1.3 ({type(error).__name__}: {error}); {WHERE}"
            ) from None

    @cached_property
    def drivable(self):
        """The drivable area, prepared for questions about points."""
        geometries = self.layers["drivable_area"].geometries
        shapely.prepare(geometries)
        return geometries

    def is_drivable(self, xy):
        """Whether global points (n, 2) lie on the drivable area: (n,) bool."""
        points = shapely.points(np.atleast_2d(xy))
        return np.array([bool(shapely.intersects(self.drivable, point).any()) for point in points])

    def around(self, xy, yaw_rad, extent_m):
        """MapShapes of the square |x|, |y| <= extent_m of the ego frame at global (x, y), turned by yaw."""
        cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
        global_R_ego = np.array([[cos, -sin], [sin, cos]])
        reach = extent_m * (abs(cos) + abs(sin))  # of the turned square, along the map's axes
        box = shapely.box(xy[0] - reach, xy[1] - reach, xy[0] + reach, xy[1] + reach)
        rings, coordinates = [], []
        for name, layer in self.layers.items():
            found = layer.geometries[np.sort(layer.tree.query(box))]
            if not len(found):
                continue
            turned = shapely.transform(found, lambda points: (points - xy) @ global_R_ego)
            clipped = shapely.clip_by_rect(turned, -extent_m, -extent_m, extent_m, extent_m)
            split = _line_parts if name in LINE_LAYERS else _rings
            kinds, counts, points = split(clipped)
            own = np.empty(len(kinds), RING_DTYPE)
            own["layer"], own["kind"], own["points"] = MAP_LAYERS.index(name), kinds, counts
            rings.append(own)
            coordinates.append(points)
        if not rings:
            return MapShapes(np.empty(0, RING_DTYPE), np.empty((0, 2), np.float32))
        return MapShapes(np.concatenate(rings), np.concatenate(coordinates).astype(np.float32))


def _polygons(tables, name, polygons, nodes):
    """shapely Polygons of one layer; several to a record of the drivable area."""
    out = []
    for row in tables[name]:
        for token in row["polygon_tokens"] if name == "drivable_area" else (row["polygon_token"],):
            polygon = polygons[token]
            holes = [[nodes[node] for node in hole["node_tokens"]] for hole in polygon["holes"]]
            shape = shapely.Polygon([nodes[node] for node in polygon["exterior_node_tokens"]], [h for h in holes if h])
            if name == "drivable_area" and not shape.is_valid:
                shape = shapely.make_valid(shape)
            if shape.is_valid and not shape.is_empty:
                out.append(shape)
    return out


def _lines(tables, name, lines, nodes):
    points = ([nodes[node] for node in lines[row["line_token"]]["node_tokens"]] for row in tables[name])
    return [shapely.LineString(line) for line in points if line]


def _rings(geometries):
    """Kinds (r,), numbers of points (r,) and points (n, 2) of polygons: of each its exterior, then its holes."""
    parts = shapely.get_parts(geometries)
    rings, part = shapely.get_rings(parts[shapely.get_type_id(parts) == POLYGON], return_index=True)
    kinds = np.full(len(rings), HOLE)
    kinds[np.unique(part, return_index=True)[1]] = EXTERIOR
    counts = shapely.get_num_coordinates(rings)
    points = shapely.get_coordinates(rings)
    is_repeated = np.zeros(len(points), bool)
    is_repeated[np.cumsum(counts) - 1] = True  # a ring ends where it begins
    return kinds, counts - 1, points[~is_repeated]


def _line_parts(geometries):
    """Kinds (r,), numbers of points (r,) and points (n, 2) of lines."""
    parts = shapely.get_parts(geometries)
    parts = parts[shapely.get_type_id(parts) == LINESTRING]
    return np.full(len(parts), LINE), shapely.get_num_coordinates(parts), shapely.get_coordinates(parts)
