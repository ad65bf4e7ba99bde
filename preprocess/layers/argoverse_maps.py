"""Argoverse 2's vector map of a log -> the MapShapes around a keyframe, under nuScenes' names of layers.

A lane segment has two boundaries and no polygon: it is the left one and the right one backwards; a crossing its two edges, the
second backwards. Painted boundaries are lane dividers, each once, though both lanes beside it name it. Layers that Argoverse 2
does not have are empty.
"""

import json
from pathlib import Path

import shapely

from common.map_layers import MAP_LAYERS
from preprocess.errors import SourceError
from preprocess.layers.maps import MapLayer, VectorMap

UNPAINTED = ("NONE", "UNKNOWN")


class LogMap(VectorMap):
    """The map of one log. dataroot: folder with train, val or test in it. Raises SourceError for a map that is not there."""

    def __init__(self, dataroot, log):
        found = sorted(Path(dataroot).glob(f"*/{log}/map/log_map_archive_*.json"))
        if not found:
            raise SourceError(f"{dataroot}: no map of log {log} is in it, such as val/{log}/map/log_map_archive_….json")
        self.file = found[0]
        try:
            tables = json.loads(self.file.read_bytes())
            geometries = _geometries(tables)
        except (OSError, ValueError, KeyError, TypeError, shapely.errors.ShapelyError) as error:
            raise SourceError(
                f"{self.file}: not a map of Argoverse 2 ({type(error).__name__}: {error}); copy it anew"
            ) from None
        self.layers = {name: MapLayer.of(geometries.get(name, [])) for name in MAP_LAYERS}


def _geometries(tables):
    """layer -> its shapely geometries, in the order of the file."""
    lanes = tables["lane_segments"].values()
    areas = [_polygon(area["area_boundary"]) for area in tables["drivable_areas"].values()]
    dividers = {}
    for lane in lanes:
        for side in ("left", "right"):
            line = _xy(lane[f"{side}_lane_boundary"])
            if lane[f"{side}_lane_mark_type"] not in UNPAINTED and len(line) > 1:
                dividers.setdefault(min(tuple(line), tuple(reversed(line))), shapely.LineString(line))
    return {
        "drivable_area": areas,
        "lane": [_polygon(lane["left_lane_boundary"], lane["right_lane_boundary"]) for lane in lanes],
        "ped_crossing": [_polygon(cross["edge1"], cross["edge2"]) for cross in tables["pedestrian_crossings"].values()],
        "lane_divider": list(dividers.values()),
    }


def _xy(points):
    return [(float(point["x"]), float(point["y"])) for point in points]


def _polygon(boundary, other=()):
    """The Polygon of a boundary, or of one side and of the other one backwards; repaired where it is not valid."""
    shape = shapely.Polygon([*_xy(boundary), *reversed(_xy(other))])
    return shape if shape.is_valid else shapely.make_valid(shape)
