"""The camera mean: every way of computing it against the plain one, and the CUDA kernels without a GPU."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.vox import VoxUtil
from tests.conftest import REPOSITORY
from tests.memory import peak_bytes
from tests.small_step import SmallStep, grid, inputs
from tests.train.model.sm_90 import compiled
from train.model import Flips, Segnet
from train.model.camera_mean import camera_mean, convolved_mean
from train.model.camera_mean.cpu import cpu_mean, find_pairs
from train.model.camera_mean.portable import portable_mean
from train.model.camera_mean.reference import reference_mean

WAYS = {"pairs": cpu_mean, "portable": portable_mean}
CENTROID = torch.tensor([[0.0, 1.0, 0.0]])
VOX = VoxUtil(12, 3, 10, scene_centroid=CENTROID, bounds=(-20, 20, -4, 4, -24, 24))


def ring(count=6, batch=2, hw=(14, 25)):
    """pix_T_ref and cam_T_ref (B,S,4,4) of a ring of cameras that look outwards, some voxels seen by two of them."""
    rng = np.random.default_rng(0)
    ref_T_cam = torch.eye(4).repeat(batch, count, 1, 1)
    for b in range(batch):
        for s in range(count):
            yaw = 2 * np.pi * s / count + rng.normal(0, 0.05)
            ref_T_cam[b, s, :3, :3] = torch.tensor(
                [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
            )
            ref_T_cam[b, s, :3, 3] = torch.tensor(rng.normal(0, 0.7, 3))
    pix_T_cam = torch.eye(4)
    pix_T_cam[0, 0] = pix_T_cam[1, 1] = 0.7 * hw[1]
    pix_T_cam[0, 2], pix_T_cam[1, 2] = hw[1] / 2, hw[0] / 2
    cam_T_ref = torch.linalg.inv(ref_T_cam)
    return pix_T_cam @ cam_T_ref, cam_T_ref


def some_flips(batch=2, count=6):
    rng = torch.Generator().manual_seed(3)
    return Flips.of(torch.rand(batch, 2 + count, generator=rng))


def features(channels=5, batch=2, count=6, hw=(14, 25), dtype=torch.float32):
    feats = torch.randn((batch, count, channels, *hw), generator=torch.Generator().manual_seed(1), dtype=dtype)
    return feats.requires_grad_()


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_way_equals_the_plain_mean_and_its_gradient(way, dtype, flipped):
    flips = some_flips() if flipped else None
    feats, geometry = features(dtype=dtype), ring()
    want = reference_mean(feats, *geometry, VOX, flips)
    got = WAYS[way](feats, *geometry, VOX, flips)
    assert got.dtype == dtype and got.shape == want.shape == (2, 5, 12, 3, 10)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(want)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), feats)[0] for out in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=10 * tolerance)
    counts = (reference_mean(torch.ones_like(feats), *geometry, VOX, flips) > 0.5).float().mean()
    assert 0.3 < counts <= 1  # the cameras do see the grid


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_function(way):
    vox = VoxUtil(4, 2, 4, scene_centroid=CENTROID, bounds=(-8, 8, -3, 3, -8, 8))
    feats = torch.randn((1, 2, 3, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    geometry = [m[:1, :2] for m in ring(hw=(4, 6))]
    assert torch.autograd.gradcheck(lambda f: WAYS[way](f, *geometry, vox), feats.requires_grad_())


@pytest.mark.parametrize("way", WAYS)
def test_a_camera_counts_where_it_sees_even_where_its_features_are_zero(way):
    feats = torch.zeros((1, 2, 1, 14, 25))
    feats[:, 1] = 1.0
    pix_T_ref, cam_T_ref = (m[:1, :1].expand(1, 2, 4, 4) for m in ring())
    mean = WAYS[way](feats, pix_T_ref, cam_T_ref, VOX)
    inner = mean[reference_mean(torch.ones_like(feats), pix_T_ref, cam_T_ref, VOX) > 0.99]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5))


@pytest.mark.parametrize("way", WAYS)
def test_a_matrix_that_is_not_finite_indexes_no_memory(way):
    """On CUDA that would end the process; here it would be an IndexError. What it gives is not asked."""
    pix_T_ref, cam_T_ref = ring()
    pix_T_ref[0, 1] = torch.nan
    feats = features()
    WAYS[way](feats, pix_T_ref, cam_T_ref, VOX).sum().backward()
    assert feats.grad.shape == feats.shape


def test_nothing_seen_is_zero_and_has_no_gradient():
    feats = features()
    pix_T_ref, cam_T_ref = ring()
    behind = torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0])) @ cam_T_ref  # depth 0 everywhere
    mean = cpu_mean(feats, pix_T_ref, behind, VOX)
    mean.sum().backward()
    assert not mean.any() and not feats.grad.any()


@pytest.mark.parametrize("way", ["fused", "plain"])
@pytest.mark.parametrize("flipped", [False, True])
def test_the_convolved_mean_is_the_convolution_of_the_mean_and_so_are_its_gradients(way, flipped):
    """With the weight's channels in Simple-BEV's order: all heights of a feature side by side."""
    net = Segnet(12, 3, 10, latent_dim=5, use_radar=True, encoder_type="res50").double()
    conv, flips = net.bev_compressor[0], some_flips() if flipped else None
    feats, geometry = features(dtype=torch.float64), ring()
    others = torch.randn((2, 1, 12, 10), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    volume = reference_mean(feats, *geometry, VOX, flips)
    want = conv(torch.cat([volume.transpose(2, 3).flatten(1, 2), others], 1))
    got = convolved_mean(feats, *geometry, VOX, conv.of_features(), flips, way) + conv.of_others(others)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(want)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), (feats, conv.weight)) for out in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_half_precision_is_convolved_in_half_precision_and_summed_over_heights_in_float32():
    conv = Segnet(12, 3, 10, latent_dim=5, encoder_type="res50").bev_compressor[0]
    half, geometry = features().detach().bfloat16().requires_grad_(), ring()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = convolved_mean(half, *geometry, VOX, conv.of_features())
    want = convolved_mean(half.float(), *geometry, VOX, conv.of_features())
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.01, atol=0.01)
    ours, theirs = (torch.autograd.grad(out.float().square().sum(), (half, conv.weight)) for out in (got, want))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.float() - b.float()).abs().max() < 0.02 * b.abs().max()


def test_training_through_the_convolved_mean_holds_no_volume_and_little_more_for_more_cameras():
    vox = VoxUtil(64, 8, 64, scene_centroid=CENTROID, bounds=(-50, 50, -5, 5, -50, 50))
    kernels = torch.rand(8, 16, 128, 3, 3, requires_grad=True)
    volume = 128 * 64 * 8 * 64 * 4
    peaks = []
    for cameras in (2, 6):
        feats, geometry = features(128, 1, cameras), ring(cameras, 1)
        peaks.append(peak_bytes(lambda f=feats, g=geometry: convolved_mean(f, *g, vox, kernels).sum().backward()))
    assert peaks[1] < volume  # the plain way takes five times that
    assert peaks[1] - peaks[0] < volume / 2


def test_training_through_the_camera_mean_takes_less_than_a_volume_more_for_four_more_cameras():
    """All of which see half of the grid; sampled features and what is kept for the backward pass included."""
    vox = VoxUtil(128, 8, 128, scene_centroid=CENTROID, bounds=(-50, 50, -5, 5, -50, 50))
    peaks = []
    for cameras in (2, 6):
        feats = torch.rand((1, cameras, 64, 16, 16), requires_grad=True)
        pix_T_cam = torch.eye(4).repeat(1, cameras, 1, 1)
        pix_T_cam[..., :2, 2] = 8.0
        geometry = pix_T_cam, torch.eye(4).repeat(1, cameras, 1, 1)
        peaks.append(peak_bytes(lambda f=feats, g=geometry: camera_mean(f, *g, vox).square().sum().backward()))
    assert peaks[1] - peaks[0] < 64 * 128 * 8 * 128 * 4


def test_half_precision_features_keep_float32_geometry_weights_and_sums():
    half = features(dtype=torch.float32).detach().bfloat16().requires_grad_()
    geometry = ring()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = camera_mean(half, *geometry, VOX)
    want = camera_mean(half.float(), *geometry, VOX)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want.bfloat16())  # rounded once, at the end
    weight = torch.randn_like(want).bfloat16()
    ours, theirs = (torch.autograd.grad((o * weight).sum(), half)[0] for o in (got, want))
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.01, atol=0.02)


def test_geometry_pairs_and_voxels_under_bfloat16_are_those_of_float32(monkeypatch):
    seen = []

    def record(feats, pix_T_refs, cams_T_ref, vox_util, kernels, flips, unprojection):
        sizes = [vox_util.Z, vox_util.Y, vox_util.X], list(feats.shape[-2:]), torch.float32
        flags = flips.image, flips.bev_x, flips.bev_z
        pixels, weights, starts = find_pairs(pix_T_refs, cams_T_ref, vox_util.centers_ref("cpu"), *flags, *sizes)
        used = int(starts[-1])
        seen.append((pix_T_refs, cams_T_ref, pixels[:used], weights[:used], starts))
        return convolved_mean(feats, pix_T_refs, cams_T_ref, vox_util, kernels, flips, unprojection)

    monkeypatch.setattr("train.model.segnet.convolved_mean", record)
    losses, voxels = [], []
    for dtype in (None, torch.bfloat16):
        step = SmallStep(grid(), dtype).eval()
        step.network.register_forward_pre_hook(lambda _, args: voxels.append(args[0].lidar_voxels))
        losses.append(step(*inputs()).item())
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True)) and seen[0][-1][-1] > 1000
    assert torch.equal(*voxels) and voxels[0].any()
    assert losses[0] != losses[1]  # the network itself did compute in bfloat16
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_networks_with_either_unprojection_agree():
    net = Segnet(16, 2, 24, latent_dim=8, encoder_type="res50").eval()
    vox = VoxUtil(16, 2, 24, scene_centroid=CENTROID, bounds=(-24, 24, -4, 4, -16, 16))
    pix_T_ref, cam_T_ref = ring(2, 1, (64, 96))
    args = torch.rand(1, 2, 3, 64, 96) - 0.5, pix_T_ref @ torch.linalg.inv(cam_T_ref), torch.linalg.inv(cam_T_ref), vox
    with torch.no_grad():
        fused = net(*args)
        net.unprojection = "plain"
        plain = net(*args)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="unprojection 'other'"):
        Segnet(16, 2, 24, encoder_type="res50", unprojection="other")


INTERPRETED = """
import torch
from common.vox import VoxUtil
from tests.train.model.test_unprojection import CENTROID, features, ring, some_flips
from train.model.camera_mean.reference import reference_mean
from train.model.camera_mean.triton import triton_mean

vox = VoxUtil(4, 2, 3, scene_centroid=CENTROID, bounds=(-20, 20, -4, 4, -24, 24))
feats, geometry = features(count=3), ring(3)
for flips in (None, some_flips(count=3)):
    want, got = (way(feats, *geometry, vox, flips) for way in (reference_mean, triton_mean))
    assert got.permute(0, 2, 4, 3, 1).is_contiguous()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(want)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), feats)[0] for out in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
half = feats.detach().bfloat16().requires_grad_()
whole = half.detach().float().requires_grad_()
got, want = triton_mean(half, *geometry, vox, flips), reference_mean(whole, *geometry, vox, flips)
assert got.dtype == torch.bfloat16
torch.testing.assert_close(got.float(), want, rtol=0.01, atol=0.01)
weight = torch.randn_like(want).bfloat16()
[ours], [theirs] = (torch.autograd.grad((out * weight).sum(), leaf) for out, leaf in ((got, half), (want, whole)))
assert ours.dtype == torch.bfloat16 and theirs.abs().max() > 1
torch.testing.assert_close(ours.float(), theirs, rtol=0.01, atol=0.01)  # summed in float32, rounded once
print("equal")
"""


def test_kernels_equal_the_plain_mean_under_tritons_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    result = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == "equal", result.stderr


# Registers a thread with which they were measured on an H100, as Triton 3.6 made them, see BLOCK_VOXELS.
REGISTERS = {"gather_kernel": 147, "scatter_kernel": 160}


@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
@pytest.mark.parametrize("name", REGISTERS)
def test_kernels_compile_for_sm_90_without_spilling_and_with_wide_loads(name, dtype, tmp_path):
    """At the sizes of 448x800 images."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from train.model.camera_mean import triton as kernels

    kernel = getattr(kernels, name)
    pointers = {"out": "*fp32" if name == "scatter_kernel" else dtype, kernel.arg_names[0]: dtype}
    pointers |= dict.fromkeys(("pix", "cam", "affine"), "*fp32")
    pointers |= dict.fromkeys(("flip_image", "flip_x", "flip_z"), "*u8")
    sizes = dict(S=6, C=128, H=56, W=100, Z=200, Y=8, X=200)
    sizes |= dict(BLOCK_V=kernels.BLOCK_VOXELS, BLOCK_C=kernels.BLOCK_CHANNELS)
    ptx, used = compiled(kernel, pointers, sizes, tmp_path, kernels.NUM_WARPS)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= REGISTERS[name]
    assert "ld.global.v4.b32" in ptx
    if name == "gather_kernel":
        assert "st.global.v4.b32" in ptx and "atom" not in ptx and "red.global" not in ptx
    else:
        assert re.search(r"(red|atom)\.global\S*\.v4\.f32", ptx)  # Triton 3.6 writes atom, whose result nobody reads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_on_the_device_equal_the_plain_mean(dtype):
    flips = some_flips()
    # The very edge of an image may fall to the other side by the last bit of a projection: those voxels are few.
    feats = features(128, dtype=torch.float32).detach().to(dtype)
    weight = torch.randn((2, 128, 12, 3, 10), generator=torch.Generator().manual_seed(2))
    outs = []
    for device in ("cpu", "cuda"):
        leaf = feats.to(device, copy=True).detach().requires_grad_()
        way = reference_mean if device == "cpu" else camera_mean
        out = way(leaf, *(m.to(device) for m in ring()), VOX, flips.to(device))
        (out * weight.to(device)).sum().backward()
        outs.append((out.detach().float().cpu(), leaf.grad.float().cpu()))
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    for a, b in zip(*outs, strict=True):
        assert ((a - b).abs() > tolerance).float().mean() < 0.01
