"""The generated world: the devkit loads it, its sensors agree, and the same seed gives the same bytes."""

import json
import sys

import cv2
import numpy as np
import pytest

from common.geometry import rigid_inverse
from preprocess.nuscenes import CAMERAS
from preprocess.synth import cameras, sensors
from preprocess.synth.conditions import LOCATIONS, Conditions
from preprocess.synth.folder import Folder
from preprocess.synth.look import Look
from preprocess.synth.roads import AREAS, LINES
from preprocess.synth.things import BUILDING, SCREEN
from preprocess.synth.traffic import sights
from preprocess.synth.world import KEYFRAME_S, Scene
from tests.conftest import call_module, run_module


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
    def square(low, high):
        return np.array([[low, low], [high, low], [high, high], [low, high]], float)

    faces = [(1, 0, square(80, 160)), (0, 0, square(80, 160)), (2, 0, square(400, 480))]
    counts = cameras.count_pixels(faces, (800, 800), 3)
    assert counts[1, 0] == 0 and counts[1, 1] > 0  # wholly behind box 0
    assert (counts[[0, 2], 0] == counts[[0, 2], 1]).all()


def faces_of(scene, channel, seconds, image_hw):
    """What Folder draws and counts: (faces, box poses, global_T_ego)."""
    ego, poses = scene.ego(seconds), scene.poses(seconds)
    cam_T_global = rigid_inverse(ego @ cameras.ego_T_camera(channel))
    return cameras.faces_in_camera(scene.sizes, poses, cam_T_global, cameras.intrinsics(channel, image_hw)), poses, ego


@pytest.mark.parametrize("number", [0, 1, 2])
def test_nearer_boxes_hide_those_behind_them(number):
    scene, image_hw = Scene(5, number, 3.0), (900, 1600)
    compared = 0
    for channel in CAMERAS:
        faces, poses, ego = faces_of(scene, channel, 1.0, image_hw)
        drawn = np.full((112, 200), -1, np.int16)
        for n, _, pixels, _ in faces:
            cv2.fillConvexPoly(drawn, np.round(pixels.clip(-1e6, 1e6) / 8 * 16).astype(np.int32), int(n), shift=4)
        v, u = np.mgrid[:112, :200] * 8.0
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.intrinsics(channel, image_hw)).T
        cam_T_box = rigid_inverse(ego @ cameras.ego_T_camera(channel)) @ poses
        entry = [sensors._slab(rays, box, wlh[[1, 0, 2]] / 2) for box, wlh in zip(cam_T_box, scene.sizes, strict=True)]
        cast = np.where(np.isfinite(entry).any(0), np.argmin(entry, 0), -1).astype(np.int16)
        inner = (cv2.erode(cast, np.ones((3, 3))) == cast) & (cv2.dilate(cast, np.ones((3, 3))) == cast) & (cast >= 0)
        inner[:, [0, -1]] = inner[[0, -1]] = False  # an edge may lie just outside the image
        assert (drawn == cast)[inner].mean() > 0.999
        compared += inner.sum()
    assert compared > 10_000


def rectangle(place, wlh):
    return (tuple(place[:2]), (wlh[1], wlh[0]), float(np.rad2deg(place[2])))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("seconds", [3.0, 20.0])
def test_nothing_overlaps_and_the_ego_hits_nobody(number, seconds):
    scene = Scene(1, number, seconds, occluders=number % 2 == 1)
    for moment in np.linspace(0, seconds, 7):
        ego = scene.ego(moment)
        middle = ego[:2, 3] + 1.4 * ego[:2, 0]
        places = [[*middle, np.arctan2(ego[1, 0], ego[0, 0])], *scene.places(moment)]
        sizes = [[1.7, 4.1, 1.6], *scene.sizes]
        centres, radii = np.array(places)[:, :2], np.hypot(*np.array(sizes)[:, :2].T) / 2
        near = np.linalg.norm(centres[:, None] - centres, axis=-1) < radii[:, None] + radii
        for i, j in zip(*np.triu(near, 1).nonzero(), strict=True):
            boxes = rectangle(places[i], sizes[i]), rectangle(places[j], sizes[j])
            found, corners = cv2.rotatedRectangleIntersection(*boxes)
            houses = i and j and {scene.things[i - 1].category, scene.things[j - 1].category} == {BUILDING}
            assert houses or found == cv2.INTERSECT_NONE or cv2.contourArea(corners) < 0.05


def seen_shares(scene, samples, image_hw=(450, 800)):
    """(samples, things): how much of each is seen, of what would be seen were it alone; NaN where it would not be."""
    out = []
    for k in range(samples):
        counts = np.zeros((len(scene.things), 2))
        for channel in CAMERAS:
            counts += cameras.count_pixels(faces_of(scene, channel, k * KEYFRAME_S, image_hw)[0], image_hw, len(counts))
        out.append(np.where(counts[:, 1] > 0, counts[:, 0] / np.maximum(counts[:, 1], 1), np.nan))
    return np.array(out)


def test_hoardings_hide_what_was_seen_before_and_leave_the_rest_as_it_is():
    standing = hidden = seen_before = hidden_without = 0
    for number in range(6):
        plain, scene = (Scene(7, number, 3.0, occluders) for occluders in (False, True))
        names = ("category", "s", "left", "turn", "along", "attribute")
        without, these = ([tuple(getattr(t, n) for n in names) for t in s.things] for s in (plain, scene))
        kept = [row for row in these if row[0] != SCREEN]
        assert set(kept) <= set(without) and len(kept) > 0.8 * len(without) and len(kept) < len(these)
        assert plain.look_seed == scene.look_seed
        shares = [np.nan_to_num(seen_shares(s, 5)) for s in (plain, scene)]
        for row in kept:
            if not row[0].startswith("vehicle") or row[4]:
                continue
            own, other = shares[1][:, these.index(row)], shares[0][:, without.index(row)]
            for k in range(2, 5):
                place, ego = scene.places(k * KEYFRAME_S)[these.index(row)], scene.ego(k * KEYFRAME_S)
                if np.hypot(*(place[:2] - ego[:2, 3])) > 30:
                    continue
                standing += 1
                hidden += own[k] < 0.6
                seen_before += own[k] < 0.6 <= max(own[k - 2 : k])
                hidden_without += other[k] < 0.6
    assert hidden > 1.2 * hidden_without and seen_before > 0.3 * hidden, (standing, hidden, hidden_without, seen_before)


@pytest.mark.parametrize("number", range(6))
def test_traffic_keeps_to_its_side_and_on_the_road(number):
    scene = Scene(2, number, 3.0)
    hand = 1 if scene.conditions.location.startswith("singapore") else -1
    areas = [e.points.astype(np.float32) for e in scene.roads.layer("drivable_area")]
    walks = [e.points.astype(np.float32) for e in scene.roads.layer("walkway") + scene.roads.layer("ped_crossing")]

    def inside(polygons, xy):
        return any(cv2.pointPolygonTest(p, tuple(map(float, xy)), False) >= 0 for p in polygons)

    moving = 0
    for thing, (x, y, _) in zip(scene.things, scene.places(0.0), strict=True):
        if thing.attribute in ("vehicle.moving", "vehicle.stopped"):
            assert np.sign(thing.left) == hand * (1 if abs(thing.turn) < 1 else -1)
            assert thing.along * np.cos(thing.turn) >= 0
            moving += 1
        if thing.category.startswith(("vehicle", "movable")):
            assert inside(areas, (x, y))
        if thing.attribute == "pedestrian.moving":
            assert inside(walks, (x, y))
    assert moving > 2


def test_streets_have_the_layers_of_a_map():
    for number in range(4):
        roads = Scene(0, number, 3.0).roads
        names = {element.layer for element in roads.elements}
        assert {*AREAS, *LINES} - names <= {"carpark_area", "lane_divider"}
        assert all(np.isfinite(e.points).all() and e.points.shape[1] == 2 for e in roads.elements)
        for lane in roads.layer("lane"):
            assert cv2.contourArea(lane.points.astype(np.float32)) > 3


def test_few_scenes_hold_every_kind_and_place():
    for first in range(40):
        five = [Conditions.of(n) for n in range(first, first + 5)]
        assert {c.light for c in five} == {"day", "dusk", "night"} and {c.rain for c in five} == {True, False}
        assert (
            {c.location for c in five}
            == set(LOCATIONS)
            == {*("singapore-onenorth", "singapore-hollandvillage", "singapore-queenstown", "boston-seaport")}
        )
    assert {("Night" in text, "Rain" in text) for text in (Conditions.of(n).describe([]) for n in range(10))} == {
        *((False, False), (True, False), (False, True), (True, True))
    }
    assert Conditions.of(1).describe(sights(Scene(0, 1, 3.0))).startswith("Night, intersection")


def test_scenes_of_a_place_lie_apart():
    scenes = [Scene(0, number, 20.0) for number in range(0, 24, 4)]
    corners = [(q.min((0, 1)), q.max((0, 1))) for q in (np.array([quad for _, quad in s.roads.paint]) for s in scenes)]
    for i, (low, high) in enumerate(corners):
        assert (low > -40).all()
        assert all((low > other).any() or (high < one).any() for one, other in corners[:i])


def painted(number, seconds=1.0, channel="CAM_FRONT", image_hw=(900, 1600)):
    """(scene, look, image without boxes, cam_T_global)."""
    scene = Scene(0, number, 3.0)
    look = Look(scene, image_hw)
    _, poses, ego = faces_of(scene, channel, seconds, image_hw)
    painter = cameras.Painter(scene, look, image_hw)
    image = painter.render(channel, [], poses, ego, np.random.default_rng(0))
    return scene, look, image, rigid_inverse(ego @ cameras.ego_T_camera(channel))


def test_paint_lies_where_the_geometry_says_and_returns_more_light():
    compared = 0
    for number in (0, 3, 4, 5):
        scene, _, image, cam_T_global = painted(number)
        ground = sensors.GroundShine(scene.roads)
        quads = np.array([quad for surface, quad in scene.roads.paint if surface == "white"])
        assert (ground.at(quads.mean(1)) > 30).mean() > 0.95  # stop lines lie over the end of others
        points = cameras.on_ground(quads.mean(1, keepdims=True), cam_T_global)[:, 0]
        pixels = points @ cameras.intrinsics("CAM_FRONT", image.shape[:2]).T
        pixels = np.floor(pixels[:, :2] / pixels[:, 2:]).astype(int)
        seen = (points[:, 2] > 4) & (points[:, 2] < 25) & ((pixels >= 0) & (pixels < [1600, 900])).all(1)
        white = image[pixels[seen, 1], pixels[seen, 0]].mean(1)
        road = np.median(image[600:, 400:1200].mean(-1))
        compared += seen.sum()
        assert (white > 1.5 * road).mean() > 0.8  # the rest lies in the shadow of a vehicle
    assert compared > 30


def test_night_is_dark_and_rain_is_pale():
    day, night, rain = (painted(number)[2] for number in (0, 1, 2))
    assert night.mean() < 0.4 * day.mean()
    saturation = [cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[:400, :, 1].mean() for image in (day, rain)]
    assert saturation[1] < 0.5 * saturation[0]


def test_a_split_file_names_scenes_of_one_s_own_and_no_devkit_is_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nuscenes", None)  # whose import fails
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["street-1", "street-2"], "val": ["street-3"]}))
    options = ["--version", "v1.0-mini", "--split-file", splits]
    world, small = tmp_path / "world", "--samples 1 --sweeps 0 --tables-only".split()
    call_module("preprocess.synth.__main__", "--out", world, *options, "--scenes", 3, *small)
    rows = json.loads((world / "v1.0-mini" / "scene.json").read_text())
    assert [row["name"] for row in rows] == ["street-1", "street-2", "street-3"]
    result = call_module("preprocess.synth.__main__", "--out", tmp_path / "x", *options, "--scenes", 4, check=False)
    assert result.returncode == 1 and result.stderr == (
        f"error: {splits} has fewer than 4 scenes; lower --scenes, or take a split that has more\n"
    )
