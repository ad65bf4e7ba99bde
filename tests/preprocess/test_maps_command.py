"""preprocess.maps on the generated world: its streets come back, and what is wrong is said in one line."""

import shutil
import sys

import numpy as np
import pytest

from common.map_shapes import MAP_LAYER, MEMBERS, decode_shapes
from preprocess.layers.depth import MEMBER as DEPTH
from preprocess.layers.maps import VectorMap
from preprocess.verify import verify
from tests.conftest import call_module
from train.data.maps import map_masks
from train.data.sources import SourceConfig, open_source
from train.data.sources.layered import with_layers


@pytest.fixture(scope="module")
def mapped(small_world, small_shards, tmp_path_factory):
    """A copy of the small shards with layer map."""
    shards = shutil.copytree(small_shards, tmp_path_factory.mktemp("mapped") / "shards")
    said = call_module("preprocess.maps", "--shards", shards, "--dataroot", small_world, "--workers", 1)
    assert "layer map: 12 keyframes at" in said.stdout and "note" not in said.stderr
    return shards


def test_every_ego_stands_on_the_road(mapped):
    assert verify(mapped)[0] == []
    source = with_layers(open_source(mapped, split="train"), {MAP_LAYER: MEMBERS}, SourceConfig(), open_source)
    mem_T_ego = np.array([[0, -2, 0, 99.5], [0, 0, 0, 0], [2, 0, 0, 99.5], [0, 0, 0, 1]])
    for number in range(len(source)):
        members = source.read(number, [(MAP_LAYER, member) for member in MEMBERS])
        assert sum(map(len, members.values())) < 20_000
        shapes = decode_shapes({name: data for (_, name), data in members.items()})
        road, walk = map_masks(shapes, [("drivable_area",), ("walkway",)], mem_T_ego, (200, 200))
        assert road[100, 100] == 1 and walk[100, 100] == 0 and 0.05 < road.mean() < 0.6


def test_other_maps_are_said(mapped, small_world, tmp_path):
    shards = shutil.copytree(mapped, tmp_path / "shards")
    refused = call_module("preprocess.maps", "--shards", shards, "--dataroot", tmp_path, "--workers", 1, check=False)
    assert refused.returncode == 1 and "Map expansion" in refused.stderr and len(refused.stderr.splitlines()) <= 2
    world = shutil.copytree(small_world / "maps", tmp_path / "world" / "maps").parent
    for file in (world / "maps" / "expansion").iterdir():
        shifted = VectorMap(file).file.read_text().replace('"x": ', '"x": 9')
        file.write_text(shifted)
    arguments = ("--shards", shards, "--dataroot", world, "--workers", 1, "--overwrite")
    said = call_module("preprocess.maps", *arguments)
    assert "egos lie on the drivable area" in said.stderr
    said = call_module("preprocess.maps", "--shards", shards, "--dataroot", world, "--extent", 40, check=False)
    assert said.returncode == 1 and "--overwrite" in said.stderr


def test_shapely_that_is_missing_is_said(small_shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "preprocess.layers.maps", None)
    said = call_module("preprocess.maps", "--shards", small_shards, "--dataroot", tmp_path, "--workers", 1, check=False)
    assert said.returncode == 1 and said.stderr == "error: reading maps needs Shapely: pip install 'shapely>=2'\n"


def test_depth_is_what_the_lidar_gives(small_shards, tmp_path):
    shards = shutil.copytree(small_shards, tmp_path / "shards")
    call_module("preprocess.layer", "depth", "--shards", shards, "--workers", 1)
    assert verify(shards)[0] == []
    assert DEPTH == "depth.planes.zst"
    said = call_module("preprocess.layer", "mine", "--shards", shards, check=False)
    assert said.returncode == 1 and "--make package.module:function" in said.stderr
