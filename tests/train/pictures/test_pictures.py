"""Pictures by their properties: boxes lie where the geometry says, colours mean what the legend says, forward is up."""

import dataclasses
import io
import json
import re
import tarfile
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.record import (
    BOX_DTYPE,
    BOXES_MEMBER,
    CAMERA_DTYPE,
    CAMERAS_MEMBER,
    SAMPLE,
    decode_json,
    decode_rows,
    encode_rows,
)
from common.shard_index import build_index, dump_index
from preprocess import show as preprocess_show
from preprocess.nuscenes import CAMERAS
from preprocess.shard_writer import skipped_name
from tests.conftest import call_module, run_module
from tests.index_files import index_path
from tests.processes import client
from train import checkpoint, show
from train.augment import crop_and_resize
from train.metrics import intersection_union, iou
from train.monitor.curves import Curves, Pool
from train.options import Options, as_dict
from train.pictures import layout, palette, text
from train.pictures import maps as map_pictures
from train.pictures.augmentation import DrawnSample, augmentation_sheet, mirror
from train.pictures.bev import Ground, from_above
from train.pictures.cameras import clip_edges, draw_boxes, draw_points, in_camera, mosaic, to_pixels
from train.pictures.layout import legend, sheet
from train.pictures.maps import ERROR_COLOURS, draw_errors, error_codes, iou_of
from train.pictures.palette import DEPTH_RAMP, FAR_M, ramp
from train.pictures.tensorboard import MAP_PX, pictures_of
from train.pictures.video import write_video
from train.pictures.view import (
    NO_BOXES,
    Boxes,
    Camera,
    Maps,
    View,
    maps_of_batch,
    view_of_batch,
    view_of_record,
)
from train.samples import Samples, batch_of, network_of, options_without_run, predict
from train.setup import make_network

INTRINSICS = np.array([[300.0, 0, 200], [0, 300, 112], [0, 0, 1]])
SMALL = {
    "encoder_type": "effb0",
    "latent_dim": 16,
    "res_scale": 0.25,
    "bounds": (-25.6, 25.6, -5.0, 5.0, -25.6, 25.6),
    "Z": 32,
    "Y": 2,
    "X": 32,
    "nsweeps": 1,
    "use_lidar": True,
    "use_radar": True,
    "no_pretrained": True,
}


def level_camera(yaw=0.0, xyz=(0.0, 0.0, 0.0)):
    """ego_T_cam of a camera at xyz that looks towards yaw."""
    out = np.eye(4)
    out[:3, 3] = xyz
    c, s = np.cos(yaw), np.sin(yaw)
    out[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    return out


EGO_T_FRONT = level_camera(xyz=(1.6, 0.0, 1.55))


def camera(name="CAM_FRONT", image=None):
    image = np.zeros((224, 400, 3), np.uint8) if image is None else image
    return Camera(name, image, INTRINSICS, EGO_T_FRONT)


def boxes(*rows, visibility=4, category="vehicle.car"):
    """Boxes of (x, y, yaw, l, w, h) on the ground of ego."""
    lrt = np.zeros((len(rows), 19))
    for row, (x, y, yaw, *lengths) in zip(lrt, rows, strict=True):
        c, s = np.cos(yaw), np.sin(yaw)
        row[:3] = lengths
        row[3:] = np.array([[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, lengths[2] / 2], [0, 0, 0, 1]]).ravel()
    count = len(rows)
    return Boxes(lrt, (category,) * count, np.full(count, visibility), np.full((count, 3), np.nan))


def view(things=NO_BOXES, lidar=None, radar=None, maps=None):
    return View("s_0000", "t", "s", "", "", None, (camera(),), things, lidar, radar, maps)


def has_colour(image, colour, exact=True):
    near = np.abs(image.astype(int) - np.array(colour)).max(-1)
    return int((near <= (0 if exact else 40)).sum())


# --- Boxes in cameras ---


def test_corners_and_edges_are_where_the_geometry_says():
    box = boxes((12, 2, 0.4, 4.6, 1.9, 1.7))
    image = draw_boxes(camera(), box)
    pose, lengths = box.ego_T_box[0], box.lrt[0, :3]
    cam_T_ego = np.linalg.inv(EGO_T_FRONT)
    colour = palette.colour_of("vehicle.car")
    pixels = {}
    for signs in np.ndindex(2, 2, 2):
        corner = pose @ [*((np.array(signs) - 0.5) * lengths), 1]
        projected = INTRINSICS @ (cam_T_ego @ corner)[:3]
        pixels[signs] = projected[:2] / projected[2]
    for signs, pixel in pixels.items():
        for axis in range(3):  # the middle of each edge too
            other = tuple(b ^ (a == axis) for a, b in enumerate(signs))
            for column, row in (pixel, (pixel + pixels[other]) / 2):
                patch = image[round(row) - 1 : round(row) + 2, round(column) - 1 : round(column) + 2]
                assert has_colour(patch, colour, exact=False), (signs, axis)
    low, high = np.min(list(pixels.values()), 0), np.max(list(pixels.values()), 0)
    outside = image.copy()
    outside[int(low[1]) - 2 : int(high[1]) + 3, int(low[0]) - 2 : int(high[0]) + 3] = 0
    assert not outside.any()


def test_the_face_that_a_thing_drives_towards_is_marked():
    for yaw, marked in ((np.pi, True), (0.0, False)):  # towards the camera, and away from it
        image = draw_boxes(camera(), boxes((9, 0, yaw, 4, 2, 1.6)))
        near_face = in_camera(np.array([7.0, 0.9, 0.2]), camera())  # far faces, seen through it, don't reach here
        column, row = to_pixels(near_face, INTRINSICS).round().astype(int)
        assert image[row, column].any() == marked


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.floats(-20, 20)] * 6), min_size=1, max_size=8))
def test_edges_are_cut_at_the_image_plane(rows):
    ends = np.array(rows)
    kept, starts, stops = clip_edges(ends[:, :3], ends[:, 3:], near=0.1)
    assert (kept == (ends[:, [2, 5]] > 0.1).any(1)).all()
    for a, b, p, q in zip(ends[kept, :3], ends[kept, 3:], starts[kept], stops[kept], strict=True):
        for point in (p, q):
            assert point[2] >= 0.1 - 1e-9
            assert np.linalg.norm(np.cross(point - a, b - a)) < 1e-6 * (1 + np.linalg.norm(b - a) ** 2)


def test_a_box_beside_the_car_is_drawn_in_part_and_one_behind_not_at_all():
    assert not draw_boxes(camera(), boxes((-9, 0, 0, 4, 2, 1.6))).any()
    image = draw_boxes(camera(), boxes((4, 1.2, 0, 12, 0.6, 1.0)))  # from behind the camera to 10 m ahead
    assert image.any() and not image[:100].any()  # nothing wraps round to above the horizon


def test_what_is_hidden_is_dimmed():
    bright = draw_boxes(camera(), boxes((12, 2, 0.4, 4.6, 1.9, 1.7))).astype(int)
    dim = draw_boxes(camera(), boxes((12, 2, 0.4, 4.6, 1.9, 1.7), visibility=1)).astype(int)
    assert 0 < dim.max() < 0.6 * bright.max()
    assert ((dim > 0).any(-1) <= (bright > 0).any(-1)).all()


def test_cameras_stand_in_surround_order():
    cameras = [camera(name, np.full((224, 400, 3), 40 * n + 20, np.uint8)) for n, name in enumerate(CAMERAS)]
    image = mosaic(cameras[::-1], NO_BOXES, 606, gap=3, names=CAMERAS)
    middles = image[[image.shape[0] // 4, 3 * image.shape[0] // 4]][:, [100, 303, 506], 0]
    assert middles.ravel().tolist() == [20, 60, 100, 140, 180, 220]


def test_boxes_of_a_record_are_those_of_its_global_coordinates(synth_shards):
    samples = Samples([synth_shards])
    members = samples.members(5)
    seen = view_of_record("k", members)
    rows = decode_rows(members[BOXES_MEMBER], BOX_DTYPE, BOXES_MEMBER)
    cameras = decode_rows(members[CAMERAS_MEMBER], CAMERA_DTYPE, CAMERAS_MEMBER)
    compared = 0
    for each, row in zip(seen.cameras, cameras, strict=True):
        cam_T_global = np.linalg.inv(row["global_T_ego"] @ row["ego_T_cam"])
        drawn = in_camera(seen.boxes.corners(), each)
        for corners, box in zip(drawn, rows, strict=True):
            signs = np.array(list(np.ndindex(2, 2, 2))) - 0.5
            turned = Quaternion(box["global_quat_wxyz"]).rotation_matrix
            points = (signs * box["wlh"][[1, 0, 2]]) @ turned.T + box["global_xyz"]
            points = points @ cam_T_global[:3, :3].T + cam_T_global[:3, 3]
            near = np.linalg.norm(corners[:, None] - points, axis=-1)
            assert near.min(1).max() < 1e-4 and near.min(0).max() < 1e-4
            compared += 1
    assert compared > 30


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.booleans())
def test_augmented_geometry_agrees_with_the_pixels(seed, mirrored):
    rng = np.random.default_rng(seed)
    front = camera(image=np.zeros((900, 1600, 3), np.uint8))
    front = dataclasses.replace(front, intrinsics=np.array([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]]))
    point = np.array([15.0, rng.uniform(-5, 5), rng.uniform(0.5, 3)])
    column, row = to_pixels(in_camera(point, front), front.intrinsics)
    cv2.circle(front.image, (round(column), round(row)), 6, (255, 255, 255), -1)
    size = (np.array([400, 224]) * rng.uniform(0.8, 1.2)).astype(int)
    left_top = (size - [400, 224]) // 2 + rng.integers(-40, 40, 2)
    crop = np.concatenate([left_top, left_top + [400, 224]])
    matrix = torch.from_numpy(front.intrinsics).float()[None]
    images, intrinsics = crop_and_resize(
        torch.from_numpy(front.image)[None], matrix, size[None], crop[None], (224, 400)
    )
    pixels = np.ascontiguousarray((images[0].permute(1, 2, 0) * 255).byte().numpy())
    got = Camera("CAM_FRONT", pixels, intrinsics[0, :3, :3].numpy().astype(float), front.ego_T_cam)
    got = mirror(got) if mirrored else got
    rows, columns = np.nonzero(got.image[..., 0] > 100)
    assert len(rows)
    expected = to_pixels(in_camera(point, got), got.intrinsics)
    assert np.abs(expected - [columns.mean(), rows.mean()]).max() < 1.5


# --- Colours and legend ---


def test_legend_shows_every_colour_that_is_drawn():
    shown = legend(800, ("boxes", "lidar", "radar", "truth", "prediction", "errors"))
    for kind in palette.KINDS:
        category = kind.prefixes[0] or "animal"
        assert palette.kind_of(category) is kind
        assert has_colour(shown, kind.colour)
        drawn = draw_boxes(camera(), boxes((12, 2, 0.4, 4.6, 1.9, 1.7), category=category), thickness=3)
        assert has_colour(drawn, kind.colour)
    for colour in (palette.HIT, palette.FALSE, palette.MISSED, palette.MASKED, palette.TRUTH, palette.RADAR):
        assert has_colour(shown, colour)
    colours = [kind.colour for kind in palette.KINDS]
    apart = [np.abs(np.subtract(a, b)).max() for n, a in enumerate(colours) for b in colours[:n]]
    assert min(apart) > 40
    assert has_colour(legend(300, ("boxes",)), palette.KINDS[-1].colour)  # wrapped, not cut off


def test_every_category_has_a_colour():
    assert palette.kind_of("vehicle.bus.bendy").name == "bus"
    assert palette.kind_of("vehicle.emergency.police").name == "other vehicle"
    assert palette.kind_of("human.pedestrian.child").name == "pedestrian"
    assert palette.kind_of("static_object.bicycle_rack").name == "other"


# --- From above ---


def test_forward_is_up_and_left_is_left():
    ground = Ground(200, 20.0)
    assert ground.to_pixels([0, 0]).tolist() == [100, 100]
    assert ground.to_pixels([10, 0]).tolist() == [100, 50]
    assert ground.to_pixels([0, 10]).tolist() == [50, 100]
    lidar = np.array([[10.0, 0], [0, 10], [3.4, 3.4], [1, 1]])
    image = from_above(view(lidar=lidar), ground)
    top = palette.HEIGHT_RAMP[-3]
    rows, columns = np.nonzero(np.abs(image.astype(int) - top).max(-1) < 12)
    assert {(50, 100), (100, 50)} <= set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert np.allclose(ground.to_pixels(ground.of_pixels()[7, 13]), [13.5, 7.5])


def test_radar_arrows_point_where_things_go():
    ground = Ground(400, 20.0)
    still = from_above(view(radar=np.array([[5.0], [5], [0], [0], [0]])), ground)
    moving = from_above(view(radar=np.array([[5.0], [5], [0], [8], [0]])), ground)
    rows, columns = np.nonzero((still != moving).any(-1))
    assert rows.min() == pytest.approx(400 / 40 * (20 - 13), abs=3) and rows.max() <= 10 * 15 + 3
    assert abs(np.median(columns) - 150) < 4  # neither to the left nor to the right


def test_radar_velocities_are_turned_into_ego(synth_shards):
    """A radar's own velocities in the generated world are those of its boxes, seen from its mounting."""
    samples = Samples([synth_shards])
    moving = 0
    for number in range(len(samples)):
        members = samples.members(number)
        seen = view_of_record("k", {name: data for name, data in members.items() if not name.endswith("jpg")})
        for x, y, _, vx, vy in seen.radar.T:
            if np.hypot(vx, vy) < 0.4:
                continue
            near = np.linalg.norm(seen.boxes.ego_T_box[:, :2, 3] - [x, y], axis=1)
            velocity = seen.boxes.velocity[near.argmin()]
            if near.min() < 1.5 and np.hypot(*velocity[:2]) > 0.3:
                cosine = velocity[:2] @ [vx, vy] / np.hypot(*velocity[:2]) / np.hypot(vx, vy)
                assert cosine > np.cos(np.deg2rad(12))
                moving += 1
    assert moving


# --- Maps ---


def random_maps(rng, ego_T_cam0=None):
    truth, valid = rng.random((40, 40)) < 0.3, rng.random((40, 40)) < 0.9
    prediction = rng.random((40, 40)).astype(np.float32)
    ego_T_cam0 = level_camera() if ego_T_cam0 is None else ego_T_cam0
    return Maps(
        (-20.0, -20.0), (20.0, 20.0), ego_T_cam0, truth.astype(np.float32), valid.astype(np.float32), prediction
    )


def test_error_colours_count_what_iou_counts():
    maps = random_maps(np.random.default_rng(0))
    logits = torch.logit(torch.from_numpy(maps.prediction))
    truth, valid = torch.from_numpy(maps.truth), torch.from_numpy(maps.valid)
    counts = intersection_union(logits[None, None], truth[None, None], valid[None, None])
    codes = error_codes(maps.truth, maps.valid, maps.prediction)
    assert iou_of(codes) == iou(counts)
    plain = ERROR_COLOURS[codes]
    hit, false, missed = (has_colour(plain, c) for c in (palette.HIT, palette.FALSE, palette.MISSED))
    assert (hit, hit + false + missed) == tuple(counts[0].tolist())
    assert has_colour(plain, palette.MASKED) == (maps.valid == 0).sum()


def test_the_error_picture_says_its_iou_above_its_cells():
    maps = random_maps(np.random.default_rng(0))
    value = iou_of(error_codes(maps.truth, maps.valid, maps.prediction))
    row = layout.panels(view(maps=maps), 800)
    size = (800 - 3 * layout.GAP) // 4
    cells = draw_errors(maps, Ground(size, map_pictures.reach_of(maps)))
    left = 3 * (size + layout.GAP)
    assert np.array_equal(row[:, left : left + size], layout.captioned(cells, f"errors, IoU {value:.3f}"))


def test_the_error_picture_shows_every_cell_at_its_size(monkeypatch):
    maps = random_maps(np.random.default_rng(1))
    for nothing in ("draw_rings", "draw_ego"):  # what lies over the cells
        monkeypatch.setattr(map_pictures, nothing, lambda *_, **__: None)
    image = draw_errors(maps, Ground(200, 20.0))
    codes = error_codes(maps.truth, maps.valid, maps.prediction)
    for code in (map_pictures.IS_HIT, map_pictures.IS_FALSE, map_pictures.IS_MISSED):
        assert has_colour(image, ERROR_COLOURS[code]) == 25 * (codes == code).sum()
    assert 0.1 < has_colour(image, palette.MASKED) / (25 * (codes == map_pictures.IS_MASKED).sum()) < 0.6


@pytest.mark.parametrize("yaw", [0.0, np.pi / 2, np.pi, -2.0])
def test_forward_is_up_whatever_the_reference_camera(yaw):
    ego_T_cam0 = level_camera(yaw)
    car = np.linalg.inv(ego_T_cam0) @ [10.0, 4.0, 0, 1]  # ahead of the car, a little to the left
    truth = np.zeros((40, 40), np.float32)
    truth[int(car[2] + 20), int(car[0] + 20)] = 1
    maps = Maps((-20.0, -20.0), (20.0, 20.0), ego_T_cam0, truth, np.ones_like(truth))
    rows, columns = np.nonzero((map_pictures.draw_truth(maps, Ground(400, 20.0)) == palette.TRUTH).all(-1))
    assert np.abs([rows.mean() - 100, columns.mean() - 160]).max() < 12


def test_tensorboard_pictures_are_small_and_complete(synth_shards, tmp_path):
    options = Options(**{**SMALL, "rand_crop_and_resize": True})
    batch, _, grid = batch_of(Samples([synth_shards]), 0, options, epoch=0)
    seg = torch.where(batch.seg_bev[:, 0] > 0, 8.0, -8.0)
    outputs = {"seg": seg, "center": batch.center_bev[:, 0], "offset": batch.offset_bev[:, 0]}
    pictures = pictures_of(batch, outputs, grid)
    names = "inputs/cameras inputs/lidar inputs/radar outputs/segmentation outputs/center outputs/offset"
    assert sorted(pictures) == sorted(names.split())
    assert all(p.dtype == np.uint8 and p.ndim == 3 and max(p.shape) <= 1000 for p in pictures.values())
    errors, legend = np.split(pictures["outputs/segmentation"], [MAP_PX + 22])  # below their captions
    assert has_colour(legend, palette.FALSE)
    assert has_colour(errors, palette.HIT) and not has_colour(errors, palette.FALSE)
    blind = dataclasses.replace(batch, imgs=None, lidar_data=None, radar_data=None)
    assert list(pictures_of(blind, {}, grid)) == ["outputs/segmentation"]
    assert sorted(pictures_of(batch, {"seg": seg.bfloat16()}, grid)) == sorted(set(pictures) - {
        "outputs/center", "outputs/offset"})  # fmt: skip
    curves = Curves(tmp_path, {"t": Pool()}, 1, True)
    curves.pictures("t", 1, blind, {"center": outputs["center"]}, grid)  # a network without a seg
    curves.close()
    events = EventAccumulator(str(tmp_path / "t")).Reload()
    assert sorted(events.Tags()["images"]) == ["outputs/center", "outputs/segmentation"]


def test_a_sheet_lives_without_sensors():
    image = sheet(dataclasses.replace(view(), cameras=()), 800)
    assert image.dtype == np.uint8 and image.shape[1] == 800
    assert (
        sheet(view(boxes((12, 2, 0.4, 4.6, 1.9, 1.7)), maps=random_maps(np.random.default_rng(2))), 900).shape[1] == 900
    )


# --- The commands ---


def invoke(command, *arguments):
    """(exit code, all its text) of a command in this process."""
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def picture_at(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_show_finds_a_sample_by_key_token_number_and_scene(synth_shards, tmp_path):
    samples = Samples([synth_shards])
    number = 6
    key, token = samples.keys[number], samples.tokens[number]
    assert samples.find(key) == samples.find(token) == samples.find(str(number)) == [number]
    scene = samples.find(key.rpartition("_")[0])
    assert number in scene and len(scene) == 4
    out = tmp_path / "a.png"
    code, text = invoke(show.main, synth_shards, key, "--out", out, "--width", 900)
    assert code == 0 and f"{out}: 900 x" in text
    image = picture_at(out)
    assert image.shape[1] == 900 and has_colour(image, palette.TRUTH) and has_colour(image, palette.KINDS[0].colour)
    code, text = invoke(
        show.main, *sorted(synth_shards.glob("train-*.tar")), "--out", tmp_path / "b.jpg", "--width", 600
    )
    assert code == 0 and picture_at(tmp_path / "b.jpg").shape[1] == 600


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run with one checkpoint of an untrained network."""
    folder, options = tmp_path_factory.mktemp("run"), Options(**SMALL)
    torch.manual_seed(0)
    checkpoint.save(folder, 7, make_network(options)[0], options=as_dict(options))
    return folder


def test_show_draws_what_a_run_predicts(synth_shards, run, tmp_path):
    code, text = invoke(show.main, synth_shards, 1, "--run", run, "--out", tmp_path / "p.png", "--device", "cpu")
    assert code == 0, text
    image = picture_at(tmp_path / "p.png")
    assert has_colour(image, palette.MISSED) + has_colour(image, palette.HIT) > 30
    arrays = tmp_path / "p.npz"
    code, text = invoke(show.main, synth_shards, "scene-0103", "--run", run, "--predictions", arrays, "--device", "cpu")
    assert code == 0, text
    with np.load(arrays) as held:
        assert held["probability"].shape == (4, 32, 32) and held["ego_T_cam0"].shape == (4, 4, 4)
        assert held["keys"][0] == "scene-0103_0000" and 0 <= held["probability"].min() <= held["probability"].max() <= 1
        samples = Samples([synth_shards])
        network = network_of(run, torch.device("cpu"))
        batch, _, grid = batch_of(samples, samples.find(held["keys"][2])[0], network.options)
        assert np.allclose(held["probability"][2], predict(network, batch, grid)[0], atol=1e-3)
    code, text = invoke(show.main, synth_shards, 1, "--run", tmp_path, "--out", tmp_path / "p.png")
    assert code == 1 and text.count("\n") == 1 and str(tmp_path) in text


def test_show_draws_eight_draws(synth_shards, tmp_path):
    out = tmp_path / "draws.png"
    code, text = invoke(show.main, synth_shards, 2, "--augment", "--out", out, "--width", 1400)
    assert code == 0, text
    picture = picture_at(out)
    assert picture.shape[1] == 1400
    samples = Samples([synth_shards])
    batch, _, grid = batch_of(samples, 2, options_without_run(), epoch=0)
    one = DrawnSample(view_of_batch(batch, 0, maps_of_batch(batch, 0, grid)), (False,) * 6, "")
    pitch = np.diff([augmentation_sheet(one.view, [one] * n, 1400).shape[0] for n in (1, 2)]).item()
    rest = picture.shape[0] - 8 * pitch  # title and legend, about as high
    assert 0 < rest < 2 * pitch
    rows = [picture[rest // 2 + n * pitch :][:pitch] for n in range(8)]
    for n, row in enumerate(rows):
        assert all((row != other).any(-1).mean() > 0.3 for other in rows[:n])


def test_show_writes_a_scene_as_a_video(synth_shards, tmp_path):
    for name in ("s.webm", "s.gif"):
        code, text = invoke(show.main, synth_shards, "scene-0103", "--video", tmp_path / name, "--width", 500)
        assert code == 0 and "4 keyframes" in text, text
    video = cv2.VideoCapture(str(tmp_path / "s.webm"))
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    assert len(frames) == 4 and frames[0].shape[1] == 500 and (frames[0] != frames[3]).any()
    image_module = pytest.importorskip("PIL.Image")
    gif = image_module.open(tmp_path / "s.gif")
    assert gif.n_frames == 4
    gif.seek(2)
    frame = np.array(gif.convert("RGB"))
    assert all(has_colour(frame, kind.colour) for kind in palette.KINDS)  # as its own legend says
    assert not list(tmp_path.glob(".*"))


def test_a_video_that_fails_leaves_nothing(tmp_path):
    def pictures():
        yield np.zeros((64, 64, 3), np.uint8)
        raise ValueError("damaged")

    for name in ("a.webm", "a.gif"):
        with pytest.raises(ValueError, match="damaged"):
            write_video(tmp_path / name, pictures(), 2.0)
    with pytest.raises(ValueError, match="ends in"):
        write_video(tmp_path / "a.mp4", pictures(), 2.0)
    assert not list(tmp_path.iterdir())


def test_show_writes_a_recording(synth_shards, tmp_path):
    reader = pytest.importorskip("mcap_protobuf.reader")
    out = tmp_path / "s.mcap"
    code, text = invoke(show.main, synth_shards, "scene-0103", "--mcap", out)
    assert code == 0 and "4 keyframes" in text, text
    messages = {}
    for message in reader.read_protobuf_messages(str(out)):
        messages.setdefault(message.topic, []).append(message.proto_msg)
    assert {f"/{name}/image" for name in CAMERAS} < set(messages)
    samples = Samples([synth_shards])
    number = samples.find("scene-0103")[0]
    members = samples.members(number)
    assert messages["/CAM_BACK/image"][0].data == bytes(members["CAM_BACK.jpg"])
    sample = decode_json(members[SAMPLE])
    assert messages["/boxes"][0].entities[3].id == sample["boxes"]["instance"][3]
    assert len(messages["/lidar"][0].data) == 16 * view_of_record("k", members).lidar.shape[1]
    moved = {m.child_frame_id: m for m in messages["/pose"][:7]}
    pose = moved["CAM_BACK"]
    turn = Quaternion(pose.rotation.w, pose.rotation.x, pose.rotation.y, pose.rotation.z).rotation_matrix
    back = decode_rows(members[CAMERAS_MEMBER], CAMERA_DTYPE, CAMERAS_MEMBER)[CAMERAS.index("CAM_BACK")]
    assert np.allclose(turn, back["ego_T_cam"][:3, :3], atol=0.02)  # but for what the car turned in between
    camera = messages["/CAM_BACK/calibration"][0]
    assert (camera.frame_id, camera.width, camera.height) == ("CAM_BACK", back["width"], back["height"])
    assert np.allclose(camera.K, back["intrinsics"].ravel())
    assert np.allclose(np.reshape(camera.P, (3, 4)), np.pad(back["intrinsics"], ((0, 0), (0, 1))))
    radar = view_of_record("k", members).radar
    assert np.array_equal(np.frombuffer(messages["/radar"][0].data, "<f4").reshape(-1, 5).T, radar[:5].astype("<f4"))
    assert [field.name for field in messages["/radar"][0].fields] == ["x", "y", "z", "vx", "vy"]
    panels = messages["/bev/panels"][0]
    drawn = cv2.imdecode(np.frombuffer(panels.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert panels.format == "png" and drawn.shape[1] == 1200 and has_colour(drawn, palette.TRUTH)
    assert all(len(sent) == 4 for topic, sent in messages.items() if topic != "/pose")  # a keyframe each
    grid = messages["/bev/grid"][0]
    assert grid.column_count == 200 and len(grid.data) == 200 * grid.row_stride
    truth = np.frombuffer(grid.data, "<f4").reshape(200, 200, -1)[..., 0]
    # Every point of the edges lies on two faces of its box at least.
    edges, boxes = messages["/boxes/edges"][0], view_of_record("k", members).boxes
    data = np.frombuffer(edges.data, np.uint8).reshape(len(boxes.categories), -1, edges.point_stride)
    assert [(f.name, f.offset) for f in edges.fields][3:] == [("red", 12), ("green", 13), ("blue", 14), ("alpha", 15)]
    assert (data[3, 0, 12:] == [*palette.colour_of(boxes.categories[3]), 255]).all()
    points = np.ascontiguousarray(data[..., :12]).view("<f4")
    box_T_ego = np.linalg.inv(boxes.ego_T_box)
    own = np.einsum("nij,npj->npi", box_T_ego[:, :3, :3], points) + box_T_ego[:, None, :3, 3]
    off = np.abs(np.abs(own) - boxes.lrt[:, None, :3] / 2)
    assert ((off < 1e-3).sum(-1) >= 2).all() and (np.abs(own) < boxes.lrt[:, None, :3] / 2 + 1e-3).all()
    # The cells of the grid, placed by its pose, lie within the boxes that made them.
    turn = Quaternion(*(getattr(grid.pose.orientation, k) for k in "wxyz")).rotation_matrix
    rows, columns = np.nonzero(truth)
    cells = np.stack([(columns + 0.5) * grid.cell_size.x, (rows + 0.5) * grid.cell_size.y, 0 * rows], 1)
    cells = cells @ turn.T + [grid.pose.position.x, grid.pose.position.y, grid.pose.position.z]
    record = view_of_record("k", members).boxes
    cars = [n for n, c in enumerate(record.categories) if c.startswith("vehicle")]
    away = np.linalg.norm(cells[:, None, :2] - record.ego_T_box[cars, :2, 3], axis=-1)
    assert (away.min(1) < 8.0).all() and np.median(away.min(1)) < 2.5


def test_shards_without_annotations_can_be_shown_and_predicted_on(synth_shards, run, tmp_path):
    tar = tmp_path / "test-000.tar"
    with tarfile.open(synth_shards / "val-000.tar") as old, tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as new:
        for entry in old:
            data = old.extractfile(entry).read()
            if entry.name.endswith(SAMPLE):
                sample = json.loads(data)
                sample["facts"] |= {"annotated": False, "split": "test", "version": "v1.0-test"}
                sample["boxes"] = {name: [] for name in sample["boxes"]}
                data = json.dumps(sample).encode()
            elif entry.name.endswith(BOXES_MEMBER):
                data = encode_rows(np.zeros(0, BOX_DTYPE))
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    index_path(tar).write_bytes(dump_index(build_index(tar)))
    for more in ((), ("--run", run)):
        code, text = invoke(show.main, tmp_path, 0, "--out", tmp_path / "p.png", "--width", 800, *more)
        assert code == 0, text
        assert not has_colour(picture_at(tmp_path / "p.png"), palette.MISSED)
    assert invoke(preprocess_show.main, tmp_path)[0] == 0
    # All of the shards at once, with and without annotations: the same pictures give the same maps.
    held = []
    for shards, name in ((tmp_path, "test.npz"), (synth_shards / "val-000.tar", "val.npz")):
        code, text = invoke(show.main, shards, "--run", run, "--predictions", tmp_path / name, "--device", "cpu")
        assert code == 0 and f"{name}: 4 keyframes" in text, text
        held.append(np.load(tmp_path / name))
    names = {"probability", "keys", "tokens", "low_xz_m", "high_xz_m", "ego_T_cam0"}
    assert set(held[0]) == names and held[0]["probability"].dtype == np.float16 and held[0]["probability"].std() > 0
    assert all(np.array_equal(held[0][name], held[1][name]) for name in names)


def test_mistakes_end_in_one_line(synth_shards, tmp_path):
    damaged = tmp_path / "val-000.tar"
    damaged.write_bytes((synth_shards / "val-000.tar").read_bytes())
    index_path(damaged).write_bytes(index_path(synth_shards / "val-000.tar").read_bytes())
    with tarfile.open(damaged) as tar:
        place = next(entry.offset_data for entry in tar if entry.name.endswith("CAM_BACK.jpg"))
    with open(damaged, "r+b") as file:
        file.seek(place)
        file.write(b"\0" * 64)
    for arguments, words in (
        ((synth_shards, "nobody"), ["nobody", "key"]),
        ((synth_shards, 99), ["99"]),
        ((tmp_path / "none.tar", 0), ["none.tar"]),
        ((tmp_path / "empty-*.tar", 0), ["empty"]),
        ((synth_shards, 0, "--out", tmp_path / "a.bmp"), ["a.bmp", ".png"]),
        ((synth_shards, 0, "--out", tmp_path / "absent" / "a.png"), ["absent"]),
        ((synth_shards, 0, "--video", tmp_path / "a.mp4"), [".webm", ".gif"]),
        ((synth_shards, 0, "--mcap", tmp_path / "a.bag"), [".mcap"]),
        ((synth_shards, 0, "--augment", "--video", "a.gif"), ["--augment"]),
        ((synth_shards, 0, "--out", "a.png", "--video", "a.gif"), ["give one"]),
        ((synth_shards, 0, "--predictions", tmp_path / "a.npz"), ["--run"]),
        (("s3://bucket/val-000.tar", 0), ["s3://bucket"]),
        ((damaged, 0, "--out", tmp_path / "a.png"), ["CAM_BACK.jpg", "val-000.tar", "_0000", "preprocess.verify"]),
    ):
        code, text = invoke(show.main, *arguments)
        assert code == 1, (arguments, text)
        assert text.count("\n") == 1 and all(word in text for word in words), (arguments, text)
    assert not list(tmp_path.glob("a.*")) and not list(tmp_path.glob(".a*"))


def test_show_needs_the_mcap_extra_for_recordings_alone(synth_shards, tmp_path):
    code = "import sys; sys.modules['mcap_protobuf.writer'] = None; from train.show import main; main()"
    result = client.run("-c", code, synth_shards, 0, "--mcap", tmp_path / "a.mcap")
    assert result.returncode == 1 and "bevshards[mcap]" in result.stderr and result.stderr.count("\n") == 1


# --- preprocess.show ---


def test_preprocess_show_counts_what_the_shards_hold(synth_shards, tmp_path):
    code, text = invoke(preprocess_show.main, synth_shards, "--json", "--chart", tmp_path / "c.png")
    assert code == 0, text
    got = json.loads(text)
    boxes_seen, kinds, times, sweeps = Counter(), Counter(), {}, Counter()
    for tar in sorted(synth_shards.glob("*.tar")):
        with tarfile.open(tar) as archive:
            members = {entry.name: archive.extractfile(entry).read() for entry in archive}
        for name, data in members.items():
            key, _, member = name.partition(".")
            kinds["images" if member.endswith("jpg") else member.partition(".")[0]] += len(data)
            if member == SAMPLE:
                sample = json.loads(data)
                times.setdefault(sample["scene"]["name"], []).append(sample["timestamp_us"])
                rows = decode_rows(members[f"{key}.{BOXES_MEMBER}"], BOX_DTYPE, BOXES_MEMBER)
                boxes_seen.update(zip(sample["boxes"]["category"], rows["visibility"].tolist(), strict=True))
                sweeps["LIDAR_TOP"] += len(sample["lidar"])
    assert sum(split["samples"] for split in got["splits"].values()) == 24
    assert {name: split["shards"] for name, split in got["splits"].items()} == {"train": 2, "val": 1}
    assert {(c, v): n for c, row in got["boxes"].items() for v, n in enumerate(row) if n} == dict(boxes_seen)
    assert got["bytes_by_kind"]["images"] == kinds["images"] and got["bytes_by_kind"]["lidar"] == kinds["lidar"]
    assert got["bytes_by_kind"]["sample.json"] == kinds["sample"]
    assert got["hours"] * 3600 == pytest.approx(sum(max(t) - min(t) for t in times.values()) / 1e6)
    assert got["sensors"]["LIDAR_TOP"] == {"samples": 24, "sweeps": sweeps["LIDAR_TOP"]}
    assert got["keyframes_by_scene"] == {name: len(t) for name, t in times.items()}
    assert picture_at(tmp_path / "c.png").shape[1] == 1000


def test_preprocess_show_says_how_shards_were_made_and_what_was_left_out(synth_shards, tmp_path):
    for name in ("val-000.tar", "val-000.idx.json"):
        (tmp_path / name).symlink_to(synth_shards / name)
    options = json.loads((synth_shards / "val.manifest.json").read_bytes())["options"]
    left = [{"key": "scene-0103_0001", "token": "t", "why": "CAM_BACK: no such file"}]
    (tmp_path / skipped_name("val-000")).write_text(json.dumps({"skipped": left}))
    got = json.loads(CliRunner().invoke(preprocess_show.main, [str(tmp_path), "--json"]).stdout)
    assert got["skipped"] == left and {n: [v] for n, v in options.items()}.items() <= got["options"].items()
    code, text = invoke(preprocess_show.main, tmp_path)
    assert code == 0 and "1 sample was left out" in text and "  scene-0103_0001: CAM_BACK: no such file" in text
    assert "as in the source" in text and re.search(r"  sweeps +3\n", text), text


def test_preprocess_show_prints_a_table_for_a_terminal(synth_shards, tmp_path):
    result = run_module("preprocess.show", *sorted(synth_shards.glob("val-*.tar")))
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "vehicle.car" in result.stdout and "LIDAR_TOP" in result.stdout and not result.stderr
    for arguments in ((tmp_path,), (tmp_path / "none.tar",), (synth_shards, "--chart", "c.gif")):
        code, text = invoke(preprocess_show.main, *arguments)
        assert code == 1 and text.startswith("error: ") and text.count("\n") == 1


def test_points_in_cameras_lie_where_they_project_near_ones_on_top(capsys, synth_shards, tmp_path):
    camera = Camera("A", np.zeros((40, 60, 3), np.uint8), np.array([[30.0, 0, 30], [0, 30, 20], [0, 0, 1]]), np.eye(4))
    points = np.array([[0, 0, 50], [0, 0, 5], [2, 1, 10], [0, 0, -5], [99, 0, 5]], float).T  # the last two are not seen
    image = draw_points(camera, points).image
    assert np.argwhere(image.any(2)).tolist() == [[20, 30], [23, 36]]
    assert image[20, 30].tolist() == ramp(DEPTH_RAMP, 5.0, 0.0, FAR_M).tolist()
    assert draw_points(camera, points, 3).image.any(2).sum() > 40 and not camera.image.any()
    out = tmp_path / "points.png"
    call_module("train.show", synth_shards, 0, "--points", "lidar,radar", "--out", out, "--width", 600)
    plain = tmp_path / "plain.png"
    call_module("train.show", synth_shards, 0, "--out", plain, "--width", 600)
    assert (cv2.imread(str(out))[:200] != cv2.imread(str(plain))[:200]).any()
    for words, told in (
        (["--points", "sonar"], "it is lidar, radar"),
        (["--points", "lidar", "--augment"], "leave out"),
    ):
        assert told in call_module("train.show", synth_shards, 0, *words, check=False).stderr


def test_titles_take_the_lines_that_they_need():
    words = "rain, " * 60 + "end"
    assert (
        layout.title(dataclasses.replace(view(), description=words), 800).shape[0] > layout.title(view(), 800).shape[0]
    )
    lines = text.lines_of(words, 300)
    assert " ".join(lines) == words and all(text.text_width(line) <= 300 for line in lines)


def test_labels_are_read_on_top_of_data():
    image = np.full((40, 120, 3), 255, np.uint8)
    text.write(image, "20 m", (10, 25), halo=(0, 0, 0))
    assert image.min() < 40
