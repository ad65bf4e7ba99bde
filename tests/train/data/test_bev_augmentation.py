"""A grid that training turns, scales and shifts: labels, boxes, voxels, maps and camera features move with it, all alike."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.geometry import apply_4x4, similarity_inverse, transform_lrtlist
from common.map_layers import MAP_LAYERS
from common.map_shapes import EXTERIOR, MapShapes
from common.map_shapes import RING_DTYPE as RINGS
from tests.train.data.test_axes import CONF, GRID, batches_of
from train.data import Grid, compile_data
from train.data.augmentation import UNSEEN_PX, augmented, draw_augmentation
from train.data.bev_augmentation import draw_bev, most_reach_m
from train.data.config import AugmentConfig
from train.data.labels import draw_maps, footprints
from train.data.maps import map_masks
from train.data.order import sample_rng
from train.data.targets import bev_targets
from train.model.forward import lidar_occupancy
from train.model.points import ref_T_cams

HALF_A_CELL = 0.5
ZYX = (60, 4, 60)
MOVES = dict(bev_rotate=180.0, bev_scale=0.2, bev_shift=8.0)


def moved_T_ref(seed, **most):
    return draw_bev(np.random.default_rng(seed), AugmentConfig((28, 50), **(MOVES | most)))


def looking_at(there, place):
    """(4,4) ego_T_cam of a camera at `place` whose axis goes through `there`; (3,) ego metres each, z up."""
    forward = (there - place) / np.linalg.norm(there - place)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    out = np.eye(4)
    out[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    out[:3, 3] = place
    return out


def seen_by_all(grid, ref_T_ego, there):
    """(Z,Y,X): of three cameras whose image is bright where they see a thing, the darkest of what each says of a voxel."""
    images, pix_T_cam = torch.zeros(1, 1, 41, 41), torch.eye(4)
    images[0, 0, 20, 20] = 1.0
    pix_T_cam[0, 0] = pix_T_cam[1, 1] = 20.0
    pix_T_cam[:2, 2] = 20.0
    seen = []
    for place in ([-12.0, 1.0, 2.0], [4.0, 13.0, 3.0], [9.0, -11.0, 9.0]):
        ego_T_cam = torch.from_numpy(looking_at(there, there + np.array(place)))
        cam_T_ref = similarity_inverse(torch.from_numpy(ref_T_ego) @ ego_T_cam)[None].float()
        seen.append(grid.unproject_image_to_mem(images, pix_T_cam @ cam_T_ref, cam_T_ref)[0, 0])
    return torch.stack(seen).amin(0)


cells = st.tuples(st.integers(10, 49), st.integers(0, 3), st.integers(10, 49))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), cells, st.floats(-3.1, 3.1), st.sampled_from(["cam0", "ego"]))
def test_all_that_shows_one_thing_shows_it_in_one_voxel(seed, cell, yaw, frame):
    """A box whose middle lies in a voxel's, a lidar point there, a patch of the map around it, and what cameras see of it."""
    where = Grid((0.5, 1.0, 2.0), (-30, 30, -4, 4, -30, 30), ZYX, frame)
    grid, (x, y, z) = where.vox_util(), cell
    ego_T_cam0 = looking_at(np.array([10.0, 3.0, 1.0]), np.array([1.5, 0.2, 1.6])).astype(np.float32)
    ref_T_ego = (moved_T_ref(seed) @ where.ref_T_ego(ego_T_cam0)).astype(np.float32)
    there = np.linalg.inv(ref_T_ego.astype(float)) @ [*grid.mem_to_ref(torch.tensor(cell).float()).tolist(), 1.0]

    ego_T_box = np.eye(4)
    ego_T_box[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    ego_T_box[:3, 3] = there[:3]
    lrt = transform_lrtlist(
        ref_T_ego, np.concatenate([[6.0, 5.0, 1.5], ego_T_box.reshape(-1)])[None].astype(np.float32)
    )
    numbers, valid = draw_maps(footprints(lrt, where.mem_T_ref), np.ones(1, bool), where.zx)
    tensors = (torch.from_numpy(v)[None] for v in (numbers, valid, lrt))
    labels = bev_targets(*tensors, torch.tensor([1]), grid)
    middle = torch.nonzero(labels.seg[0, 0]).double().mean(0)
    # The benchmark truncates corners: half a cell toward zero, on average.
    assert labels.seg[0, 0, z, x] == 1 and (middle - torch.tensor([z, x]) + 0.5).abs().max() <= HALF_A_CELL + 0.1
    assert torch.equal(torch.nonzero(labels.center[0, 0] == labels.center.max()), torch.tensor([[z, x]]))

    points = apply_4x4(torch.from_numpy(ref_T_ego), torch.from_numpy(there[None, :3]).float())
    assert torch.nonzero(grid.voxelize_xyz(points[None])[0, 0]).tolist() == [[z, y, x]]

    corners = there[:2] + 4.0 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    shapes = MapShapes(np.array([(MAP_LAYERS.index("walkway"), EXTERIOR, 4)], RINGS), corners.astype(np.float32))
    mask = map_masks(shapes, [("walkway",)], where.mem_T_ref @ ref_T_ego, where.zx)[0]
    drawn, level = np.argwhere(mask).mean(0), where.mem_T_ref @ ref_T_ego @ [*there[:2], 0, 1]
    # The map lies on the ego's ground, and the devkit's cells half a cell behind and to the right.
    assert (
        np.abs(drawn - (level[[2, 0]] + [0.5, -0.5])).max() <= HALF_A_CELL + 0.1
        and mask[round(level[2]), round(level[0])]
    )

    seen = seen_by_all(grid, ref_T_ego.astype(float), there[:3])
    assert divmod(int(seen.argmax()), ZYX[1] * ZYX[2])[0] == z and torch.nonzero(seen == seen.max()).tolist() == [
        [z, y, x]
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 30), st.floats(0, 0.5), st.floats(0, 180))
def test_a_moved_grid_reaches_no_farther_than_said(seed, shift, scale, turn):
    conf = dict(bev_shift=shift, bev_scale=scale, bev_rotate=turn)
    move, grid = moved_T_ref(seed, **conf), Grid((1, 0, 3), (-10, 20, -1, 1, -30, 5), (4, 1, 4))
    corners = np.array([[x, 0, z, 1] for x in (-9, 21) for z in (-27, 8)]).T
    back = np.linalg.inv(move) @ corners
    assert np.hypot(back[0], back[2]).max() <= most_reach_m(grid.reach_m, AugmentConfig((28, 50), **conf)) + 1e-6
    squared = move[:3, :3].T @ move[:3, :3]
    assert np.allclose(squared, squared[0, 0] * np.eye(3)) and abs(math.sqrt(squared[0, 0]) - 1) <= scale + 1e-9


@pytest.mark.parametrize("frame", ["cam0", "ego"])
def test_a_batch_is_moved_as_a_whole(small_shards, frame):
    """Every field of an augmented batch against the same batch of a grid that stays."""
    options = dict(frame=frame, nworkers=0, nsweeps=1, seed=3, do_shuffle_cams=True)
    still, moved = (batches_of(small_shards, **options, **more) for more in ({}, MOVES))
    grid = moved.stage.vox_util
    for epoch in range(6):
        still.epoch = moved.epoch = epoch
        want, batch = still.batch_of([0, 4], augment=True), moved.batch_of([0, 4], augment=True)
        again = moved.batch_of([4], augment=True)
        assert torch.equal(again.seg_bev[0], batch.seg_bev[1]) and torch.equal(again.ref_T_ego[0], batch.ref_T_ego[1])
        for name in ("imgs", "intrins", "rots", "trans", "lrtlist", "lidar_data", "radar_data", "ego_T_now"):
            assert torch.equal(getattr(batch, name), getattr(want, name)), name
        move = batch.ref_T_ego[:, 0].double() @ torch.linalg.inv(want.ref_T_ego[:, 0].double())
        drawn = np.stack([draw_bev(sample_rng(3, epoch, n, 3), AugmentConfig((28, 50), **MOVES)) for n in (0, 4)])
        assert np.abs(move.numpy() - drawn).max() < 1e-4
        scale = torch.linalg.det(move[:, :3, :3]) ** (1 / 3)
        lengths = want.lrtlist_ref[..., :3] * scale[:, None, None, None].float()
        torch.testing.assert_close(batch.lrtlist_ref[..., :3], lengths)
        poses, before = (b.lrtlist_ref[:, 0, :, 3:].unflatten(-1, (4, 4)).double() for b in (batch, want))
        real = torch.arange(poses.shape[1]) < batch.num_boxes
        there = (move[:, None] @ before)[..., :3, 3]
        torch.testing.assert_close(poses[..., :3, 3][real], there[real], rtol=1e-5, atol=1e-4)
        turns = poses[..., :3, :3][real]
        torch.testing.assert_close(turns @ turns.mT, torch.eye(3).double().expand_as(turns), rtol=0, atol=1e-4)
        speeds = want.box_velocity[:, 0].double() @ move[:, :3, :3].mT
        torch.testing.assert_close(batch.box_velocity[:, 0].double(), speeds, rtol=1e-4, atol=1e-4, equal_nan=True)
        # Lidar points of the one are voxels of the other; cameras are where they see the same.
        points = apply_4x4(
            move, apply_4x4(want.ref_T_ego[:, 0].double(), want.lidar_data[:, 0].double().transpose(1, 2))
        )
        mem, occupied = grid.ref_to_mem(points), lidar_occupancy(batch, 0, grid)[:, 0]
        clear = (mem - mem.floor() - 0.5).abs().amin(-1) > 0.01  # of rounding that may go either way
        keep = grid.get_inbounds(points) & clear & (want.lidar_data[:, 0].norm(dim=1) > 1) & (mem.round().sum(-1) > 0)
        b, n = torch.nonzero(keep & (torch.arange(mem.shape[1]) < batch.num_lidar)).unbind(1)
        x, y, z = mem[b, n].round().long().unbind(-1)
        away = points[b, n].norm(dim=-1) > 1  # what lies at ref's origin is no point
        assert occupied[b, z, y, x][away].all() and len(b) > 50
        torch.testing.assert_close(
            ref_T_cams(batch).double(), move[:, None] @ ref_T_cams(want).double(), rtol=1e-4, atol=1e-4
        )
        for item in range(2):
            boxes = batch.lrtlist_ref[item, 0, real[item]].numpy()
            numbers, _ = draw_maps(footprints(boxes, moved.decode.grid.mem_T_ref), np.ones(len(boxes), bool), (50, 50))
            assert np.array_equal(numbers, batch.box_numbers[item, 0].numpy()) and numbers.any()
    evaluation = [
        b.ref_T_ego
        for b in compile_data(None, f"{small_shards}/val-*.tar", CONF, **GRID, bsz=3, nworkers=0, **MOVES)[1]
    ]
    plain = [b.ref_T_ego for b in compile_data(None, f"{small_shards}/val-*.tar", CONF, **GRID, bsz=3, nworkers=0)[1]]
    assert all(map(torch.equal, evaluation, plain))


def test_cameras_are_left_out_and_colours_change_in_training_alone(small_shards):
    plain, drops, colours, both = (
        batches_of(small_shards, **more)
        for more in ({}, {"drop_cameras": 0.5}, {"photometric": 0.4}, {"drop_cameras": 0.5, "photometric": 0.4})
    )
    dropped = 0
    for loader in (plain, drops, colours, both):
        loader.epoch = 2
    want, left, coloured, joint = (loader.batch_of([0, 1, 5], augment=True) for loader in (plain, drops, colours, both))
    for b in range(3):
        gone = (left.imgs[b, 0] == 0).all(-1).all(-1).all(-1)
        assert torch.equal(gone, left.intrins[b, 0, :, 0, 2] == UNSEEN_PX) and not gone.all()
        assert torch.equal(gone, left.pix_T_stored[b, 0, :, 0, 2] == UNSEEN_PX)
        assert torch.equal(left.imgs[b, 0, ~gone], want.imgs[b, 0, ~gone])
        assert torch.equal(joint.imgs[b, 0, ~gone], coloured.imgs[b, 0, ~gone]) and not joint.imgs[b, 0, gone].any()
        assert torch.equal(joint.intrins[b], left.intrins[b])
        dropped += int(gone.sum())
    assert dropped and torch.equal(coloured.intrins, want.intrins) and left.cams == want.cams
    difference = (coloured.imgs - want.imgs).abs().mean((-1, -2))
    assert (difference.mean(-1) > 1e-3).all() and 0 <= coloured.imgs.min() and coloured.imgs.max() <= 1
    assert torch.equal(drops.batch_of([0]).imgs, plain.batch_of([0]).imgs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 1), st.integers(0, 3))
def test_colours_keep_greys_grey_and_the_present_is_drawn_alike(seed, strength, past):
    conf = dataclasses.replace(AugmentConfig((28, 50), photometric=strength, drop_cameras=0.3), cams=("a", "b", "c"))
    conf = dataclasses.replace(conf, ncams=3, refcam_id=0)

    def rng_of(stream):
        return sample_rng(seed, 0, 0, stream)

    alone, drawn = (augmented(draw_augmentation(rng_of(1), conf, 1, n), conf, rng_of) for n in (0, past))
    assert drawn.colours.shape == (1 + past, 3, 3, 4) and (drawn.colours[:1] == alone.colours).all()
    assert (drawn.dropped == alone.dropped).all() and not drawn.dropped.all()
    greys = drawn.colours @ np.array([0.6, 0.6, 0.6, 1.0], np.float32)
    assert np.ptp(greys, axis=-1).max() < 1e-5 and drawn.moved_T_ref is None


def test_what_cannot_be_is_refused():
    for name, value in (("bev_rotate", -1), ("bev_scale", 0.6), ("drop_cameras", 1.5), ("photometric", float("nan"))):
        with pytest.raises(ValueError, match=f"{name} is .*; it is 0 to"):
            AugmentConfig((28, 50), **{name: value})
