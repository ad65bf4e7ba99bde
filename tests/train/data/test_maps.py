"""Layer `map`: shapes around a keyframe, drawn as nuscenes-devkit draws them."""

import math

import cv2
import numpy as np
import pytest

from common.map_layers import LINE_LAYERS, MAP_LAYERS
from common.map_shapes import (
    LINE,
    MEMBERS,
    RING_DTYPE,
    MapShapes,
    decode_shapes,
    encode_shapes,
)
from common.record import RecordError
from tests.conftest import SHARED
from train.data.maps import map_masks

MEAN_PERCENT, MOST_PERCENT = 0.1, 0.2  # of pixels of a layer, over many patches and in any
GOLDEN = {"map_onenorth.npz": "singapore-onenorth", "map_boston.npz": "boston-seaport"}


def drawn(shapes, names, size_m, canvas):
    """Masks (layers, rows, columns) as the devkit lays them out: rows run left, columns forward. size_m, canvas: of the two."""
    (high, wide), (rows, columns) = size_m, canvas
    mem_T_ego = np.eye(4)
    mem_T_ego[0] = [0, -rows / high, 0, rows / 2 - 0.5]
    mem_T_ego[2] = [columns / wide, 0, 0, columns / 2 - 0.5]
    masks = map_masks(shapes, [(name,) for name in names], mem_T_ego, (columns, rows))
    return masks.transpose(0, 2, 1)[:, ::-1]


def reference(vector_map, name, xy, angle, size_m, canvas):
    """One layer's mask by the devkit's rules, shape by shape: clip to the turned patch, turn back, scale, fill or draw."""
    import shapely
    from shapely import affinity

    (high, wide), (rows, columns) = size_m, canvas
    xy = tuple(map(float, xy))
    patch = affinity.rotate(
        shapely.box(xy[0] - wide / 2, xy[1] - high / 2, xy[0] + wide / 2, xy[1] + high / 2), angle, origin=xy
    )
    mask = np.zeros(canvas, np.uint8)
    for shape in vector_map.layers[name].geometries:
        part = affinity.translate(affinity.rotate(shape.intersection(patch), -angle, origin=xy), -xy[0], -xy[1])
        part = part.intersection(shapely.box(-wide / 2, -high / 2, wide / 2, high / 2))
        part = affinity.scale(affinity.translate(part, wide / 2, high / 2), columns / wide, rows / high, origin=(0, 0))
        parts = [p for p in getattr(part, "geoms", [part]) if not p.is_empty]
        if name in LINE_LAYERS:
            for line in parts:
                cv2.polylines(mask, [np.array(line.coords, np.int32).reshape(-1, 2)], False, 1, 2)
            continue
        parts = [p for p in parts if p.geom_type == "Polygon"]
        cv2.fillPoly(mask, [np.array(p.exterior.coords).round().astype(np.int32) for p in parts], 1)
        holes = [np.array(h.coords).round().astype(np.int32) for p in parts for h in p.interiors]
        cv2.fillPoly(mask, holes, 0)
    return mask


def percent(one, other):
    return 100 * (one != other).mean()


@pytest.mark.parametrize("file", GOLDEN)
def test_real_masks_are_met(file, golden):
    pytest.importorskip("shapely", reason="Shapely, by which maps are read, comes with nuscenes-devkit")
    from preprocess.layers.maps import VectorMap

    arrays = golden(file)
    vector_map = VectorMap(SHARED / "realmap" / "maps" / "expansion" / f"{GOLDEN[file]}.json")
    off = {}
    for pose in arrays["poses"]:
        box, angle, canvas = (arrays[f"{pose}_{what}"] for what in ("patch_box", "patch_angle", "canvas_size"))
        names = [str(name) for name in arrays["layers"] if f"{pose}_{name}" in arrays]
        xy, canvas = box[:2], tuple(int(n) for n in canvas)
        shapes = decode_shapes(encode_shapes(vector_map.around(xy, math.radians(angle), 80.0)))
        for name, mask in zip(names, drawn(shapes, names, box[2:], canvas), strict=True):
            want = arrays[f"{pose}_{name}"]
            assert (reference(vector_map, name, xy, float(angle), box[2:], canvas) == want).all(), (pose, name)
            off.setdefault(name, []).append(percent(mask, want))
    assert all(np.mean(each) <= MEAN_PERCENT and max(each) <= MOST_PERCENT for each in off.values()), off


def test_a_line_that_leaves_the_patch_and_comes_back_is_drawn_twice():
    """The devkit raises there under shapely 2."""
    points = np.array([[-20, 0], [-60, 0], [-60, 10], [-20, 10]], np.float32)
    rings = np.array([(MAP_LAYERS.index("road_divider"), LINE, 4)], RING_DTYPE)
    mask = drawn(MapShapes(rings, points), ["road_divider"], (100, 100), (200, 200))[0]
    columns = np.flatnonzero(mask.any(0))
    assert columns.min() == 0 and columns.max() in (60, 61)  # from the patch's edge to 20 m behind the car
    rows = np.flatnonzero(mask[:, 20])
    assert set(rows) >= {100, 120} and len(rows) <= 6, rows  # at the car's own y, and 10 m to the left of it


@pytest.mark.parametrize("member", MEMBERS)
def test_shapes_that_do_not_add_up_are_record_errors(member):
    rings = np.array([(0, 0, 4)], RING_DTYPE)
    good = encode_shapes(MapShapes(rings, np.zeros((4, 2), np.float32)))
    other = encode_shapes(MapShapes(np.array([(0, 0, 5)], RING_DTYPE), np.zeros((5, 2), np.float32)))
    with pytest.raises(RecordError):
        decode_shapes({**good, member: other[member]})
    with pytest.raises(RecordError):
        decode_shapes({m: data for m, data in good.items() if m != member})
    with pytest.raises(RecordError):
        decode_shapes({**good, member: good[member][:-3]})
