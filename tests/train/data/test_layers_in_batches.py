"""Layers and map classes in batches: what a network asks for by name, and labels that come from the map."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from common.map_layers import MAP_LAYERS
from common.map_shapes import EXTERIOR, LINE, MEMBERS, RING_DTYPE, MapShapes, decode_shapes, encode_shapes
from common.record import decode_array, encode_array
from preprocess.layer import write_layer
from preprocess.layers import depth
from train import show
from train.classes import POSITIVES, PRESETS, ClassSpec, class_specs, parse_classes
from train.data import compile_data, layered, make_loader
from train.data.config import DataConfig, Wanted
from train.data.layer_members import batched
from train.data.maps import map_masks
from train.data.sources import open_source
from train.model.interface import Flips, Needs
from train.model.lidar_depth import depth_maps
from train.options import Options, coerce
from train.pictures.palette import class_colours

AUG = {"final_dim": (64, 96)}
GRID = (None, (-50, 50, -5, 5, -50, 50), (100, 4, 100))
CLASSES = "vehicle=vehicle; drivable=map:drivable_area; divider=map:road_divider,lane_divider @2"


def numbers(sample):
    """Four numbers of every sample; and as many rows as the sample's number in its scene."""
    index = sample.facts["index"]
    members = {"same.npy.zst": np.arange(4, dtype=np.float32) + index, "rows.npy.zst": np.ones((index, 2), np.int64)}
    return {name: encode_array(array) for name, array in members.items()} | {"note.txt": sample.key.encode()}


def streets(sample):
    """A road ahead and behind that the car stands on, and its dividers: the members of layer map."""
    index = [MAP_LAYERS.index(name) for name in ("drivable_area", "road_divider", "lane_divider")]
    rings = np.array([(index[0], EXTERIOR, 4), (index[1], LINE, 2), (index[2], LINE, 3)], RING_DTYPE)
    turn = sample.facts["index"]  # metres, so that no two samples have the same
    road = [[-60, -9], [60, -9 - turn], [60, 8], [-60, 8]]
    lines = [[-40, 3], [50, 3 + turn], [-70, -5], [0, -4], [70, -5]]
    return encode_shapes(MapShapes(rings, np.array(road + lines, np.float32)))


@pytest.fixture(scope="module")
def shards(small_shards, tmp_path_factory):
    """A copy of the small shards, with layers map, depth and numbers."""
    out = shutil.copytree(small_shards, tmp_path_factory.mktemp("layered") / "shards")
    write_layer(out, "map", streets, options={"extent_m": 80})
    write_layer(out, "depth", depth.make)
    write_layer(out, "numbers", numbers)
    return out


def batches(shards, **options):
    _, val = compile_data(None, shards, AUG, *GRID, 3, 0, use_radar=False, use_lidar=False, **options)
    return list(val)


def config_of(layers, **options):
    options = Options(shards=("x",), Z=100, X=100, Y=4, batch_size=3, image_size="64x96", nworkers=0, **options)
    return DataConfig.of(options, wanted=Wanted(layers=tuple(layers.items())), is_train=False)


def test_classes_of_a_text_are_those_of_python():
    made = parse_classes(CLASSES)
    divider = ("map:road_divider", "map:lane_divider")
    assert made == (
        ClassSpec("vehicle", ("vehicle",)),
        ClassSpec("drivable", ("map:drivable_area",)),
        ClassSpec("divider", divider, 2),
    )
    assert coerce("classes", CLASSES) == made
    weighed = parse_classes("a=b @3 +20; c=d +5; e=f")
    assert [(spec.weight, spec.positives) for spec in weighed] == [(3.0, 20.0), (1.0, 5.0), (1.0, POSITIVES)]
    assert weighed[1] == class_specs([{"name": "c", "categories": "d", "positives": 5}])[0]
    assert [len(parse_classes(name)) for name in PRESETS] == [14, 6, 2]
    for text, what in (
        ("vehicle", "name=category"),
        ("a=map:road", "no map layer road; there are drivable_area"),
        ("a=b; a=c", "different names"),
        ("a=b @x", "after @ stands no number"),
        ("a=b @2 +", r"after \+ stands no number"),
        ("a=b +0", "a positive number"),
        ("a=", "names no category"),
    ):
        with pytest.raises(ValueError, match=what):
            parse_classes(text)


@pytest.mark.parametrize("frame", ["cam0", "ego"])
def test_map_classes_are_drawn_beside_boxes(shards, frame):
    [batch] = batches(shards, classes=parse_classes(CLASSES), frame=frame)
    [boxes] = batches(shards, frame=frame)
    assert batch.class_names == ("vehicle", "drivable", "divider") and batch.seg_bev.shape == (3, 1, 3, 100, 100)
    assert torch.equal(batch.seg_bev[:, :, :1], boxes.seg_bev) and torch.equal(
        batch.valid_bev[:, :, :1], boxes.valid_bev
    )
    assert torch.equal(batch.center_bev, boxes.center_bev) and batch.valid_bev[:, :, 1:].all()
    source = layered(open_source(shards, split="val"), config_of({"map": MEMBERS}, frame=frame))
    for b in range(3):
        members = source.read(b, [("map", m) for m in MEMBERS])
        shapes = decode_shapes({name: data for (_, name), data in members.items()})
        mem_T_ref = config_of({}, frame=frame).decode.grid.mem_T_ref
        groups = [("drivable_area",), ("road_divider", "lane_divider")]
        want = map_masks(shapes, groups, mem_T_ref @ batch.ref_T_ego[b, 0].numpy(), (100, 100))
        assert torch.equal(batch.seg_bev[b, 0, 1:], torch.from_numpy(want).float())
        # The car stands on the road.
        if frame == "ego":
            assert batch.seg_bev[b, 0, 1, 48:52, 48:52].all()


def test_show_draws_classes_without_a_run(shards, tmp_path):
    out = tmp_path / "classes.png"
    words = [str(shards / "val-000.tar"), "1", "--classes", CLASSES, "--out", str(out), "--width", "600"]
    result = CliRunner().invoke(show.main, words)
    assert result.exit_code == 0 and f"--classes '{CLASSES}' --augment" in result.stderr, result.output
    picture = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)
    truth = picture[300:530, 400:]  # above the legend, whose patches have the same colours
    road, divider = ((truth == colour).all(-1) for colour in class_colours(3)[1:])
    assert road.sum() > 1000 and divider.sum() > 100
    # A divider lies on its road, and is drawn over it, though its class comes later.
    beside_road = cv2.dilate(road.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert beside_road[divider].mean() > 0.95
    refused = CliRunner().invoke(show.main, [*words, "--run", "x"])
    assert refused.exit_code == 1 and "leave out one of --classes and --run" in refused.stderr


def test_one_class_may_be_of_the_map_alone(shards):
    [batch] = batches(shards, classes=parse_classes("drivable=map:drivable_area"))
    assert batch.seg_bev.shape[2] == 1 and 0.05 < batch.seg_bev.mean() < 0.7
    assert not batch.center_bev.any() and not batch.num_boxes.any()


def test_a_grid_beyond_the_map_is_refused(shards):
    far = (None, (-80, 80, -5, 5, -80, 80), (100, 4, 100))
    with pytest.raises(ValueError, match=r"corners lie 113\.1 m away, layer map reaches 80 m.*--extent 114"):
        compile_data(None, shards, AUG, *far, 3, 0, classes=parse_classes(CLASSES))
    moved = dict(bev_shift=5.0, bev_scale=0.1, bev_rotate=90.0, classes=parse_classes(CLASSES))
    with pytest.raises(
        ValueError, match=r"corners lie 86\.4 m away.*lower --bounds, --bev_shift or --bev_scale.*--extent 87"
    ):
        compile_data(shards, shards, AUG, *GRID, 3, 0, **moved)
    assert compile_data(None, shards, AUG, *GRID, 3, 0, **moved)[1]  # evaluation moves nothing


def test_shards_without_the_map_say_so(small_shards):
    with pytest.raises(ValueError, match="layer map.*copy layers/map/"):
        batches(small_shards, classes=parse_classes(CLASSES))


def test_layers_reach_a_network_by_name(shards):
    layers = {"numbers": ("same.npy.zst", "rows.npy.zst", "note.txt")}
    assert Needs(layers=layers).layers == layers
    for wrong in ({"numbers": ()}, {"numbers": "same"}, ["numbers"]):
        with pytest.raises(ValueError, match="Needs: layers"):
            Needs(layers=wrong)
    loader = make_loader(open_source(shards, split="val"), config_of(layers), 2)
    [batch] = loader
    own = batch.layers["numbers"]
    index = [int(facts[0].key[-4:]) for facts in batch.facts]
    assert own["same.npy.zst"].tolist() == [[[n, n + 1, n + 2, n + 3]] for n in index]
    assert own["num_rows.npy.zst"].tolist() == [[n] for n in index]
    assert [[len(rows) for rows in window] for window in own["rows.npy.zst"]] == [[n] for n in index]
    assert own["note.txt"] == [[facts[0].key.encode()] for facts in batch.facts]
    assert len(batch.to("cpu").layers["numbers"]["rows.npy.zst"]) == 3


def test_rows_with_fields_reach_a_network_field_by_field(shards):
    """A network that predicts lanes as lines takes the map's rings as they are, not drawn."""
    loader = make_loader(open_source(shards, split="val"), config_of({"map": MEMBERS}), 0)
    [batch] = loader
    rings, points = batch.layers["map"]["rings.npy.zst"], batch.layers["map"]["points.planes.zst"]
    assert rings["points"].dtype == torch.int64 and rings["points"].tolist() == [[[4, 2, 3]]] * 3
    assert [MAP_LAYERS[n] for n in rings["layer"][0, 0]] == ["drivable_area", "road_divider", "lane_divider"]
    assert rings["kind"].dtype == torch.uint8 and points.shape == (3, 1, 2, 9)
    assert [own.shape[1] for own in points[0, 0].split(rings["points"][0, 0].tolist(), 1)] == [4, 2, 3]
    rows = np.array([(1, 2.5)], [("a", ">u2"), ("b", "<f4")])
    back = decode_array(encode_array(rows), "x")
    out = batched([{"l": {"m": back}}, {"l": {}}, {"l": {"m": np.repeat(back, 2)}}], (3, 1), "cpu")["l"]
    assert out["num_m"].tolist() == [[1], [0], [2]] and out["m"]["a"][0][0].dtype == torch.int32
    assert out["m"]["a"][1] == [None] and out["m"]["b"][2][0].tolist() == [2.5, 2.5]
    with pytest.raises(ValueError, match="layer l: m has fields .* in different keyframes"):
        batched([{"l": {"m": back}}, {"l": {"m": np.zeros(3)}}], (2, 1), "cpu")


def test_depth_is_that_of_the_lidar_in_the_batch(shards):
    """Points through the cameras' own poses, and then resized and cropped, as points of the batch's lidar are."""
    layers = {"depth": (depth.MEMBER,)}
    loader = make_loader(open_source(shards, split="val"), config_of(layers, use_lidar=True, nsweeps=1), 0)
    batch = loader.batch_of([1], augment=True)
    [[points]] = batch.layers["depth"][depth.MEMBER]
    record = [camera.name for camera in loader.reader.rig.cameras]
    count = int(batch.num_lidar0[0, 0])
    ego = torch.cat([batch.lidar_data[0, 0, :, :count], torch.ones(1, count)]).double()
    for slot, name in enumerate(batch.cams[0]):
        own = points[:, points[0] == record.index(name)].double()
        uv1 = torch.stack([own[1], own[2], torch.ones_like(own[1])])
        uv = (batch.pix_T_stored[0, 0, slot].double() @ uv1)[:2]
        ego_T_cam = torch.eye(4).double()
        ego_T_cam[:3, :3], ego_T_cam[:3, 3] = batch.rots[0, 0, slot], batch.trans[0, 0, slot]
        cam = torch.linalg.inv(batch.ego_T_camego[0, 0, slot].double() @ ego_T_cam) @ ego
        ahead = cam[2] > depth.NEAREST_M
        pix = batch.intrins[0, 0, slot, :3, :3].double() @ (cam[:3] / cam[2])
        assert own.shape[1] > 10
        # Each point of the layer is one of the lidar's: as near in pixels and depth as they are stored.
        away = (pix[:2, ahead, None] - uv[:, None]).abs().amax(0) + (cam[2, ahead, None] - own[3]).abs()
        assert away.amin(0).max() < 0.02
        nearest = away.argmin(0)
        assert (cam[2, ahead][nearest] - own[3]).abs().max() < 1e-3


def test_sources_with_other_layers_are_no_copies_of_one_set(small_shards, tmp_path, shards):
    def identity(folder, **layers):
        return layered(open_source(folder, split="val"), config_of(layers)).identity

    other = shutil.copytree(small_shards, tmp_path / "other")
    write_layer(other, "numbers", lambda sample: numbers(sample) | {"note.txt": b"other"})
    ours, theirs = (identity(folder, numbers=("same.npy.zst",)) for folder in (shards, other))
    assert ours != theirs and identity(shards) == identity(other)
    assert [name for name in ours if ours[name] != theirs[name]] == ["another layer numbers"]


@pytest.mark.parametrize("flipped", [False, True])
def test_depth_at_the_size_of_features_is_that_of_the_lidar(shards, flipped):
    """Against a loop over the batch's lidar, projected as a network projects, of augmented images and of any cameras."""
    config = config_of({"depth": (depth.MEMBER,)}, use_lidar=True, nsweeps=1)
    config = replace(config, augment=replace(config.augment, cams=("CAM_BACK", "CAM_FRONT"), resize_lim=(0.8, 1.2)))
    loader = make_loader(open_source(shards, split="val"), config, 0)
    batch = loader.batch_of([0, 2], augment=True)
    flips = Flips.of(torch.full((2, 4), 0.2)) if flipped else None
    hw, near = (8, 12), 0
    maps = depth_maps(batch, hw, flips)
    assert maps.shape == (2, 2, *hw) and maps.dtype == torch.float32
    for b in range(2):
        count = int(batch.num_lidar0[b, 0])
        ego = torch.cat([batch.lidar_data[b, 0, :, :count], torch.ones(1, count)]).double()
        for slot in range(2):
            ego_T_cam = torch.eye(4).double()
            ego_T_cam[:3, :3], ego_T_cam[:3, 3] = batch.rots[b, 0, slot], batch.trans[b, 0, slot]
            cam = torch.linalg.inv(batch.ego_T_camego[b, 0, slot].double() @ ego_T_cam) @ ego
            cam = cam[:3, cam[2] > depth.NEAREST_M]
            pix = batch.intrins[b, 0, slot, :3, :3].double() @ (cam / cam[2])
            stored = torch.linalg.inv(batch.pix_T_stored[b, 0, slot].double()) @ pix
            # What lies on the edge of an image or a cell may fall on its other side, as pixels are stored in steps.
            unsure = ((stored[:2] + 0.5) / torch.tensor([[160.0], [90.0]]) * 2 - 1).abs().amax(0)
            pix, z, unsure = (values[..., unsure < 1.001] for values in (pix, cam[2], unsure))
            want, edge = torch.full(hw, torch.inf).double(), torch.zeros(hw, dtype=bool)
            for (u, v, _), metres, border in zip(pix.T.tolist(), z.tolist(), unsure.tolist(), strict=True):
                row, column = (v + 0.5) / 8, ((95 - u if flipped else u) + 0.5) / 8
                if 0 <= row < hw[0] and 0 <= column < hw[1]:
                    cell = int(row), int(column)
                    want[cell] = min(want[cell], metres)
                    edge[cell] |= min(abs(row - round(row)), abs(column - round(column))) < 0.01 or border > 0.999
            there = want.isfinite() & ~edge
            assert (maps[b, slot][there] - want[there]).abs().max() < 1e-3
            assert maps[b, slot][want.isinf()].count_nonzero() <= edge.sum()
            near += int(there.sum())
    assert near > 20
