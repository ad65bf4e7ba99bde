"""A rig with two lidars and cameras of other names: written, verified, shown, and made into batches that tell lidars apart."""

import dataclasses

import numpy as np
import pytest
import torch

from common.record import RecordError, decode_points, encode_points, lidar_member
from common.rig import NUSCENES, Camera, Distortion, Field
from common.stores import open_store
from preprocess.options import Options
from preprocess.plan import Planner
from preprocess.shard_writer import write_shard
from preprocess.verify import verify
from tests.conftest import call_module
from tests.index_files import load_index
from train.data import compile_data
from train.data.points import lidar_points
from train.pictures.view import view_of_record
from train.samples import Samples

CONF = {"final_dim": (28, 50), "resize_lim": [1.0, 1.0], "crop_offset": 0}
NAMES = ("left", "ahead", "right", "astern")


def renamed(planner):
    """A Rig of four of nuScenes' cameras under other names and of two lidars."""
    cameras = [Camera(name, reference=name == "astern") for name in NAMES]
    cameras[0] = Camera("left", distortion=Distortion("kannala_brandt", (0.1, 0.0, -0.2, 0.0)))
    changed = {"lidars": ("front_lidar", "rear_lidar"), "clock": "rear_lidar", "dataset": "Two lidars"}
    return dataclasses.replace(planner.rig, cameras=tuple(cameras), keyframe_interval_s=0.4, **changed)


@pytest.fixture(scope="module")
def two_lidars(small_world, tmp_path_factory):
    """Folder of one val shard; every sweep of the second lidar is the first's, 10 ms earlier."""
    out = tmp_path_factory.mktemp("two-lidars")
    planner = Planner(small_world, "v1.0-mini", Options(sweeps=2))
    rig = renamed(planner)
    [recipe] = planner.shards("val", ["scene-0103"], 1)
    recipe.facts = {**recipe.facts, "rig": rig.as_dict(), "recipe_sha256": "0" * 64}
    for frame in recipe.keyframes:
        frame.cameras = [dataclasses.replace(c, channel=n) for c, n in zip(frame.cameras, NAMES, strict=False)]
        for files in frame.lidar:
            [file] = files
            second = {"channel": "front_lidar", "timestamp": file.timestamp - 10_000, "lag": file.lag + 0.01}
            files[:] = [dataclasses.replace(file, **second), dataclasses.replace(file, channel="rear_lidar")]
    write_shard(recipe, small_world, open_store(str(out)))
    return out


def test_the_shard_verifies_and_is_shown(two_lidars):
    problems, keyframes, _ = verify(two_lidars / "val-000.tar")
    assert (problems, keyframes) == ([], 3)
    shown = call_module("preprocess.show", two_lidars / "val-000.tar").stdout
    assert "Two lidars" in shown and "4 cameras, 2 lidars, 5 radars" in shown and "lens distortion" in shown
    assert "0.4 s" in shown and "rear_lidar" in shown


def test_points_carry_their_lidar_and_its_lag(two_lidars):
    _, loader = compile_data(
        None,
        two_lidars / "val-000.tar",
        CONF,
        None,
        (-25, 25, -5, 5, -25, 25),
        (10, 2, 10),
        1,
        0,
        nsweeps=2,
        refcam_id=-1,
    )
    assert loader.reader.rig.lidars == ("front_lidar", "rear_lidar")
    for batch in loader:
        assert batch.cams[0][0] == "astern" and set(batch.cams[0]) == set(NAMES)
        assert batch.facts[0][0].rig is not None and batch.lidar_index.dtype == torch.int16
        assert batch.lidar_index.shape == batch.lidar_data.shape[:2] + batch.lidar_data.shape[3:]
        count = int(batch.num_lidar[0, 0])
        index, lag = batch.lidar_index[0, 0, :count], batch.lidar_extra[0, 0, 2, :count]
        counts = [(index == n).sum().item() for n in (0, 1)]
        assert counts[0] == counts[1] > 0 and sum(counts) == count
        torch.testing.assert_close(lag[index == 0], lag[index == 1] + 0.01)
        assert (lag[index == 1].unique() >= 0).all()
        assert batch.to("cpu").lidar_index is batch.lidar_index or torch.equal(
            batch.to("cpu").lidar_index, batch.lidar_index
        )


def test_one_lidar_has_no_index(small_shards):
    _, loader = compile_data(None, small_shards / "val-*.tar", CONF, None, (-25, 25, -5, 5, -25, 25), (10, 2, 10), 2, 0)
    assert next(iter(loader)).lidar_index is None


def test_pictures_take_the_cameras_of_the_rig(two_lidars):
    samples = Samples([two_lidars / "val-000.tar"])
    view = view_of_record(samples.keys[0], samples.members(0))
    assert view.camera_names == NAMES and [camera.name for camera in view.cameras] == list(NAMES)
    assert view.lidar.shape[0] == 4 and view.rig.keyframe_interval_s == 0.4


def test_a_lidar_that_the_sweep_does_not_have_is_refused(two_lidars):
    rig = load_index(two_lidars / "val-000.tar").rig
    file = {"channel": "rear_lidar", "lag_s": 0.0}
    cloud = np.zeros((6, 3), np.float32)
    cloud[5] = 1
    points, index, count = lidar_points({lidar_member(0): encode_points(cloud)}, {"lidar": [[file]]}, rig, 1)
    assert index.tolist() == [1, 1, 1] and count == 3 and points.shape == (6, 3)
    for number in (0, 2, -1, 0.5, 1e30):
        cloud[5, 1] = number
        with pytest.raises(RecordError, match="a lidar that the sweep does not have"):
            lidar_points({lidar_member(0): encode_points(cloud)}, {"lidar": [[file]]}, rig, 1)


def test_further_fields_of_a_point_are_passed_over():
    rig = dataclasses.replace(NUSCENES, lidar_fields=(*NUSCENES.lidar_fields, Field("offset", "s")))
    cloud = np.arange(12, dtype=np.float32).reshape(6, 2)
    members = {lidar_member(0): encode_points(cloud)}
    points, index, _ = lidar_points(members, {"lidar": [{"channel": "LIDAR_TOP", "lag_s": 0.5}]}, rig, 1)
    np.testing.assert_array_equal(points, [*decode_points(members[lidar_member(0)], "x")[:5], [0.5, 0.5]])
    assert index is None
