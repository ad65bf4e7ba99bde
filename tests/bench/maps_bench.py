"""Maps: from the expansion to the members of a keyframe, and from these to masks in the grid."""

import statistics
import time
from pathlib import Path

import numpy as np

from common.map_shapes import decode_shapes, encode_shapes
from preprocess.layers.maps import VectorMap
from tests.bench.measure import Row
from tests.conftest import SHARED
from train.classes import PRESETS, parse_classes
from train.data.maps import map_masks

KEYFRAMES = 100
EXTENT_M = 80.0
GRID_ZX = (200, 200)
MEM_T_EGO = np.array([[0, -2, 0, 99.5], [0, 0, 0, 0], [2, 0, 0, 99.5], [0, 0, 0, 1.0]])  # cells of 0.5 m around the car


def rows(world):
    """world: nuScenes folder of the generated world, whose maps stand in where there are no real ones."""
    real = SHARED / "realmap"
    maps = (real if real.is_dir() else Path(world)) / "maps" / "expansion"
    groups = [spec.maps for spec in parse_classes(PRESETS["bevfusion"])]
    extracted, drawn, sizes = [], [], []
    for vector_map, xy, yaw in _places([VectorMap(file) for file in sorted(maps.glob("*.json"))]):
        begun = time.thread_time()
        members = encode_shapes(vector_map.around(xy, yaw, EXTENT_M))
        extracted.append(time.thread_time() - begun)
        begun = time.thread_time()
        map_masks(decode_shapes(members), groups, MEM_T_EGO, GRID_ZX)
        drawn.append(time.thread_time() - begun)
        sizes.append(sum(map(len, members.values())))
    what = f"maps, {'real' if real.is_dir() else 'generated'}: "
    return [
        Row(f"{what}extraction per keyframe", 1e3 * statistics.median(extracted), goal="<= 10 ms"),
        Row(f"{what}six classes drawn", 1e3 * statistics.median(drawn), goal="<= 2 ms"),
        Row(f"{what}bytes per keyframe, the most", max(sizes) / 1e3, "kB", goal="<= 20 kB"),
    ]


def _places(maps):
    """Yield (map, global x and y, yaw in radians) of KEYFRAMES poses on lanes."""
    rng = np.random.default_rng(0)
    for number in range(KEYFRAMES):
        lanes = maps[number % len(maps)].layers["lane"].geometries
        lane = lanes[rng.integers(len(lanes))].centroid
        yield maps[number % len(maps)], np.array([lane.x, lane.y]), rng.uniform(-np.pi, np.pi)
