"""The camera mean's kernels: equal to the portable mean at every shape, and how fast with how many voxels a block."""

import math

import torch

from common.vox import VoxUtil
from tests.bench.device_clock import device_ms
from tests.bench.gpu.settings import GRID
from train.model.camera_mean import triton as kernels
from train.model.camera_mean.portable import portable_mean
from train.model.interface import Flips

# Samples, cameras, channels, rows and columns of the features, Z, Y and X of the grid.
ODD = {
    "5 channels": (2, 3, 5, (9, 11), (4, 3, 3)),
    "130 channels, one camera": (1, 1, 130, (7, 3), (3, 1, 5)),
    "one pixel": (1, 2, 64, (1, 1), (3, 2, 5)),
}
LARGE = {
    "96 channels, 33x57": (3, 5, 96, (33, 57), (50, 5, 49)),
    "benchmark": (2, 6, 128, (56, 100), (200, 8, 200)),
}
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
# Voxels on the very edge of an image, whose projection differs in its last bit, may fall to either side.
SHARE_OFF = "<= 0.01"


def compare(settings, rows):
    """Rows of every shape in both precisions."""
    for name, shape in (ODD if settings.dry else ODD | LARGE).items():
        for dtype in TOLERANCE:
            _compare(name, shape, dtype, settings.device, rows)


def time_blocks(settings, rows):
    """Rows of the benchmark's batch, with so many voxels and warps a block."""
    for kernels.BLOCK_VOXELS, kernels.NUM_WARPS in ((8, 4), (16, 4), (16, 8), (32, 4), (32, 8)):
        _time(settings, rows)


def _compare(name, shape, dtype, device, rows):
    """Rows of one shape: what share of values and of gradients is not the portable mean's."""
    feats, geometry, vox, flips = _inputs(shape, dtype, device)
    weight = None
    results = []
    for mean in (kernels.triton_mean, portable_mean):
        leaf = feats.clone().requires_grad_()
        out = mean(leaf, *geometry, vox, flips)
        weight = torch.randn_like(out) if weight is None else weight
        (gradient,) = torch.autograd.grad((out * weight).sum(), leaf)
        results.append((out.detach().float(), gradient.float()))
    for what, ours, theirs in zip(("forward", "backward"), *results, strict=True):
        scale = theirs.abs().max().clamp(min=1.0)
        off = ((ours - theirs).abs() > TOLERANCE[dtype] * scale) | ~ours.isfinite()
        label = f"{name}, {str(dtype).removeprefix('torch.')}, {what}: share of values off"
        rows.add(label, off.float().mean().item(), "", SHARE_OFF)


def _time(settings, rows):
    """Rows of milliseconds and of bytes per second that are needed at least, of the benchmark's batch in bfloat16."""
    samples, cameras, channels, hw, zyx = 8, *LARGE["benchmark"][1:]
    feats, geometry, vox, flips = _inputs((samples, cameras, channels, hw, zyx), torch.bfloat16, settings.device)
    volume = kernels.triton_mean(feats.requires_grad_(), *geometry, vox, flips)
    gradient = torch.randn_like(volume)
    pieces = {
        "gather": lambda: kernels.triton_mean(feats.detach(), *geometry, vox, flips),
        "scatter": lambda: torch.autograd.grad(volume, feats, gradient, retain_graph=True),
    }
    for name, piece in pieces.items():
        ms = device_ms(piece, settings.device)
        blocks = f"{kernels.BLOCK_VOXELS} voxels and {kernels.NUM_WARPS} warps a block"
        rows.add(f"{name}, batch {samples}, {blocks}", ms, "ms")
        rows.add(f"{name}, of the bytes that it must move", (feats.nbytes + volume.nbytes) / ms / 1e6, "GB/s")


def _inputs(shape, dtype, device):
    """Features, (pix_T_ref, cam_T_ref) of a ring of cameras that look outwards, VoxUtil and Flips."""
    samples, cameras, channels, (height, width), zyx = shape
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn((samples, cameras, channels, height, width), generator=generator).to(device, dtype)
    ref_T_cam = torch.eye(4).repeat(samples, cameras, 1, 1)
    for number in range(cameras):
        yaw = 2 * math.pi * number / cameras
        ref_T_cam[:, number, 0, 0] = ref_T_cam[:, number, 2, 2] = math.cos(yaw)
        ref_T_cam[:, number, 0, 2], ref_T_cam[:, number, 2, 0] = math.sin(yaw), -math.sin(yaw)
    ref_T_cam[..., :3, 3] = 0.5 * torch.randn((samples, cameras, 3), generator=generator)
    pix_T_cam = torch.diag(torch.tensor([0.8 * width, 0.8 * width, 1.0, 1.0]))
    pix_T_cam[:2, 2] = torch.tensor([width / 2, height / 2])
    cam_T_ref = torch.linalg.inv(ref_T_cam)
    vox = VoxUtil(*zyx, scene_centroid=[GRID[0]], bounds=GRID[1])
    flips = Flips.of(torch.rand((samples, 2 + cameras), generator=generator)).to(device)
    return feats, ((pix_T_cam @ cam_T_ref).to(device), cam_T_ref.to(device)), vox, flips
