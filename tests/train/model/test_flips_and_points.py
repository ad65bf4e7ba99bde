"""Flips cancel out, points become voxels exactly once, and label options mean what they say."""

import numpy as np
import pytest
import torch

from common.vox import VoxUtil
from tests.train.data.test_order import loaders
from train.model import Segnet
from train.model.camera_mean import camera_mean
from train.model.forward import run_network
from train.model.segnet import BevConv, Flips
from train.model.simple_bev import SimpleBev

VOX = VoxUtil(16, 2, 24, scene_centroid=torch.tensor([[0.0, 1.0, 0.0]]), bounds=(-24, 24, -4, 4, -16, 16))


class Pointwise(torch.nn.Module):
    """An encoder that commutes with flips: mean over 8x8 pixels, more channels."""

    multiple, strides = 8, (8,)

    def forward(self, x):
        return torch.nn.functional.avg_pool2d(x, 8).repeat(1, 2, 1, 1)


class PointwiseDecoder(torch.nn.Module):
    """A decoder that commutes with flips."""

    def forward(self, bev, unflip=None):
        bev = bev if unflip is None else unflip(bev)
        return bev, bev.sin(), bev[:, :1], bev[:, :1].sigmoid(), bev[:, :2]


def cameras(batch=2, count=3):
    rng = torch.Generator().manual_seed(0)
    pix_T_cams = torch.eye(4).repeat(batch, count, 1, 1)
    pix_T_cams[..., 0, 0] = pix_T_cams[..., 1, 1] = 30.0
    pix_T_cams[..., 0, 2], pix_T_cams[..., 1, 2] = 32.0, 16.0
    cam0_T_cams = torch.eye(4).repeat(batch, count, 1, 1)
    cam0_T_cams[..., :3, 3] = torch.randn((batch, count, 3), generator=rng)
    return torch.rand((batch, count, 3, 32, 64), generator=rng) - 0.5, pix_T_cams, cam0_T_cams


@pytest.mark.parametrize("sensors", ["", "radar", "lidar", "radar lidar", "metaradar"])
def test_every_flip_cancels_out(sensors):
    used = {f"use_{name}": name in sensors.split() for name in ("radar", "lidar", "metaradar")}
    used["use_radar"] |= used["use_metaradar"]
    net = Segnet(16, 2, 24, rand_flip=True, latent_dim=6, encoder_type="res50", **used)
    net.encoder, net.decoder = Pointwise(), PointwiseDecoder()
    if net.bev_compressor is not None:
        net.bev_compressor = torch.nn.Sequential(BevConv(6, 2, net.bev_compressor[0].in_channels, 6, 1))
    images, *matrices = cameras()
    channels = used["use_radar"] * (16 if used["use_metaradar"] else 1) + used["use_lidar"]
    voxels = torch.rand((2, channels, 16, 2, 24)) if channels else None
    given = [t.clone() for t in (images, *matrices, *([voxels] if channels else []))]
    none = Flips(torch.zeros(2, 3, dtype=bool), torch.zeros(2, dtype=bool), torch.zeros(2, dtype=bool))
    every = Flips(~none.image, ~none.bev_x, ~none.bev_z)
    mixed = Flips(torch.tensor([[1, 0, 1], [0, 1, 1]]).bool(), torch.tensor([1, 0]).bool(), torch.tensor([1, 1]).bool())
    plain = net(images, *matrices, VOX, voxels, flips=none)
    for flips in (every, mixed):
        for a, b in zip(net(images, *matrices, VOX, voxels, flips=flips), plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for before, after in zip(given, (images, *matrices, voxels), strict=False):
        assert torch.equal(before, after)  # the caller's tensors are never written to
    net.eval()
    for a, b in zip(net(images, *matrices, VOX, voxels), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_camera_mean_equals_a_plain_mean_and_its_gradient():
    _, pix_T_cams, cam0_T_cams = cameras()
    feats = torch.randn((2, 3, 5, 32, 64), generator=torch.Generator().manual_seed(1)).requires_grad_()
    cams_T_ref = torch.linalg.inv(cam0_T_cams)
    pix_T_ref = pix_T_cams @ cams_T_ref

    def plain(feats):
        flat = [t.flatten(0, 1) for t in (feats, pix_T_ref, cams_T_ref)]
        values = VOX.unproject_image_to_mem(*flat).unflatten(0, (2, 3))
        return values.sum(1) / ((values != 0).float().sum(1) + 1e-6)

    ours, theirs = camera_mean(feats, pix_T_ref, cams_T_ref, VOX), plain(feats)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(ours)
    grads = [torch.autograd.grad((out * weight).sum(), feats)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_what_the_camera_mean_keeps_for_the_backward_pass_is_less_than_one_volume_a_camera():
    _, pix_T_cams, cam0_T_cams = cameras(batch=1, count=6)
    feats = torch.randn((1, 6, 32, 4, 8), requires_grad=True)
    kept = []
    cams_T_ref = torch.linalg.inv(cam0_T_cams)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        volume = camera_mean(feats, pix_T_cams @ cams_T_ref, cams_T_ref, VOX)
    assert sum(kept) < 2 * volume.nbytes + feats.nbytes


@pytest.mark.parametrize("scale_hw", [(56, 100), (67, 120), (101, 180)])
def test_any_image_size_runs(scale_hw):
    net = Segnet(16, 2, 24, latent_dim=8, encoder_type="res50").eval()
    _, pix_T_cams, cam0_T_cams = cameras(1, 2)
    with torch.no_grad():
        outputs = net(torch.zeros(1, 2, 3, *scale_hw), pix_T_cams[:, :2], cam0_T_cams[:, :2], VOX)
    assert [tuple(o.shape[-2:]) for o in outputs] == [(16, 24)] * 5


def test_the_last_point_of_a_voxel_wins_and_padding_is_no_point():
    xyz = torch.tensor([[[5.2, 1.5, 5.2], [5.4, 1.6, 5.4], [0, 0, 0], [99, 0, 0], [5.3, 1.4, 5.1]]])
    feats = torch.arange(1.0, 11).view(1, 5, 2)
    valid = torch.tensor([[True, True, True, True, False]])
    filled = VOX.voxelize_xyz_and_feats(xyz, feats, valid)
    assert (filled != 0).sum() == 2 and filled.amax((2, 3, 4)).tolist() == [[3.0, 4.0]]
    assert VOX.voxelize_xyz(xyz, valid).sum() == 1
    padded = torch.cat([xyz, torch.zeros(1, 100, 3)], 1)
    assert torch.equal(VOX.voxelize_xyz(padded), VOX.voxelize_xyz(xyz))


def test_grid_around_a_centroid_and_cubes():
    with pytest.raises(ValueError, match="not cubes"):
        VoxUtil(10, 2, 10, torch.zeros(1, 3), (-5, 5, -5, 5, -5, 5), assert_cube=True)
    with pytest.raises(ValueError, match="has none; give 1 of each"):
        VoxUtil(10, 2, 10, torch.zeros(1, 3), (5, -5, -5, 5, -5, 5))
    vox = VoxUtil(10, 10, 10, torch.tensor([[3.0, -2.0, 7.0]]), (-5, 5, -5, 5, -5, 5), assert_cube=True)
    torch.testing.assert_close(vox.ref_to_mem(torch.tensor([[[3.0, -2.0, 7.0]]])), torch.full((1, 1, 3), 4.5))
    wide = VoxUtil(10, 10, 10, torch.zeros(1, 3), (-5, 5, -5, 5, -5, 5), pad=(5, 0, 0))
    assert not vox.get_inbounds(torch.tensor([[[3.0, -2.0, 13.0]]])).any()
    assert wide.get_inbounds(torch.tensor([[[0.3, 0.3, 9.0]]])).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_geometry_stays_float32_under_autocast(synth_shards, dtype):
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        train, _ = loaders(synth_shards)
        batch = next(iter(train))
    plain = next(iter(loaders(synth_shards)[0]))
    for name in ("imgs", "intrins", "seg_bev", "center_bev", "ry_bev"):
        assert torch.equal(getattr(batch, name), getattr(plain, name)), name


def test_what_the_network_is_given_is_the_same_under_bf16(synth_shards, monkeypatch):
    """Camera geometry and voxels to the last bit; only the network's own arithmetic is rounded."""
    batch = next(iter(loaders(synth_shards, nsweeps=3)[0]))
    vox = VoxUtil(50, 2, 50, torch.tensor([[0.0, 1.0, 0.0]]), (-50, 50, -5, 5, -50, 50))
    net = SimpleBev(50, 2, 50, use_radar=True, use_lidar=True, latent_dim=8, encoder_type="res50").eval()
    seen = inputs_of(net, monkeypatch)
    with torch.no_grad():
        run_network(net, batch, vox)
        run_network(net, batch, vox, autocast=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            run_network(net, batch, vox)
    plain, rounded, wrapped = seen
    for name, value in plain.items():
        assert value.dtype == torch.float32 and torch.equal(value, rounded[name]) and torch.equal(value, wrapped[name])
    assert plain.keys() == {"images", "pix_T_cams", "ref_T_cams", "radar_voxels", "lidar_voxels"}


def inputs_of(net, monkeypatch):
    """The list that will hold the tensors that `infer` takes in every call of `net`."""
    seen, inputs = [], net.inference_inputs
    monkeypatch.setattr(net, "inference_inputs", lambda *given: seen.append(inputs(*given)) or seen[-1])
    return seen


def test_points_of_a_ragged_batch_are_each_samples_own(synth_shards, monkeypatch):
    train, _ = loaders(synth_shards, nsweeps=3)
    batch = next(iter(train))
    vox = VoxUtil(50, 2, 50, torch.tensor([[0.0, 1.0, 0.0]]), (-50, 50, -5, 5, -50, 50))
    net = SimpleBev(50, 2, 50, use_radar=True, use_lidar=True, latent_dim=8, encoder_type="res50").eval()
    seen = inputs_of(net, monkeypatch)
    with torch.no_grad():
        run_network(net, batch, vox)
    alone = loaders(synth_shards, nsweeps=3, bsz=1)[0]
    by_token = {b.tokens[0][0]: b for b in alone}  # the same draws: they depend on the sample alone
    for row, tokens in enumerate(batch.tokens):
        with torch.no_grad():
            run_network(net, by_token[tokens[0]], vox)
        for name in ("radar_voxels", "lidar_voxels"):
            assert torch.equal(seen[-1][name][0], seen[0][name][row])
    assert batch.num_lidar.unique().numel() > 1 and seen[0]["lidar_voxels"].sum() > 100


def test_protocols_and_categories(synth_shards):
    def boxes(**options):
        return next(iter(loaders(synth_shards, bsz=4, **options)[1]))

    plain = boxes()
    assert not plain.valid_bev.all()
    shown = boxes(protocol="min_visibility", min_visibility=1)
    assert shown.valid_bev.all() and torch.equal(shown.num_boxes, plain.num_boxes)
    assert torch.equal(shown.seg_bev, plain.seg_bev)
    fewer = boxes(protocol="min_visibility", min_visibility=4)
    assert (fewer.num_boxes < shown.num_boxes).any() and fewer.valid_bev.all()
    people = boxes(target_categories=("human.pedestrian", "vehicle.car"))
    assert not torch.equal(people.num_boxes, plain.num_boxes)
    assert np.isfinite(people.lrtlist.numpy()).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu_and_never_waits(synth_shards):
    cpu = loaders(synth_shards, interpolation="nearest")[0]
    gpu = loaders(synth_shards, interpolation="nearest", device="cuda", nworkers=2)[0]
    for a, b in zip(cpu, gpu, strict=True):
        for name in ("seg_bev", "valid_bev"):
            assert torch.equal(getattr(a, name), getattr(b, name).cpu())
        for name in ("center_bev", "offset_bev", "size_bev", "ry_bev", "intrins"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name).cpu(), rtol=1e-5, atol=1e-4)
        assert (a.imgs - b.imgs.cpu()).abs().mean() < 1 / 255
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in loaders(synth_shards, device="cuda", nworkers=2)[0]:
            assert batch.imgs.is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")
