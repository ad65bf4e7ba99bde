"""The batch's axes: classes, boxes apart from labels, the grid's frame, and the sensors' own clocks."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.geometry import apply_4x4, merge_rt, transform_lrtlist
from common.record import CAMERAS_MEMBER, SAMPLE, decode_cameras, decode_json
from tests.small_step import inputs
from train.classes import POSITIVES, ClassSpec, class_specs
from train.data import Grid, LabelSpec, compile_data
from train.data.frames import are_real, ego_T_camegos, ego_T_nows
from train.model.forward import lidar_occupancy
from train.model.points import ref_T_cams
from train.options import Options, as_dict, coerce

CONF = {"final_dim": (28, 50), "resize_lim": [0.8, 1.2], "crop_offset": 5, "ncams": 4}
GRID = dict(centroid=None, bounds=(-50, 50, -5, 5, -50, 50), res_3d=(50, 2, 50))
CLASSES = (
    ClassSpec("car", ("vehicle.car",)),
    ClassSpec("other", ("vehicle.truck", "vehicle.bus")),
    ClassSpec("human", ("human",)),
)


def batches_of(folder, **options):
    options = {"bsz": 3, "nworkers": 0, "nworkers_val": 0, "nsweeps": 1, "seed": 3} | options
    return compile_data(f"{folder}/train-*.tar", None, CONF, **GRID, **options)[0]


@pytest.mark.parametrize("protocol", [{}, {"protocol": "min_visibility", "min_visibility": 2}])
def test_the_maps_of_several_classes_are_those_of_each(small_shards, protocol):
    several = batches_of(small_shards, classes=CLASSES, **protocol)
    assert several.decode.labels[0].class_names == ("car", "other", "human")
    alone = [batches_of(small_shards, target_categories=one.categories, **protocol) for one in CLASSES]
    drawn = 0
    for batch, *others in zip(several, *alone, strict=True):
        assert batch.class_names == ("car", "other", "human") and others[0].class_names == ("vehicle.car",)
        seg, valid = batch.labels["target"]
        assert seg is batch.seg_bev and valid is batch.valid_bev and seg.shape == (3, 1, 3, 50, 50)
        for k, one in enumerate(others):
            assert torch.equal(seg[:, :, k], one.seg_bev[:, :, 0]) and torch.equal(
                valid[:, :, k], one.valid_bev[:, :, 0]
            )
        # Boxes, centres and offsets are those of any class, drawn into one map in the record's order.
        assert torch.equal((batch.box_numbers > 0)[:, :, None], seg.amax(2, keepdim=True) > 0)
        assert torch.equal((batch.offset_bev != 0).any(2), (batch.offset_bev != 0).any(2) & (batch.box_numbers > 0))
        torch.testing.assert_close(batch.center_bev, torch.stack([one.center_bev for one in others]).amax(0))
        for b, facts in enumerate(batch.facts):
            count = int(batch.num_boxes[b, 0])
            want = [
                next(k for k, one in enumerate(CLASSES) if name.startswith(one.categories))
                for name in facts[0].categories
            ]
            assert batch.box_class[b, 0].tolist() == want + [-1] * (batch.box_class.shape[2] - count)
        drawn += seg.sum((0, 1, 3, 4))
    assert (drawn > 0).all()


def test_one_class_is_what_it_was(small_shards):
    for batch, plain in zip(
        batches_of(small_shards, classes=(ClassSpec("vehicle", ("vehicle",)),)), batches_of(small_shards), strict=True
    ):
        for name, tensor in vars(plain).items():
            if isinstance(tensor, torch.Tensor):
                same = torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(getattr(batch, name)))
                assert same, name


def test_boxes_are_chosen_apart_from_labels(small_shards):
    chosen = batches_of(small_shards, box_categories=("human", "vehicle.car"), target_categories=("vehicle",))
    of_none = 0
    for batch, plain in zip(chosen, batches_of(small_shards), strict=True):
        for name in ("seg_bev", "valid_bev", "center_bev", "offset_bev"):
            assert torch.equal(getattr(batch, name), getattr(plain, name))
        for b, (facts,) in enumerate(batch.facts):
            names, count = facts.categories, int(batch.num_boxes[b, 0])
            assert len(names) == count and all(name.startswith(("human", "vehicle.car")) for name in names)
            assert batch.box_class[b, 0, :count].tolist() == [0 if n.startswith("vehicle") else -1 for n in names]
            of_none += sum(n.startswith("human") for n in names)
            # Where a car lies on top in the labels, the number is now its own among these boxes.
            theirs = dict(enumerate(plain.facts[b][0].instances, 1))
            for z, x in torch.nonzero(plain.box_numbers[b, 0]).tolist():
                on_top, now = theirs[int(plain.box_numbers[b, 0, z, x])], int(batch.box_numbers[b, 0, z, x])
                assert (facts.instances[now - 1] == on_top) if now else (on_top not in facts.instances)
    assert of_none > 0
    assert Options(box_categories=coerce("box_categories", "human,vehicle.car")).box_categories == (
        "human",
        "vehicle.car",
    )


def test_velocities_are_in_ref_and_facts_are_arrays_that_torch_takes(small_shards):
    for frame in ("cam0", "ego"):
        batch = next(iter(batches_of(small_shards, frame=frame, get_tids=True)))
        for b, (facts,) in enumerate(batch.facts):
            velocity = torch.from_numpy(facts.velocity)
            assert torch.from_numpy(facts.visibility).dtype == torch.int32
            assert all(isinstance(names, tuple) for names in facts.attributes) and len(facts.attributes) == len(
                velocity
            )
            turn = batch.ref_T_ego[b, 0, :3, :3].double() @ batch.egopose[b, 0, :3, :3].double().T
            own = batch.box_velocity[b, 0, : len(velocity)]
            torch.testing.assert_close(own, (velocity @ turn.T).float(), rtol=1e-4, atol=1e-4, equal_nan=True)
            assert not batch.box_velocity[b, 0, len(velocity) :].any()
            assert len(set(facts.instances)) == len(velocity) == batch.tidlist[b, 0].max() + 1


@pytest.mark.parametrize("frame", ["cam0", "ego"])
def test_labels_boxes_and_voxels_lie_in_the_grid_s_frame(small_shards, frame):
    loader = batches_of(small_shards, frame=frame)
    grid, seen = loader.stage.vox_util, 0
    assert loader.decode.grid.centroid == ((0, 1, 0) if frame == "cam0" else (0, -0.5, 0))
    for batch in loader:
        ref_T_ego = batch.ref_T_ego
        if frame == "ego":
            front = apply_4x4(ref_T_ego[0, 0], torch.tensor([[10.0, 2.0, 1.0]]))
            assert front.tolist() == [[-2.0, -1.0, 10.0]]
        else:
            cam0 = merge_rt(batch.rots[:, :, 0], batch.trans[:, :, 0])
            torch.testing.assert_close(ref_T_ego @ cam0, torch.eye(4).expand_as(cam0), rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.lrtlist_ref, transform_lrtlist(ref_T_ego, batch.lrtlist), rtol=1e-5, atol=1e-5)
        # In the middle of a box that nothing covers there is that box.
        cells = grid.ref_to_mem(batch.lrtlist_ref[..., 3:].unflatten(-1, (4, 4))[..., :3, 3]).round().long()
        for b, n in torch.nonzero(torch.arange(cells.shape[2]) < batch.num_boxes).tolist():
            x, _, z = cells[b, 0, n].tolist()
            if 1 <= x < 49 and 1 <= z < 49 and batch.lrtlist[b, 0, n, :2].min() > 2.5:
                assert batch.seg_bev[b, 0, 0, z, x] == 1
                seen += 1
        points = apply_4x4(ref_T_ego[:, 0], batch.lidar_data[:, 0].transpose(1, 2))
        mem, occupied = grid.ref_to_mem(points).round().long(), lidar_occupancy(batch, 0, grid)[:, 0]
        inside = grid.get_inbounds(points) & (batch.lidar_data[:, 0].norm(dim=1) > 1) & (points.norm(dim=-1) > 1)
        inside &= torch.arange(points.shape[1]) < batch.num_lidar
        b, n = torch.nonzero(inside).unbind(1)
        x, y, z = mem[b, n].unbind(-1)
        away = x + y + z > 0  # voxel (0, 0, 0) is always emptied
        assert occupied[b, z, y, x][away].all()
    assert seen > 3


def test_cameras_have_their_own_times(real_shards):
    for true_times in (False, True):
        loader = batches_of(real_shards, true_times=true_times, use_cameras=False, bsz=1)
        batch = next(iter(loader))
        assert batch.true_times is true_times
        ego_T_cams = merge_rt(batch.rots[:, 0], batch.trans[:, 0])
        for b, key in enumerate(facts.key for (facts,) in batch.facts):
            members = loader.reader.read(loader.reader.keys.index(key), [SAMPLE, CAMERAS_MEMBER])
            sample = decode_json(members[SAMPLE])
            rows = dict(
                zip(
                    [c["channel"] for c in sample["cameras"]],
                    decode_cameras(members[CAMERAS_MEMBER], sample),
                    strict=True,
                )
            )
            poses = np.stack([rows[name]["global_T_ego"] for name in batch.cams[b]])
            want = np.linalg.inv(np.array(sample["global_T_ego"])) @ poses
            assert np.abs(batch.ego_T_camego[b, 0].numpy() - want).max() < 1e-5
            assert (
                np.abs(want[:, :3, 3]).max() > 0.3
            )  # metres that the car drives between a camera's time and the lidar's
            moved = batch.ego_T_camego[b, 0] @ ego_T_cams[b] if true_times else ego_T_cams[b]
            torch.testing.assert_close(ref_T_cams(batch)[b], batch.ref_T_ego[b, 0] @ moved, rtol=1e-6, atol=1e-5)


def about(axis, angle):
    """(3,3) float64: a turn about one of the axes."""
    one, other, turn = (axis + 1) % 3, (axis + 2) % 3, np.eye(3)
    turn[[one, other], [one, other]] = np.cos(angle)
    turn[other, one], turn[one, other] = np.sin(angle), -np.sin(angle)
    return turn


poses = st.lists(st.tuples(st.floats(-3, 3), st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=5)


@given(poses, st.floats(-1e6, 1e6))
def test_relative_poses_keep_millimetres_in_map_coordinates(steps, origin):
    global_T_ego = np.tile(np.eye(4), (len(steps), 1, 1))
    for pose, (yaw, x, y) in zip(global_T_ego, steps, strict=True):
        pose[:3, :3] = about(2, yaw) @ about(1, 0.02) @ about(0, -0.01)
        pose[:3, 3] = origin + x, 5e6 + y, 30.0
    now = ego_T_nows(global_T_ego)
    assert now.dtype == np.float32 and np.allclose(now[0], np.eye(4), atol=1e-6)
    # A thing that stands still: where the ego saw it at t = 0, and where it sees it at t.
    there = global_T_ego[0] @ [20.0, 3.0, 1.0, 1.0]
    for pose, ego_T_now in zip(global_T_ego, now, strict=True):
        seen = pose[:3, :3].T @ (there[:3] - pose[:3, 3])
        assert np.abs((ego_T_now @ np.array([20.0, 3.0, 1.0, 1.0], np.float32))[:3] - seen).max() < 1e-3
    camego = ego_T_camegos(global_T_ego[0], global_T_ego)
    assert np.abs(camego @ now - np.eye(4)).max() < 1e-3


@given(st.lists(st.integers(1, 2_000_000), min_size=1, max_size=6), st.sampled_from([0.1, 0.5]))
def test_a_keyframe_behind_a_gap_is_not_real_nor_what_is_behind_it(back_us, interval_s):
    times = 10**15 - np.cumsum([0, *back_us])
    real = are_real(times, interval_s)
    want = [True]
    for step in back_us:
        want.append(want[-1] and step <= 1.5e6 * interval_s)
    assert real.tolist() == want
    assert are_real(times[::-1], interval_s).all()  # Simple-BEV's windows, which look forward
    repeated = np.concatenate([times, times[-1:], times[-1:]])
    assert not are_real(repeated, interval_s)[-2:].any()


def test_classes_come_from_python_and_from_files():
    plain = [{"name": "car", "categories": ["vehicle.car"]}, {"name": "human", "categories": "human", "weight": 2}]
    specs = coerce("classes", plain)
    assert specs == (ClassSpec("car", ("vehicle.car",)), ClassSpec("human", ("human",), 2.0))
    options = Options(classes=specs)
    options.validate()
    recorded = as_dict(options)["classes"]
    human = {"name": "human", "categories": ["human"], "weight": 2.0, "positives": POSITIVES}
    assert class_specs(recorded) == specs and recorded[1] == human
    assert LabelSpec.of(options).class_names == ("car", "human")
    assert LabelSpec.of(Options()).class_names == ("vehicle",)
    for wrong, told in (
        ([{"name": "car"}], "it has a name, categories"),
        ([specs[0], specs[0]], "different names"),
        ("car", "name=category"),
        ([{"name": "a/b", "categories": ["x"]}], "without /"),
        ([{"name": "car", "categories": []}], "names no category"),
        ([{"name": "car", "categories": ["x"], "weight": 0}], "positive number"),
    ):
        with pytest.raises(ValueError, match=told):
            class_specs(wrong)
    with pytest.raises(ValueError, match="leave one out"):
        dataclasses.replace(options, target_categories=("human",)).validate()


def test_the_grid_s_frame_and_its_centroid_are_options():
    assert Grid.of(Options()) == Grid((0, 1, 0), (-50, 50, -5, 5, -50, 50), (200, 8, 200))
    assert Grid.of(Options(frame="ego")).centroid == (0.0, -0.5, 0.0)
    assert Grid.of(Options(frame="ego", centroid=coerce("centroid", "0,1,2"))).centroid == (0.0, 1.0, 2.0)
    with pytest.raises(ValueError, match="cam0, ego"):
        Grid((0, 1, 0), (-50, 50, -5, 5, -50, 50), (200, 8, 200), "lidar")
    with pytest.raises(ValueError, match="--frame car: it is cam0 or ego"):
        Options(frame="car").validate()


def test_true_times_are_off_without_being_asked_for():
    batch, _ = inputs()
    assert not batch.true_times and not Options().true_times
