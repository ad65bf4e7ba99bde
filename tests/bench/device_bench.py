"""The device stage: images, labels, points and voxels, each alone."""

import numpy as np
import torch

from common.record import image_member
from common.vox import VoxUtil
from preprocess.nuscenes import CAMERAS
from tests.bench.loader_bench import GRID
from tests.bench.measure import Row, best_ms
from tests.index_files import load_index
from train.augment import crop_and_resize
from train.data.config import DecodeConfig, Grid
from train.data.decode import decode_frame
from train.data.images import decode_jpeg
from train.data.labels import draw_maps, footprints
from train.data.sources import LocalSource
from train.data.targets import bev_targets
from train.model.camera_mean import camera_mean

BOXES = 40


def rows(shard, decode_ms, device="cpu", repeats=20):
    """One sample on one CPU core, or a batch of 16 on CUDA. decode_ms: of the unit; None leaves that column out."""
    batch = 16 if device == "cuda" else 1
    vox = VoxUtil(*GRID[2], scene_centroid=torch.tensor([GRID[0]], device=device), bounds=GRID[1])
    config = DecodeConfig(Grid(*GRID), nsweeps=3)
    reader = LocalSource([shard])
    number = min(3, len(load_index(shard).keys) - 1)
    members = reader.read(number, config.members(CAMERAS))
    frame = decode_frame(members, reader.keys[number], CAMERAS, config)
    images = [decode_jpeg(members[image_member(c)], c) for c in CAMERAS]
    lrt = _boxes()
    polygons = footprints(lrt, config.grid.mem_T_ref)
    numbers, valid = draw_maps(polygons, np.ones(BOXES, bool), GRID[2][::2])

    def on(array):
        return torch.from_numpy(np.ascontiguousarray(array)).to(device).expand(batch, *array.shape).contiguous()

    numbers_d, valid_d, lrt_d = on(numbers), on(valid), on(lrt)
    counts = torch.full((batch,), BOXES, device=device)
    images, matrices = torch.from_numpy(np.stack(images)).to(device), torch.from_numpy(frame.intrinsics).to(device)
    sizes, crops = np.tile([[760, 425]], (6, 1)), np.tile([[-20, -10, 780, 438]], (6, 1))
    points = on(frame.lidar[:3].T)
    feats = torch.randn((batch, 6, 128, 56, 100), device=device)
    pix_T_cam = torch.eye(4, device=device).repeat(batch, 6, 1, 1)
    pix_T_cam[..., 0, 0] = pix_T_cam[..., 1, 1] = 79.0
    pix_T_cam[..., :2, 2] = torch.tensor([50.0, 28.0], device=device)
    cam_T_ref = torch.eye(4, device=device).repeat(batch, 6, 1, 1)
    pieces = {
        "labels: polygons drawn in the threads": (lambda: draw_maps(footprints(lrt, config.grid.mem_T_ref),
                                                  np.ones(BOXES, bool), GRID[2][::2]), "<= 0.5 ms"),
        f"labels: all maps, {BOXES} boxes": (lambda: bev_targets(numbers_d, valid_d, lrt_d, counts, vox), "<= 3 ms"),
        "images: crop and resize to 448x800, bilinear": (lambda: crop_and_resize(images, matrices, sizes, crops,
                                                         (448, 800)), ""),
        "images: the same, nearest": (lambda: crop_and_resize(images, matrices, sizes, crops, (448, 800), "nearest"), ""),
        "points: 3 lidar sweeps to voxels": (lambda: vox.voxelize_xyz(points), ""),
        "voxels: mean over 6 cameras, 128 channels": (lambda: camera_mean(feats, pix_T_cam, cam_T_ref, vox), ""),
    }  # fmt: skip
    out = []
    for name, (piece, goal) in pieces.items():
        ms = best_ms(lambda piece=piece: _finish(piece, device), min(5, repeats) if "voxels" in name else repeats)
        decodes = ms / decode_ms if decode_ms else None
        out.append(Row(f"{name}{f', batch {batch}' if batch > 1 else ''}", ms, decodes=decodes, goal=goal))
    return out


def _finish(piece, device):
    with torch.no_grad():
        piece()
    if device == "cuda":
        torch.cuda.synchronize()


def _boxes():
    rng = np.random.default_rng(0)
    lrt = np.zeros((BOXES, 19), np.float32)
    lrt[:, :3] = rng.uniform([3.5, 1.6, 1.4], [12.0, 2.8, 3.2], (BOXES, 3))
    for row, yaw in zip(lrt, rng.uniform(-3, 3, BOXES), strict=True):
        pose = np.eye(4)
        pose[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0.01, -1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
        pose[:3, 3] = rng.uniform([-45, 0, -45], [45, 2, 45])
        row[3:] = pose.reshape(-1)
    return lrt
