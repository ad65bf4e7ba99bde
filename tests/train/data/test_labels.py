"""Label maps, augmentation and the mean over cameras against slow references."""

import math

import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.vox import VoxUtil
from train.augment import crop_and_resize
from train.data.labels import draw_maps, footprints
from train.data.targets import bev_targets, box_maps

Z, Y, X = 60, 4, 50
VOX = VoxUtil(Z, Y, X, scene_centroid=torch.tensor([[0.0, 1.0, 0.0]]), bounds=(-25, 25, -5, 5, -30, 30))
NAMES = ("seg", "valid", "center", "offset", "size", "ry", "ycoord")


def mem_T_cam():
    ends = VOX.ref_to_mem(torch.tensor([[[0.0, 0, 0], [1, 1, 1]]]))[0].numpy()
    out = np.diag([*(ends[1] - ends[0]), 1.0]).astype(np.float32)
    out[:3, 3] = ends[0]
    return out


@st.composite
def boxes(draw):
    """(n, 19) boxes in cam0, upright within a degree or so, partly or wholly outside the grid too."""
    rows = []
    for _ in range(draw(st.integers(0, 7))):
        x, y, z = draw(st.floats(-40, 40)), draw(st.floats(-3, 3)), draw(st.floats(-45, 45))
        yaw, roll = draw(st.floats(-math.pi, math.pi)), draw(st.floats(0.003, 0.03))
        length, width = draw(st.floats(0.4, 14)), draw(st.floats(0.3, 4))
        about_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
        about_x = np.array([[1, 0, 0], [0, math.cos(roll), -math.sin(roll)], [0, math.sin(roll), math.cos(roll)]])
        # A box's own axes are x forward, y left, z up; the camera's y points down.
        cam_T_up = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = about_x @ about_y @ cam_T_up, (x, y, z)
        rows.append([length, width, 1.5, *pose.reshape(-1)])
    return np.array(rows, np.float32).reshape(-1, 19)


def box_by_box(lrt, visible):
    """The benchmark's maps, one box after the other, from its description."""
    maps = {name: np.zeros((3, Z, X), np.float32) for name in NAMES}
    maps["valid"][:] = 1
    grid_z, grid_y, grid_x = np.meshgrid(np.arange(Z), np.arange(Y), np.arange(X), indexing="ij")
    scale, shift = np.diag(mem_T_cam())[:3], mem_T_cam()[:3, 3]
    for row, seen in zip(lrt, visible, strict=True):
        cam_T_box = row[3:].reshape(4, 4)
        length, width, height = row[:3]
        signs = [(1, 1, 1), (1, 1, -1), (-1, 1, -1), (-1, 1, 1), (1, -1, 1), (1, -1, -1), (-1, -1, -1), (-1, -1, 1)]
        corners = [cam_T_box[:3, :3] @ (np.array(s, np.float32) * row[:3] / 2) + cam_T_box[:3, 3] for s in signs]
        four = sorted(corners, key=lambda c: c[1])[:4]
        cells = np.array([(c * scale + shift)[[0, 2]] for c in four]).astype(np.int32)
        drawn = np.zeros((Z, X), np.uint8)
        cv2.fillPoly(drawn, [cells[[0, 1, 3, 2]]], 1)
        inside = drawn == 1
        if not seen:
            maps["valid"][:, inside] = 0
        centre = np.round(cam_T_box[:3, 3] * scale + shift)
        heading = math.atan2(cam_T_box[0, 0], cam_T_box[2, 0]) + math.pi / 2
        maps["seg"][:, inside] = 1
        maps["offset"][0][inside] = 2 * (grid_x[:, 0] - centre[0])[inside]
        maps["offset"][1][inside] = 2 * (grid_z[:, 0] - centre[2])[inside]
        for channel in range(3):
            maps["size"][channel][inside] = row[channel]
        maps["ry"][:, inside] = math.atan2(math.sin(heading), math.cos(heading))
        maps["ycoord"][:, inside] = cam_T_box[1, 3]
        distance = (grid_x - centre[0]) ** 2 + (grid_y - centre[1]) ** 2 + (grid_z - centre[2]) ** 2
        heat = np.exp(-distance / (2 * 3.0**2)).max(1)
        maps["center"][:] = np.maximum(maps["center"], np.where(heat < 0.001, 0, heat))
    return maps


@settings(deadline=None, max_examples=60)
@given(boxes(), boxes(), st.integers(0, 2**7 - 1))
def test_maps_equal_the_box_by_box_reference(first, second, seen):
    samples = [first, second]
    longest = max(map(len, samples))
    lrt = np.zeros((2, longest, 19), np.float32)
    numbers, valids, wanted = [], [], []
    for b, rows in enumerate(samples):
        lrt[b, : len(rows)] = rows
        visible = [bool(seen >> n & 1) for n in range(len(rows))]
        number, valid = draw_maps(footprints(rows, mem_T_cam()), visible, (Z, X))
        numbers.append(number)
        valids.append(valid)
        wanted.append(box_by_box(rows, visible))
    got = bev_targets(
        torch.from_numpy(np.stack(numbers)),
        torch.from_numpy(np.stack(valids)),
        torch.from_numpy(lrt),
        torch.tensor([len(first), len(second)]),
        VOX,
    )
    got = vars(got) | box_maps(torch.from_numpy(np.stack(numbers)), torch.from_numpy(lrt))
    for name in NAMES:
        maps = got[name]
        for b in range(2):
            want = torch.from_numpy(wanted[b][name][: maps.shape[1]])
            if name in ("seg", "valid"):
                assert torch.equal(maps[b], want), name
            elif name == "ry":  # pi and -pi are one heading
                torch.testing.assert_close(maps[b].cos(), want.cos(), rtol=0, atol=1e-4)
            else:
                torch.testing.assert_close(maps[b], want, rtol=0, atol=1e-4, msg=name)


def test_level_boxes_are_whole_rectangles():
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]], (0.5, 1, 0.5)
    row = np.array([[8, 4, 1.5, *pose.reshape(-1)]], np.float32)
    numbers, _ = draw_maps(footprints(row, mem_T_cam()), [True], (Z, X))
    assert 8 * 4 <= numbers.sum() <= 9 * 5
    filled_rows = numbers[numbers.any(1)]
    assert (filled_rows == filled_rows[0]).all()


def test_more_than_150_boxes():
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    rows = np.tile(np.array([[2, 2, 1.5, *pose.reshape(-1)]], np.float32), (400, 1))
    rows[:, 3 + 3] = np.linspace(-20, 20, 400)
    numbers, valid = draw_maps(footprints(rows, mem_T_cam()), [True] * 400, (Z, X))
    got = bev_targets(torch.from_numpy(numbers)[None], torch.from_numpy(valid)[None],
                      torch.from_numpy(rows)[None], torch.tensor([400]), VOX)  # fmt: skip
    assert numbers.max() == 400 and got.seg.sum() == (numbers > 0).sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(10, 90), st.integers(10, 90), st.integers(-30, 30), st.integers(-30, 30), st.booleans())
def test_a_pixel_and_its_ray_stay_together(new_w, new_h, left, top, nearest):
    """A bright square moves where the new intrinsics project its ray."""
    image = torch.zeros((1, 60, 80, 3), dtype=torch.uint8)
    image[:, 20:32, 40:56] = 255
    intrins = torch.tensor([[[50.0, 0, 40], [0, 50, 30], [0, 0, 1]]])
    crop = np.array([[left, top, left + 40, top + 30]])
    mode = "nearest" if nearest else "bilinear"
    out, moved = crop_and_resize(image, intrins, np.array([[new_w, new_h]]), crop, (30, 40), mode)
    ray = torch.tensor([(48 - 40) / 50, (26 - 30) / 50, 1.0])
    u, v, _ = (moved[0, :3, :3] @ ray).tolist()
    assert out.shape == (1, 3, 30, 40) and 0 <= out.min() and out.max() <= 1
    if 0 <= u < 40 and 0 <= v < 30 and new_w >= 20 and new_h >= 20:
        assert out[0, 0, int(v), int(u)] > 0.5
    outside = (torch.arange(40) + left < 0) | (torch.arange(40) + left >= new_w)
    assert not out[:, :, :, outside].any()
