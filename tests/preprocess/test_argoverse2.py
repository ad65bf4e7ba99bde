"""Argoverse 2: made logs with images, and the real ones without, where they lie beside the checkout, against their README."""

import json
import shutil

import numpy as np
import pytest
import simplejpeg

from common.map_layers import MAP_LAYERS
from common.map_shapes import decode_shapes
from common.record import BOXES_MEMBER, CAMERAS_MEMBER, decode_boxes, decode_cameras, decode_points, parse_sample
from common.shard_index import parse_index
from preprocess.datasets.argoverse2 import CAMERAS, lidar_points
from preprocess.errors import SourceError
from preprocess.frames import quaternion_of
from preprocess.keyframe import build_record
from preprocess.plan import Options, Planner
from tests.conftest import SHARED, call_module

pyarrow = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
STEP_NS, BEGIN_NS = 100_196_000, 315_966_265_259_836_000
LOG, SPEED = "made-log", 5.0


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pyarrow.table(columns), path)


def poses(rotation, places):
    turned = np.tile(quaternion_of(rotation), (len(places), 1))
    return dict(
        zip(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"), np.concatenate([turned, places], 1).T, strict=True)
    )


def write_log(folder, frames=6):
    """A car that drives north at 60 m; a parked car to its left, and a bus that keeps 20 m ahead."""
    north = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    stamps = BEGIN_NS + STEP_NS * np.arange(frames)
    fine = BEGIN_NS - 10 * STEP_NS // 20 + STEP_NS // 20 * np.arange(20 * frames + 20)
    seconds = (fine - BEGIN_NS) / 1e9
    places = np.stack([np.full(len(fine), 100.0), SPEED * seconds, np.full(len(fine), 60.0)], 1)
    table(folder / "city_SE3_egovehicle.feather", timestamp_ns=fine, **poses(north, places))
    ahead = np.eye(3)
    boxes = np.array([[20.0, 0, 1], [8.0, 6, 1]])
    moving = [[boxes[0], boxes[1] - [SPEED * (stamp - BEGIN_NS) / 1e9, 0, 0]] for stamp in stamps]
    table(
        folder / "annotations.feather",
        timestamp_ns=np.repeat(stamps, 2),
        track_uuid=["bus", "parked"] * frames,
        category=["BUS", "REGULAR_VEHICLE"] * frames,
        length_m=[11.0, 4.5] * frames,
        width_m=[2.5, 1.9] * frames,
        height_m=[3.0, 1.6] * frames,
        num_interior_pts=[2, 0] * frames,
        **poses(ahead, np.concatenate(moving)),
    )
    names = [*CAMERAS, "stereo_front_left", "up_lidar"]
    look = np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])
    mounted = poses(look, np.tile([1.5, 0.0, 1.4], (len(names), 1)))
    table(folder / "calibration" / "egovehicle_SE3_sensor.feather", sensor_name=names, **mounted)
    count, upright = len(names) - 1, [name == "ring_front_center" for name in names[:-1]]
    optics = {
        "fx_px": [40.0] * count,
        "fy_px": [40.0] * count,
        "k1": [-0.2] * count,
        "k2": [0.0] * count,
        "k3": [0.0] * count,
    }
    sides = {"height_px": [64 if up else 48 for up in upright], "width_px": [48 if up else 64 for up in upright]}
    centres = {"cx_px": [n / 2 for n in sides["width_px"]], "cy_px": [n / 2 for n in sides["height_px"]]}
    table(folder / "calibration" / "intrinsics.feather", sensor_name=names[:-1], **optics, **centres, **sides)
    for stamp in stamps.tolist():
        for name, height, width in zip(names, sides["height_px"], sides["width_px"], strict=False):
            path = folder / "sensors" / "cameras" / name / f"{stamp + 20_000_000}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(np.full((height, width, 3), 99, np.uint8)))
        xyz = np.array([[20.0, 0, 1], [21.5, 0.5, 1], [60, -3, 0.5]], np.float16).T
        columns = dict(zip("xyz", xyz, strict=True))
        extra = {"intensity": np.array([1, 2, 3], np.uint8), "laser_number": np.array([0, 31, 63], np.uint8)}
        offsets = {"offset_ns": np.array([10_000_000, 50_000_000, 100_000_000], np.int32)}
        table(folder / "sensors" / "lidar" / f"{stamp}.feather", **columns, **extra, **offsets)


@pytest.fixture(scope="session")
def logs(made_once):
    def make(out):
        write_log(out / "train" / LOG)
        write_log(out / "val" / "other-log", 3)

    return made_once("argoverse2", make)


@pytest.fixture(scope="session")
def real():
    if not (SHARED / "av2").is_dir():
        pytest.skip("../shared/av2 is not there")
    return SHARED / "av2" / "sensor"


def test_a_made_keyframe_in_the_cars_own_axes(logs):
    planner = Planner(logs, "", Options(sweeps=3, dataset="argoverse2"))
    scene = next(s for s in planner.scenes if s["name"] == LOG)
    tokens = planner.data.tokens(scene)
    recipe = planner.data.keyframe(scene, tokens, [f"s_{n:04d}" for n in range(len(tokens))], 2)
    members, _ = build_record(logs, recipe, planner.facts("train"))
    sample = parse_sample(members["sample.json"])
    boxes = dict(zip(sample["boxes"]["instance"], decode_boxes(members[BOXES_MEMBER], sample), strict=True))
    assert dict(zip(sample["boxes"]["instance"], sample["boxes"]["category"], strict=True))["bus"] == "vehicle.bus"
    np.testing.assert_allclose(boxes["bus"]["ego_lrt"][:3], [11, 2.5, 3])
    np.testing.assert_allclose(boxes["bus"]["ego_lrt"][3:].reshape(4, 4)[:3, 3], [20, 0, 1], atol=1e-6)
    np.testing.assert_allclose(boxes["bus"]["velocity"], [0, SPEED, 0], atol=1e-3)
    np.testing.assert_allclose(boxes["parked"]["velocity"], 0, atol=1e-3)
    assert boxes["bus"]["num_lidar_pts"] == 2
    cameras = decode_cameras(members[CAMERAS_MEMBER], sample)
    assert (cameras["height"][1], cameras["width"][1]) == (64, 48)  # ring_front_center stands upright
    assert cameras["timestamp_us"][0] - sample["timestamp_us"] == 20_000
    moved = np.array(sample["global_T_ego"])[:3, 3]
    np.testing.assert_allclose(cameras["global_T_ego"][0][:3, 3] - moved, [0, SPEED * 0.02, 0], atol=1e-4)
    for k in range(3):
        points = decode_points(members[f"lidar.{k:02d}.planes.zst"], "points")
        np.testing.assert_allclose(points[0], np.array([20, 21.5, 60]) - SPEED * k * STEP_NS / 1e9, atol=1e-3)
        assert points[4].tolist() == [0, 31, 63]
        np.testing.assert_allclose(points[5], [0.01, 0.05, 0.1], atol=1e-6)


def test_from_logs_to_shards_that_hold_against_them(logs, tmp_path):
    made = "--dataset", "argoverse2", "--dataroot", logs, "--hz", 5, "--workers", 1, "--sweeps", 2, "--out", tmp_path
    call_module("preprocess.run", *made)
    verified = call_module("preprocess.verify", tmp_path, "--against", logs)
    assert "2 shards, 5 keyframes: all is well" in verified.stdout
    assert "ring_front_center" in call_module("preprocess.show", tmp_path).stdout


def test_what_a_log_lacks_is_named(logs, tmp_path):
    copy = shutil.copytree(logs, tmp_path / "copy")
    shutil.rmtree(copy / "val" / "other-log" / "calibration")
    made = "--dataset", "argoverse2", "--dataroot", copy, "--workers", 1, "--sweeps", 1, "--out", tmp_path / "out"
    failed = call_module("preprocess.run", *made, check=False)
    assert "calibration: the log has no calibration" in failed.stderr and len(failed.stderr.strip().splitlines()) <= 4
    done = call_module("preprocess.run", *made, "--on-error", "skip")
    assert "3 samples were left out" in done.stdout
    (copy / "train" / LOG / "annotations.feather").write_bytes(b"no table")
    failed = call_module("preprocess.run", *made, check=False)
    assert "annotations.feather: not an Arrow file that can be read" in failed.stderr


@pytest.mark.parametrize(
    "log, stamp, points, boxes",
    [
        ("7fab2350-7eaf-3b7e-a39d-6937a4c1bede", 315966265259836000, 9399, 81),
        ("7fab2350-7eaf-3b7e-a39d-6937a4c1bede", 315966265360032000, 9289, 81),
        ("adcf7d18-0510-35b0-a2fa-b4cea13a6d76", 315973157959879000, 17972, 47),
    ],
)
def test_real_points_lie_in_the_boxes_that_count_them(real, log, stamp, points, boxes):
    planner = Planner(real, "", Options(dataset="argoverse2"))
    scene = next(s for s in planner.scenes if s["name"] == log)
    own = planner.data._of(scene)
    n = own.stamps.index(stamp)
    path = real / own.sweeps(stamp, 1)[0][0].filename
    [cloud] = lidar_points(path.read_bytes(), path, [None], {}, None)
    found = []
    ego_T_city = np.linalg.inv(own.pose(stamp))
    for box in own.boxes(n, "t"):
        centre = ego_T_city[:3, :3] @ box["translation"] + ego_T_city[:3, 3]
        row = next(r for r in own.places_of[n] if own.rows["track_uuid"][r] == box["instance"])
        np.testing.assert_allclose(centre, own.ego_T_box[row][:3, 3], atol=1e-6)
        local = own.ego_T_box[row][:3, :3].T @ (cloud[:3] - own.ego_T_box[row][:3, 3:])
        width, length, height = box["size"]
        inside = (np.abs(local) <= np.array([[length], [width], [height]]) / 2).all(0).sum()
        assert inside == box["num_lidar_pts"]
        found.append(inside)
    assert (sum(found), len(found)) == (points, boxes)


def test_real_cameras_see_the_boxes_where_the_readme_says(real):
    planner = Planner(real, "", Options(dataset="argoverse2"))
    own = planner.data._of(next(s for s in planner.scenes if s["name"].startswith("7fab2350")))
    n = own.stamps.index(315966265259836000)
    for camera, uuid, pixel, depth in (
        ("ring_front_center", "f6b69088", (687.0, 1089.0), 28.13),
        ("ring_side_left", "385b295b", (1176.2, 972.7), 5.91),
        ("ring_rear_right", "d5bc0f50", (1262.4, 992.8), 6.70),
    ):
        row = next(r for r in own.places_of[n] if own.rows["track_uuid"][r].startswith(uuid))
        intrinsics, _, ego_T_cam = own.calibration(camera)
        seen = np.linalg.inv(ego_T_cam) @ own.ego_T_box[row][:, 3]
        found = intrinsics @ seen[:3]
        np.testing.assert_allclose(found[:2] / found[2], pixel, atol=0.06)
        assert seen[2] == pytest.approx(depth, abs=0.006)
    with pytest.raises(SourceError, match="the log has no calibration"):
        planner.data._of(next(s for s in planner.scenes if s["name"].startswith("adcf7d18"))).calibration(CAMERAS[0])


def test_real_maps_have_the_areas_of_the_readme(real):
    shapely = pytest.importorskip("shapely")
    from preprocess.layers.argoverse_maps import LogMap

    planner = Planner(real, "", Options(dataset="argoverse2"))
    for scene, areas, lanes, crossings, square_m in zip(
        planner.scenes, (13, 8), (183, 199), (11, 11), (26294, 22903), strict=True
    ):
        found = LogMap(real, scene["name"])
        counts = [len(found.layers[name].geometries) for name in ("drivable_area", "lane", "ped_crossing")]
        assert counts == [areas, lanes, crossings]
        assert all(shape.geom_type == "Polygon" for shape in found.layers["lane"].geometries)
        assert shapely.union_all(found.layers["drivable_area"].geometries).area == pytest.approx(square_m, abs=1)
        poses = planner.data._of(scene).ego.poses
        assert found.is_drivable(poses[::50, :2, 3]).all()
        around = found.around(poses[0, :2, 3], float(np.arctan2(poses[0, 1, 0], poses[0, 0, 0])), 40.0)
        assert len(around.rings) and np.abs(around.xy).max() <= 40.001


def test_layer_map_is_made_beside_shards_of_argoverse2(logs, tmp_path):
    pytest.importorskip("shapely")
    world = shutil.copytree(logs, tmp_path / "world")

    def line(*points):
        return [{"x": x, "y": y, "z": 60.0} for x, y in points]

    lane = {"left_lane_boundary": line((98, -40), (98, 90)), "right_lane_boundary": line((102, -40), (102, 90))}
    lane |= {"left_lane_mark_type": "SOLID_WHITE", "right_lane_mark_type": "NONE"}
    tables = {
        "drivable_areas": {"1": {"area_boundary": line((90, -50), (110, -50), (110, 100), (90, 100))}},
        "lane_segments": {"2": lane, "3": {**lane, "right_lane_mark_type": "UNKNOWN"}},
        "pedestrian_crossings": {"4": {"edge1": line((95, 10), (105, 10)), "edge2": line((95, 13), (105, 13))}},
    }
    for log in (world / "train" / LOG, world / "val" / "other-log"):
        (log / "map").mkdir()
        (log / "map" / f"log_map_archive_{log.name}____PIT_city_1.json").write_text(json.dumps(tables))
    made = (
        "--dataset",
        "argoverse2",
        "--dataroot",
        world,
        "--hz",
        5,
        "--workers",
        1,
        "--sweeps",
        1,
        "--out",
        tmp_path / "s",
    )
    call_module("preprocess.run", *made)
    said = call_module(
        "preprocess.maps", "--shards", tmp_path / "s", "--dataroot", world, "--extent", 30, "--workers", 1
    )
    assert "layer map: 5 keyframes" in said.stdout and "egos lie" not in said.stderr
    assert "all is well" in call_module("preprocess.verify", tmp_path / "s").stdout
    folder = tmp_path / "s" / "layers" / "map"
    index, data = (
        parse_index((folder / "train-000.idx.json").read_bytes(), "x"),
        (folder / "train-000.tar").read_bytes(),
    )
    members = {m: data[o : o + n] for m, o, n in zip(index.members, index.offsets[0], index.sizes[0], strict=True)}
    shapes = decode_shapes(members)
    names = [MAP_LAYERS[number] for number in shapes.rings["layer"]]
    assert names == ["drivable_area", "lane", "lane", "ped_crossing", "lane_divider"]
    drivable = shapes.xy[: shapes.rings["points"][0]]
    np.testing.assert_allclose(
        [drivable.min(0), drivable.max(0)], [[-30, -10], [30, 10]], atol=1e-4
    )  # the car looks north
