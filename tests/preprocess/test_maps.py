"""Maps as nuscenes-devkit reads them, oddities and all: what preprocess.maps keeps gives the devkit's own masks."""

import json
import math

import numpy as np
import pytest
from nuscenes.map_expansion.map_api import NuScenesMap

from common.map_layers import MAP_LAYERS
from preprocess.errors import SourceError
from preprocess.layers.maps import VectorMap
from preprocess.synth.folder import Folder
from tests.train.data.test_maps import MEAN_PERCENT, MOST_PERCENT, drawn, percent


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """nuScenes folder, tables and maps alone, whose maps have holes, invalid polygons and lines that leave a patch twice."""
    folder = Folder(tmp_path_factory.mktemp("maps"), "v1.0-mini", 3, tables_only=True)
    for number, name in enumerate(("scene-0061", "scene-0553", "scene-0655", "scene-0103")):
        folder.add_scene(number, name, 1, 0)
    folder.close()
    for file in (folder.out / "maps" / "expansion").iterdir():
        file.write_text(json.dumps(with_oddities(json.loads(file.read_text()))))
    return folder.out


def with_oddities(tables):
    """A generated map with what real ones have besides: islands in the drivable area, and a lane that is a bow tie."""
    middle = np.mean([[n["x"], n["y"]] for n in tables["node"]], axis=0)

    def nodes(name, points):
        tokens = [f"{name} {k}" for k in range(len(points))]
        tables["node"] += [{"token": t, "x": x, "y": y} for t, (x, y) in zip(tokens, points, strict=True)]
        return tokens

    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    hole = {"node_tokens": nodes("hole", middle + 20 * square)}
    small = {"node_tokens": nodes("small", middle + 30 * np.array([1, 0]) + 3 * square)}
    plaza = {"token": "plaza", "exterior_node_tokens": nodes("plaza", middle + 70 * square), "holes": [hole, small]}
    bow = {"token": "bow", "exterior_node_tokens": nodes("bow", middle + 9 * square[[0, 2, 1, 3]]), "holes": []}
    tables["polygon"] += [plaza, bow]
    tables["drivable_area"].append({"token": "plaza area", "polygon_tokens": ["plaza"]})
    tables["walkway"].append({"token": "plaza walk", "polygon_token": "plaza"})
    tables["lane"].append({**tables["lane"][0], "token": "bow lane", "polygon_token": "bow"})
    return tables


@pytest.mark.parametrize("location", ["singapore-onenorth", "boston-seaport"])
def test_generated_masks_equal_the_devkits(generated, location):
    devkit = NuScenesMap(str(generated), location)
    vector_map = VectorMap(generated / "maps" / "expansion" / f"{location}.json")
    rng = np.random.default_rng(1)
    places = np.array([[node["x"], node["y"]] for node in devkit.node])
    off = []
    for _ in range(25):
        xy, angle = places[rng.integers(len(places))] + rng.uniform(-10, 10, 2), rng.uniform(-180, 180)
        want = devkit.get_map_mask((*xy, 100, 100), angle, list(MAP_LAYERS), (200, 200))
        shapes = vector_map.around(xy, math.radians(angle), 80.0)
        off.append(
            [percent(a, b) for a, b in zip(drawn(shapes, MAP_LAYERS, (100, 100), (200, 200)), want, strict=True)]
        )
    off = np.array(off)
    assert (off.mean(0) <= MEAN_PERCENT).all() and off.max() <= MOST_PERCENT, dict(
        zip(MAP_LAYERS, off.max(0), strict=True)
    )


def test_other_maps_are_refused_in_one_line(tmp_path):
    with pytest.raises(SourceError, match=r"none\.json.*Map expansion"):
        VectorMap(tmp_path / "none.json")
    (tmp_path / "old.json").write_text('{"version": "1.0"}')
    with pytest.raises(SourceError, match=r"old\.json.*version 1\.3"):
        VectorMap(tmp_path / "old.json")
