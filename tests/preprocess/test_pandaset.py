"""PandaSet: made sequences, and the real part of one where it lies beside the checkout, held against its README's figures."""

import gzip
import json
import os
import pickle
import shutil

import numpy as np
import pytest

from common.record import BOXES_MEMBER, CAMERAS_MEMBER, decode_boxes, decode_cameras, decode_points, parse_sample
from preprocess.datasets.frame_pickle import read_frame
from preprocess.errors import SourceError
from preprocess.keyframe import build_record
from preprocess.motion import Track
from preprocess.plan import Options, Planner
from preprocess.splits import Part, read_split_file
from tests.conftest import SHARED, call_module
from tests.preprocess.pandaset_world import FRAMES, frame_pickle, write_sequence

SPEED = 5.0


@pytest.fixture(scope="session")
def sequences(made_once):
    """PandaSet's folder of one made sequence."""
    return made_once("pandaset-world", lambda out: write_sequence(out / "001", SPEED))


@pytest.fixture(scope="session")
def real():
    """The real part of sequence 002."""
    if not (SHARED / "pandaset").is_dir():
        pytest.skip("../shared/pandaset is not there")
    return SHARED / "pandaset"


def record(folder, frame, **options):
    """(sample.json, members) of a frame at 10 Hz."""
    planner = Planner(folder, "", Options(dataset="pandaset", **options))
    [scene] = planner.scenes
    tokens = planner.data.tokens(scene)
    recipe = planner.data.keyframe(scene, tokens, [f"s_{n:04d}" for n in range(len(tokens))], frame)
    members, _ = build_record(folder, recipe, planner.facts("train"))
    return parse_sample(members["sample.json"]), members


def rows_by_category(sample, members):
    rows = decode_boxes(members[BOXES_MEMBER], sample)
    return dict(zip(sample["boxes"]["instance"], rows, strict=True))


def test_a_made_frame_in_the_cars_own_axes(sequences):
    sample, members = record(sequences, 4, sweeps=3)
    boxes = rows_by_category(sample, members)
    assert set(boxes) == {"aaaa-parked", "bbbb-ahead", "dddd-walker"}  # the sibling named by its beginning went
    assert sorted(set(sample["boxes"]["category"])) == ["human.pedestrian", "vehicle.car"]
    assert sample["boxes"]["attributes"] == [["vehicle.parked"], ["vehicle.moving"], []]
    ahead, parked = boxes["bbbb-ahead"]["ego_lrt"], boxes["aaaa-parked"]["ego_lrt"]
    np.testing.assert_allclose(ahead[:3], [4.7, 1.9, 1.6])  # length, width, height
    np.testing.assert_allclose(ahead[3:].reshape(4, 4)[:3], [[1, 0, 0, 12], [0, 1, 0, 0], [0, 0, 1, 0.8]], atol=1e-9)
    np.testing.assert_allclose(parked[3:].reshape(4, 4)[:3], [[0, -1, 0, 8], [1, 0, 0, 10], [0, 0, 1, 0.8]], atol=1e-9)
    np.testing.assert_allclose(boxes["bbbb-ahead"]["velocity"], [SPEED, 0, 0], atol=1e-6)
    np.testing.assert_allclose(boxes["aaaa-parked"]["velocity"], 0, atol=1e-9)
    cameras = decode_cameras(members[CAMERAS_MEMBER], sample)
    np.testing.assert_allclose(cameras["ego_T_cam"][1][:3, 3], [0, 0, 1.6], atol=1e-6)  # not where it was 50 ms before
    np.testing.assert_allclose(cameras["global_T_ego"][1][:3, 3], [SPEED * 0.35, 0, 0], atol=1e-6)


def test_sweeps_of_a_made_frame_are_moved_to_it_and_the_car_is_cut_out(sequences):
    sample, members = record(sequences, 4, sweeps=3)
    assert [[f["lag_s"] for f in files] for files in sample["lidar"]] == pytest.approx(
        np.repeat([[0.0], [0.1], [0.2]], 2, axis=1)
    )
    for k in range(3):
        points = decode_points(members[f"lidar.{k:02d}.planes.zst"], "points")
        moved = -0.1 * SPEED * k
        x, lidar, time = points[0], points[-1], points[-2]
        np.testing.assert_allclose(x, [10 + moved, 12 + moved, 10 - 0.4 * SPEED, 30 + moved], atol=1e-4)
        assert lidar.tolist() == [0, 0, 0, 1]
        np.testing.assert_allclose(time, [-0.1, -0.05, -0.02, -0.03], atol=1e-4)
        assert (points[4] == -1).all() and points[3].tolist() == [1, 2, 3, 255]


def test_rate_and_parts_choose_keyframes(sequences, tmp_path):
    planner = Planner(sequences, "", Options(dataset="pandaset", hz=2))
    assert [f.facts["token"] for f in planner.scene_keyframes(planner.scenes[0])] == ["001-00", "001-05", "001-10"]
    assert planner.rig.keyframe_interval_s == 0.5
    parts = [Part("001", 0, 6)], [Part("001", 7, 10)]
    train, val = (planner.shards(s, part, 5)[0] for s, part in zip(("train", "val"), parts, strict=True))
    assert [f.key for f in train.keyframes] == ["001_0000", "001_0001"] and [f.key for f in val.keyframes] == [
        "001_0002"
    ]
    assert val.facts["frames"] == {"001": [7, 10]}
    with pytest.raises(SourceError, match="frames 6 to 9 hold no keyframe; there are 0 to 10"):
        planner.shards("val", [Part("001", 6, 9)], 1)
    with pytest.raises(SourceError, match="--hz 3: PandaSet's frames are at 10 Hz"):
        Planner(sequences, "", Options(dataset="pandaset", hz=3))


@pytest.mark.parametrize(
    "splits, why",
    [
        ({"train": [{"scene": "1", "frames": [0, 5]}], "val": [{"scene": "1", "frames": [5, 9]}]}, "names 1 twice"),
        ({"train": ["1"], "val": [{"scene": "1", "frames": [5, 9]}]}, "names 1 twice"),
        ({"train": [{"scene": "1", "frames": [9, 5]}]}, "is not a list of scene names, or of"),
        ({"train": [{"scene": "1", "frames": [0.5, 5]}]}, "is not a list of scene names, or of"),
    ],
)
def test_split_files_whose_parts_cannot_be(tmp_path, splits, why):
    (tmp_path / "s.json").write_text(json.dumps(splits))
    with pytest.raises(SourceError, match=why):
        read_split_file(tmp_path / "s.json")


def test_from_files_to_shards_that_hold_against_them(sequences, tmp_path):
    splits = {"train": [{"scene": "001", "frames": [0, 6]}], "val": [{"scene": "001", "frames": [7, 10]}]}
    (tmp_path / "s.json").write_text(json.dumps(splits))
    made = (
        "--dataset",
        "pandaset",
        "--dataroot",
        sequences,
        "--split-file",
        tmp_path / "s.json",
        "--hz",
        2,
        "--workers",
        1,
    )
    call_module("preprocess.run", *made, "--out", tmp_path / "a")
    verified = call_module("preprocess.verify", tmp_path / "a", "--against", sequences)
    assert "2 shards, 3 keyframes: all is well" in verified.stdout
    assert call_module("preprocess.show", tmp_path / "a").stdout.count("front_camera")
    partial = tmp_path / "partial"
    shutil.copytree(sequences, partial)
    (partial / "001/camera/left_camera/05.jpg").unlink()
    made = "--dataset", "pandaset", "--dataroot", partial, *made[4:], "--out", tmp_path / "b"
    failed = call_module("preprocess.run", *made, check=False)
    assert failed.returncode == 1 and "left_camera/05.jpg: sensor file is missing (sample 001_0001)" in failed.stderr
    assert "1 sample was left out" in call_module("preprocess.run", *made, "--on-error", "skip").stdout


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    "data, why",
    [
        (gzip.compress(pickle.dumps(Evil())), "posix.system"),
        (gzip.compress(pickle.dumps(np.zeros(3), 3)), "not a pickled DataFrame"),
        (gzip.compress(b"cnumpy\ndtype\n(S'V99999999999'\ntR."), "an array of 'V99999999999'"),
        (gzip.compress(b"\x80\x03}."), "not a pickled DataFrame"),
        (b"not gzip", "not a pickled DataFrame"),
        (frame_pickle({"x": np.arange(99.0)})[:-40], "cut short|not a pickled"),
    ],
    ids=["code", "array", "huge dtype", "dict", "not gzip", "cut short"],  # gzip's bytes tell the time
)
def test_pickles_that_ask_for_more_or_are_damaged_are_refused(data, why):
    with pytest.raises(SourceError, match=why):
        read_frame(data, "a.pkl.gz")


def test_columns_of_made_pickles_come_out_as_they_went_in():
    columns = {"a": np.arange(4.0), "b": np.array(["x", "y", "", "z"]), "c": np.arange(4), "d": np.arange(4) % 2 == 0}
    found = read_frame(frame_pickle(columns), "a.pkl.gz")
    assert list(found) == list(columns) and all((found[name] == columns[name]).all() for name in columns)


def test_poses_between_and_beyond_stated_ones():
    turned = np.eye(4)
    turned[:2, :2], turned[0, 3] = [[0, -1], [1, 0]], 2.0
    track = Track([0, 100], [np.eye(4), turned])
    half = track.at(50)
    np.testing.assert_allclose(half[:2, :2], np.sqrt(0.5) * np.array([[1, -1], [1, 1]]), atol=1e-12)
    np.testing.assert_allclose([half[0, 3], track.at(-50)[0, 3], track.at(150)[0, 3]], [1, -1, 3])
    assert (track.at(0) == np.eye(4)).all()


def _inside(xyz, box, length_width=(0, 1)):
    """How many points (3, n) of the ego frame lie in a box."""
    lrt = box["ego_lrt"]
    ego_T_box = lrt[3:].reshape(4, 4)
    local = ego_T_box[:3, :3].T @ (xyz - ego_T_box[:3, 3:])
    sides = lrt[[*length_width, 2]]
    return int((np.abs(local) <= sides[:, None] / 2).all(0).sum())


# Frame, camera, beginning of the uuid, pixel, depth, points of lidar 0 and 1, points with length and width swapped.
TABLE = [
    (0, "front_camera", "92b61b3d", (1453.6, 667.4), 12.55, (1424, 5782), 1628),
    (0, "front_left_camera", "8ea9144b", (1390.6, 597.1), 13.02, (732, 1), 401),
    (0, "front_right_camera", "e83d78e4", (380.8, 653.1), 5.24, (1744, 832), 935),
    (0, "left_camera", "b113987c", (653.0, 678.2), 12.99, (656, 0), 383),
    (0, "right_camera", "e1218900", (1321.8, 552.4), 18.50, (1253, 0), 662),
    (0, "back_camera", "082cccd6", (359.0, 610.1), 6.15, (1928, 0), 688),
    (55, "front_camera", "7ed5e06e", (1494.4, 687.6), 11.12, (1820, 8600), 5886),
    (55, "front_left_camera", "fa77ad4e", (729.8, 629.6), 13.26, (518, 0), 280),
    (55, "front_right_camera", "c184ac4f", (344.8, 533.9), 12.73, (16, 107), 101),
    (55, "left_camera", "68c4d27a", (929.7, 733.9), 7.28, (1049, 0), 555),
    (55, "right_camera", "9c698ef3", (1655.2, 535.5), 23.71, (0, 0), 0),
    (55, "back_camera", "082cccd6", (691.4, 560.0), 14.75, (887, 0), 195),
]


@pytest.mark.parametrize("frame", [0, 55])
def test_real_boxes_lie_where_they_should_in_images_and_points(real, frame):
    sample, members = record(real, frame, sweeps=1)
    boxes = rows_by_category(sample, members)
    cameras = decode_cameras(members[CAMERAS_MEMBER], sample)
    names = [camera["channel"] for camera in sample["cameras"]]
    points = decode_points(members["lidar.00.planes.zst"], "points").astype(np.float64)
    for own, camera, uuid, pixel, depth, counts, swapped in TABLE:
        found = [row for instance, row in boxes.items() if instance.startswith(uuid)]
        if own != frame or not found:
            assert own != frame or uuid == "c184ac4f"  # of lidar 1, whose sibling's box is kept
            continue
        [box], row = found, cameras[names.index(camera)]
        global_T_cam = row["global_T_ego"] @ row["ego_T_cam"]
        seen = np.linalg.inv(global_T_cam) @ np.append(box["global_xyz"], 1.0)
        uv = row["intrinsics"] @ seen[:3]
        np.testing.assert_allclose(uv[:2] / uv[2], pixel, atol=0.06)
        assert seen[2] == pytest.approx(depth, abs=0.006)
        for number, count in enumerate(counts):
            assert abs(_inside(points[:3, points[-1] == number], box) - count) <= 2  # float32 at a box's very side
        assert abs(_inside(points[:3], box, (1, 0)) - swapped) <= 2


def test_real_facts_of_the_whole_sequence(real):
    planner = Planner(real, "", Options(dataset="pandaset"))
    scene, data = planner.scenes[0], planner.data
    assert len(data.tokens(scene)) == 80
    sequence = data._of(scene)
    assert sum(len(sequence.boxes(n, "t")) for n in range(80)) == 7531
    np.testing.assert_allclose(sequence.ego.poses[79][:3, 3], (15.395, 15.316, -0.007), atol=5e-4)
    np.testing.assert_allclose(sequence.ego.poses[79][:2, 0], (0.708, 0.706), atol=6e-4)
    # A calibration is one: what is left of a camera's pose when the car's is taken out stays the same while it drives off.
    places = np.array([[sequence.camera(c, n, "t").ego_T_cam[:3, 3] for c in sequence.cameras] for n in range(80)])
    assert places.std(0).max() < 0.02
    sample, members = record(real, 0, sweeps=1)
    box = rows_by_category(sample, members)[next(i for i in sample["boxes"]["instance"] if i.startswith("e83d78e4"))]
    np.testing.assert_allclose(box["ego_lrt"][3:].reshape(4, 4)[:3, 3], (7.078, -3.290, 0.646), atol=6e-4)
    assert FRAMES < 80


@pytest.mark.slow
def test_the_real_part_from_files_to_a_picture_and_an_iou(real, tmp_path):
    """As preprocess/README.md has it: training on the first 3.5 seconds of a drive, evaluation on what follows."""
    splits = {"train": [{"scene": "002", "frames": [0, 35]}], "val": [{"scene": "002", "frames": [40, 55]}]}
    (tmp_path / "parts.json").write_text(json.dumps(splits))
    made = (
        "--dataset",
        "pandaset",
        "--dataroot",
        real,
        "--hz",
        2,
        "--split-file",
        tmp_path / "parts.json",
        "--workers",
        1,
    )
    call_module("preprocess.run", *made, "--out", tmp_path / "s")
    shards = [f"{tmp_path}/s/{split}-*.tar" for split in ("train", "val")]
    call_module("train.show", shards[1], "002_0011", "--out", tmp_path / "show.png")
    assert (tmp_path / "show.png").stat().st_size > 500_000
    words = (
        "--encoder_type effb0 --no_pretrained --res_scale 0.25 --latent_dim 16 --Z 50 --Y 2 --X 50 --device cpu".split()
    )
    words += (
        "--nworkers 1 --batch_size 1 --grad_acc 1 --max_iters 24 --val_freq 24 --val_batches all --run_name run".split()
    )
    words += ["--shards", shards[0], "--val_shards", shards[1], "--log_dir", tmp_path / "logs", "--ckpt_dir", tmp_path]
    call_module("train.run", *words)
    said = call_module("train.evaluate", tmp_path / "run", "--device", "cpu").stdout
    line = next(line for line in said.splitlines() if line.startswith("step 24;"))
    iou = float(line.split("IoU ")[1].split(";")[0])
    assert iou > 0.05  # 24 updates: that it learns what cars are there, not how well
