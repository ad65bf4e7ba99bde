"""Shards of one's own data: the page's program, what it makes, what is refused, and how it goes on."""

import hashlib
import os
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg

from common.record import BOXES_MEMBER, CAMERAS_MEMBER, decode_boxes, decode_cameras, decode_points, parse_sample
from common.rig import Camera, Distortion, Field, Radar, Rig
from preprocess.errors import SourceError
from preprocess.writer import Box, CameraImage, PointCloud, ShardWriter
from tests.conftest import call_module
from tests.index_files import load_index

STEP = 200_000
RIG = Rig(
    dataset="toy",
    licence="",
    cameras=(Camera("a"), Camera("b", reference=True)),
    lidars=("top", "side"),
    radars=(Radar("r"),),
    radar_clock="r",
    radar_fields=(Field("x", "m"), Field("y", "m"), Field("z", "m"), Field("speed", "m/s")),
    clock="top",
    keyframe_interval_s=0.2,
    categories=("vehicle.car",),
)
K = np.array([[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]])
JPEG = simplejpeg.encode_jpeg(np.full((48, 64, 3), 90, np.uint8))


def at(x=0.0, y=0.0, z=0.0):
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


def cloud(*xyz, **more):
    return PointCloud(dict(zip("xyz", np.array(xyz, float).T.reshape(3, -1), strict=True)) | more, at(0, 0, 2))


def frame(n=0, **changed):
    """Arguments of Scene.add for keyframe n."""
    arguments = {
        "timestamp_us": 10**12 + STEP * n,
        "global_T_ego": at(100.0 + n),
        "images": {"a": CameraImage(JPEG, K, at(1)), "b": CameraImage(JPEG, K, at(2))},
        "lidar": [{"top": cloud((5, 0, 0), (0.5, 0.5, 0)), "side": cloud((7, 1, 0), intensity=np.array([9.0]))}],
        "radar": [{"r": cloud((20, 2, 0), speed=np.array([-3.0]))}],
        "boxes": [Box("vehicle.car", (110.0 + n, 0, 1), (2, 4, 1.5), yaw=0.5, instance="x")],
    }
    return arguments | changed


def write(out, scenes=("one", "two"), rig=RIG, count=2, **options):
    with ShardWriter(out, rig, shard_mb=0.005, min_distance_m=1.0, **options) as writer:
        for name in (name for name in scenes if name not in writer):
            with writer.scene(name) as scene:
                for n in range(count):
                    scene.add(**frame(n))
    return out


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def records(folder, name="train-000"):
    index, data = load_index(folder / f"{name}.tar"), (folder / f"{name}.tar").read_bytes()
    for row in range(len(index.keys)):
        yield {
            member: data[offset : offset + size]
            for member, offset, size in zip(index.members, index.offsets[row], index.sizes[row], strict=True)
        }


def test_what_was_given_is_what_the_records_hold(tmp_path):
    write(tmp_path / "s")
    assert "4 keyframes: all is well" in call_module("preprocess.verify", tmp_path / "s").stdout
    first, second = records(tmp_path / "s")
    sample = parse_sample(second["sample.json"])
    assert (sample["scene"]["nbr_samples"], sample["prev"], sample["next"]) == (2, "one_0000", "")
    assert parse_sample(first["sample.json"])["next"] == "one_0001"
    assert first["a.jpg"] == JPEG
    rows = decode_cameras(second[CAMERAS_MEMBER], sample)
    assert rows["ego_T_cam"][1][0, 3] == 2 and rows["timestamp_us"][0] == 10**12 + STEP
    points = decode_points(first["lidar.00.planes.zst"], "x")
    assert points.T.tolist() == [[5, 0, 2, 0, -1, 0], [7, 1, 2, 9, -1, 1]]  # the car's own return is gone
    assert decode_points(first["radar.00.planes.zst"], "x").T.tolist() == [[20, 2, 2, -3, 0, 0]]
    [box] = decode_boxes(second[BOXES_MEMBER], sample)
    np.testing.assert_allclose(box["ego_lrt"][[0, 1, 2, 6]], [4, 2, 1.5, 10])
    assert sample["boxes"]["category"] == ["vehicle.car"] and np.isnan(box["velocity"]).all()


def test_boxes_in_the_ego_frame_and_sweeps_with_poses_of_their_own(tmp_path):
    box = Box("sedan", (10, 0, 1), (2, 4, 1.5), yaw=0.5, frame="ego", velocity=(1, 0, 0))
    before = PointCloud({"x": [5.0], "y": [0.0], "z": [0.0]}, at(0, 0, 2), 10**12 - 50_000, at(98.0))
    turned = at(100.0)
    turned[:2, :2] = [[0, -1], [1, 0]]
    with ShardWriter(tmp_path, RIG, categories={"sedan": "vehicle.car"}, sweeps=2) as writer:
        with writer.scene("s") as scene:
            lidar = [{"top": cloud((5, 0, 0))}, {"top": before}]
            scene.add(**frame(0, boxes=[box], global_T_ego=turned, lidar=lidar))
    [members] = records(tmp_path)
    sample = parse_sample(members["sample.json"])
    [row] = decode_boxes(members[BOXES_MEMBER], sample)
    np.testing.assert_allclose(row["global_xyz"], [100, 10, 1], atol=1e-9)
    np.testing.assert_allclose(row["velocity"], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(row["ego_lrt"][3:].reshape(4, 4)[:2, 0], [np.cos(0.5), np.sin(0.5)], atol=1e-9)
    assert sample["lidar"][1][0]["lag_s"] == pytest.approx(0.05)
    np.testing.assert_allclose(decode_points(members["lidar.01.planes.zst"], "x")[:2, 0], [0, -3], atol=1e-5)


def test_the_same_bytes_again_and_after_a_killed_run(tmp_path):
    whole = digests(write(tmp_path / "a"))
    assert whole == digests(write(tmp_path / "b")) and len(whole) == 6
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "c", RIG, shard_mb=0.005, min_distance_m=1.0) as writer:
        with writer.scene("one") as scene:
            scene.add(**frame(0))
            scene.add(**frame(1))
        with writer.scene("two") as scene:
            scene.add(**frame(0))
            raise RuntimeError("killed")
    assert digests(tmp_path / "c").keys() == {"train-000.tar", "train-000.idx.json", ".lock"}
    os.utime(tmp_path / "c" / "train-000.tar", (1, 1))
    assert digests(write(tmp_path / "c")) == whole
    assert (tmp_path / "c" / "train-000.tar").stat().st_mtime == 1  # it was not written again
    with pytest.raises(SourceError, match="differs in rig; give overwrite=True"):
        write(tmp_path / "c", rig=replace(RIG, keyframe_interval_s=0.5))


REFUSED = [
    ({"images": {"c": CameraImage(JPEG, K, at())}}, "s_0000: the rig has no camera 'c'; it has a, b"),
    ({"images": {"a": CameraImage(JPEG[:-60], K, at())}}, "image of a: the JPEG image is damaged"),
    ({"images": {"a": CameraImage(np.zeros((4, 4)), K, at())}}, "is neither the bytes of a JPEG nor an"),
    ({"images": {"a": CameraImage(JPEG, -K, at())}}, "image of a: camera_intrinsic"),
    ({"images": {"a": CameraImage(JPEG, K, 2 * at())}}, "image of a: ego_T_cam: is not a rigid transform"),
    ({"images": {}}, "cameras is not what .*s_0000"),
    (
        {"lidar": [{"top": cloud((np.nan, 0, 0))}]},
        "lidar sweep 0 of top: a point has a coordinate or intensity that is not",
    ),
    (
        {"lidar": [{"top": cloud((1, 0, 0), colour=[1])}]},
        "has the column 'colour'; the rig's fields are x, y, z, intensity",
    ),
    ({"lidar": [{"top": cloud((1, 0, 0), ring=[0, 1])}]}, "its columns differ in length"),
    ({"lidar": [{}]}, "lidar sweep 0: has no points of any lidar"),
    ({"lidar": [{"top": cloud((1, 0, 0))}] * 2}, "2 lidar sweeps, the writer was told of 1 at most"),
    ({"radar": [{"r": cloud((1, 0, 0))}]}, "radar sweep 0 of r: lacks the column 'speed'"),
    ({"boxes": [Box("truck", (0, 0, 0), (1, 1, 1), yaw=0)]}, "box 0: category 'truck' is none of vehicle.car"),
    ({"boxes": [Box("vehicle.car", (0, 0, 0), (1, 1, 1))]}, "box 0: it has either yaw or rotation"),
    ({"boxes": [Box("vehicle.car", (0, 0, 0), (1, -1, 1), yaw=0)]}, "box 0: a zero quaternion, a negative side"),
    ({"boxes": [Box("vehicle.car", (0, 0, np.inf), (1, 1, 1), yaw=0)]}, "box 0: centre: is no array of shape"),
    ({"global_T_ego": np.eye(3)}, "global_T_ego: is no array of shape"),
    ({"conditions": {"light": "dusk"}}, "s_0000.*conditions|light"),
]


@pytest.mark.parametrize("changed, why", REFUSED)
def test_what_cannot_be_is_refused_with_keyframe_and_sensor(tmp_path, changed, why):
    with pytest.raises(SourceError, match=why), ShardWriter(tmp_path, RIG) as writer, writer.scene("s") as scene:
        scene.add(**frame(0, **changed))
    assert [path for path in tmp_path.iterdir() if path.suffix in (".tar", ".json", ".tmp")] == []


def test_scenes_and_times_that_cannot_be(tmp_path):
    with pytest.raises(SourceError, match="s_0001: 0 s after the sample before it"):
        with ShardWriter(tmp_path, RIG) as writer, writer.scene("s") as scene:
            scene.add(**frame(0))
            scene.add(**frame(0))
    with pytest.raises(SourceError, match="no keyframe was added"):
        with ShardWriter(tmp_path, RIG) as writer, writer.scene("s"):
            pass
    with pytest.raises(SourceError, match="scene 's': is there already"), ShardWriter(tmp_path, RIG) as writer:
        for _ in range(2):
            with writer.scene("s") as scene:
                scene.add(**frame(0))


LENSES = {
    "brown_conrady": Distortion("brown_conrady", (-0.2, 0.05, 1e-3, -1e-3, 0.0)),
    "kannala_brandt": Distortion("kannala_brandt", (-0.02, 0.004, -0.002, 0.0003)),
}


@pytest.mark.parametrize("model", LENSES)
def test_images_are_rectified_unless_they_are_to_keep_their_distortion(tmp_path, model):
    """A bright dot where the lens shows a point lies, in the rectified image, where a pinhole shows it."""
    import cv2

    lens, point = LENSES[model], np.array([0.35, -0.2, 1.0])
    project = cv2.fisheye.projectPoints if model == "kannala_brandt" else cv2.projectPoints
    [[bent]] = project(point[None, None], np.zeros(3), np.zeros(3), K, np.array(lens.coefficients))[0]
    y, x = np.mgrid[:48, :64]
    grey = 255 * np.exp(-((x - bent[0]) ** 2 + (y - bent[1]) ** 2) / 8)
    jpeg = simplejpeg.encode_jpeg(np.repeat(grey[..., None], 3, 2).astype(np.uint8), quality=98)
    rig = replace(RIG, cameras=(Camera("a", distortion=lens), Camera("b", reference=True)))
    images = {"a": CameraImage(jpeg, K, at())}
    for keep in (False, True):
        with ShardWriter(tmp_path / str(keep), rig, keep_distortion=keep) as writer, writer.scene("s") as scene:
            scene.add(**frame(0, images=images))
    [plain], [kept] = records(tmp_path / "False"), records(tmp_path / "True")
    assert kept["a.jpg"] == jpeg and plain["a.jpg"] != jpeg
    assert load_index(tmp_path / "True" / "train-000.tar").rig.cameras[0].distortion == lens
    assert load_index(tmp_path / "False" / "train-000.tar").rig.cameras[0].distortion is None
    [row] = decode_cameras(plain[CAMERAS_MEMBER], parse_sample(plain["sample.json"]))
    seen = row["intrinsics"] @ point
    pixels = simplejpeg.decode_jpeg(plain["a.jpg"], "GRAY")[..., 0].astype(float)
    weight = np.where(pixels > 40, pixels, 0)
    middle = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
    np.testing.assert_allclose(middle, seen[:2], atol=0.35)


def test_the_pages_program_is_as_short_as_it_says_and_its_shards_are_sound(yard):
    assert (
        len([line for line in (yard / "own.py").read_text().splitlines() if line.strip() and line[:3] != '"""']) <= 40
    )
    found = call_module("preprocess.verify", yard / "shards" / "yard")
    assert "2 shards, 9 keyframes: all is well" in found.stdout
