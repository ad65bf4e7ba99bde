"""The generated world: the devkit loads it, its sensors agree, and the same seed gives the same bytes."""

import numpy as np
import pytest

from preprocess.synth.folder import Folder
from tests.conftest import run_module


def make(out, seed=3):
    folder = Folder(out, "v1.0-mini", seed, image_hw=(180, 320))
    folder.add_scene(0, "scene-0061", 2, 1)
    folder.add_scene(1, "scene-0103", 2, 1)
    folder.close()
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"))


def test_same_seed_same_bytes(world, tmp_path):
    other = make(tmp_path / "again")
    files = sorted(p.relative_to(world) for p in world.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((world / f).read_bytes() == (other / f).read_bytes() for f in files)


def test_devkit_finds_the_lidar_points_inside_their_boxes(world):
    from nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    nusc = NuScenes("v1.0-mini", str(world), verbose=False)
    compared = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            stated = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            box.wlh += 0.12  # range noise leaves the surface
            inside = points_in_box(box, points).sum()
            # Ground points under the enlarged box are inside too.
            assert stated * 0.8 <= inside <= stated * 1.2 + 12
            compared += stated > 0
        radar = RadarPointCloud.from_file(nusc.get_sample_data_path(sample["data"]["RADAR_FRONT"]))
        assert radar.points.shape[0] == 18
    assert compared > 20


def test_world_becomes_shards(world, tmp_path):
    out = tmp_path / "shards"
    run_module(*["preprocess.run", "--version", "v1.0-mini", "--dataroot", world, "--out", out, "--workers", 1])
    assert sorted(p.name for p in out.glob("*.tar")) == ["train-000.tar", "val-000.tar"]


def test_visibility_counts_pixels():
    from preprocess.synth.cameras import count_pixels

    def square(low, high):
        return np.array([[low, low], [high, low], [high, high], [low, high]], float)

    faces = [(1, 0, square(80, 160)), (0, 0, square(80, 160)), (2, 0, square(400, 480))]
    counts = count_pixels(faces, (800, 800), 3)
    assert counts[1, 0] == 0 and counts[1, 1] > 0  # wholly behind box 0
    assert (counts[[0, 2], 0] == counts[[0, 2], 1]).all()
