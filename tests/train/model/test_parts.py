"""The network's public parts: encoders that say what they are, points, flips undone, and inference by tensors alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from common.geometry import apply_4x4, rigid_inverse, scale_intrinsics, similarity_inverse
from tests.small_step import GRID, SmallStep, grid, inputs
from train.model import Flips, Segnet
from train.model.bev_flips import flip_where, unflipped
from train.model.forward import run_network, with_voxels
from train.model.points import lidar_points, radar_points, ref_T_cams, ref_T_ego
from train.model.segnet import Geometry
from train.options import Options
from train.setup import make_network


def rotations(seed, count):
    """(count,4,4) float32 rigid transforms."""
    rng = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn((count, 3, 3), generator=rng, dtype=torch.float64))
    out = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    out[:, :3, :3], out[:, :3, 3] = turn, 30 * torch.randn((count, 3), generator=rng, dtype=torch.float64)
    return out.float()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 2.0).filter(lambda scale: abs(scale - 1) > 1e-3))
def test_similarities_are_inverted_and_rigid_transforms_to_the_last_bit(seed, scale):
    rigid = rotations(seed, 5)
    assert torch.equal(similarity_inverse(rigid), rigid_inverse(rigid))
    scaled = rigid.clone()
    scaled[:, :3, :3] *= scale
    torch.testing.assert_close(similarity_inverse(scaled) @ scaled, torch.eye(4).repeat(5, 1, 1), rtol=0, atol=1e-4)
    points = torch.randn(5, 7, 3)
    torch.testing.assert_close(apply_4x4(rigid_inverse(rigid), apply_4x4(rigid, points)), points, rtol=0, atol=1e-4)


class Padding(torch.nn.Module):
    """An encoder that takes any size and itself pads to its coarsest stride, as ones with windows do."""

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    strides = (4, 32)

    def __init__(self, multiple, pads=True):
        super().__init__()
        self.multiple, self.pads = multiple, pads

    def forward(self, x):
        if self.pads:
            x = F.pad(x, (0, -x.shape[-1] % 32, 0, -x.shape[-2] % 32))
        return F.avg_pool2d(x, self.strides[0])


def with_encoder(monkeypatch, encoder):
    """A Segnet, built with that encoder."""
    monkeypatch.setattr("train.model.segnet.make_encoder", lambda *_: encoder)
    torch.manual_seed(0)
    return Segnet(*GRID, latent_dim=3).eval()


@pytest.mark.parametrize("flipped", [False, True])
def test_an_encoder_that_pads_itself_moves_no_feature(monkeypatch, flipped):
    """At 60 x 100 pixels, which are padded to 64 x 128: the same maps as of an encoder that is given its multiple."""
    flips = Flips(*(torch.full(shape, flipped) for shape in ((2, 3), (2,), (2,))))
    batch, _ = inputs()
    geometry = Geometry(batch.intrins[:, 0], ref_T_cams(batch))
    images = torch.rand((2, 3, 3, 60, 100), generator=torch.Generator().manual_seed(0)) - 0.5
    maps = []
    for encoder in (Padding(1), Padding(4, pads=False)):
        network = with_encoder(monkeypatch, encoder)
        features = network.encode(images, flips)
        assert features.shape == (2, 3, 3, 15, 25)
        maps.append(network.bev(features, geometry, grid(), flips))
    assert torch.equal(*maps) and maps[0].any()
    plain = F.avg_pool2d((images[:, 0] + 0.5 - network.mean) / network.std, 4)
    seen = network.encode(images, None)[:, 0]
    torch.testing.assert_close(seen, plain)
    assert network.mean.flatten().tolist() == pytest.approx(Padding.mean)

    wrong = Padding(4)
    wrong.strides = (2, 32)
    monkeypatch.setattr(F, "avg_pool2d", lambda x, _: x[..., ::4, ::4])
    with pytest.raises(ValueError, match=r"Padding gives features of \(16, 32\).*stride of 2 they are \(30, 50\)"):
        with_encoder(monkeypatch, wrong).encode(images)


def test_parts_put_together_are_the_network():
    step = SmallStep(grid(), use_lidar=False).eval()
    batch, flips = inputs()
    network, images = step.network, batch.imgs[:, 0] - 0.5
    features = network.encode(images, flips)
    bev = network.bev(features, Geometry(batch.intrins[:, 0], ref_T_cams(batch)), grid(), flips)
    _, _, seg, center, offset = network.decode(bev, flips)
    whole = run_network(network, batch, grid(), flips)
    for name, ours in (("seg", seg), ("center", center), ("offset", offset)):
        assert torch.equal(ours, whole[name]), name


def test_what_was_flipped_comes_back_and_vectors_with_it():
    """A field of vectors that point away from one cell, each item flipped otherwise."""
    z, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    field = torch.stack([x - 2, z - 1, x * z]).expand(4, -1, -1, -1)
    which_x, which_z = torch.tensor([0, 1, 0, 1]).bool(), torch.tensor([0, 0, 1, 1]).bool()
    # What a network sees, and answers, in the mirrored world.
    mirrored = flip_where(which_x, flip_where(which_z, field, -2), -1)
    mirrored = torch.stack(
        [
            torch.where(which_x[:, None, None], -mirrored[:, 0], mirrored[:, 0]),
            torch.where(which_z[:, None, None], -mirrored[:, 1], mirrored[:, 1]),
            mirrored[:, 2],
        ],
        1,
    )
    flips = Flips(torch.zeros(4, 1, dtype=bool), which_x, which_z)
    assert torch.equal(unflipped(mirrored, flips, along_x=(0,), along_z=(1,)), field)
    assert torch.equal(unflipped(mirrored, flips)[:, 2:], field[:, 2:])
    assert not torch.equal(unflipped(mirrored, flips)[1, 0], field[1, 0])


def test_points_lie_in_the_grid_s_frame_and_padding_is_none():
    batch, _ = inputs(points=20)
    batch.lidar_extra = torch.stack([255 * torch.ones(2, 1, 20), 16 * torch.ones(2, 1, 20), torch.ones(2, 1, 20)], 2)
    batch.lidar_data[0, 0, :, 0] = torch.tensor([0.1, 0.2, 0.3])  # on the car itself
    points = lidar_points(batch)
    assert not points.valid[0, 0]
    for b in range(2):
        assert points.valid[b].sum() == (batch.lidar_data[b, 0, :, : batch.num_lidar[b, 0]].norm(dim=0) > 1).sum()
        assert not points.valid[b, batch.num_lidar[b, 0] :].any()
    back = apply_4x4(rigid_inverse(ref_T_ego(batch)), points.xyz)
    torch.testing.assert_close(back, batch.lidar_data[:, 0].transpose(1, 2), rtol=0, atol=1e-5)
    assert points.features[0, 0].tolist() == [1.0, 0.5, 2.0]
    radar = radar_points(batch)
    assert radar.features.shape == (2, 20, 16) and radar.valid.sum() == batch.num_radar.sum()
    torch.testing.assert_close(ref_T_cams(batch)[:, 0], torch.eye(4).expand(2, 4, 4), rtol=0, atol=1e-5)


def test_scaled_intrinsics_are_built_without_writing_into_them():
    matrix = torch.rand(3, 4, 4)
    scaled = scale_intrinsics(matrix, 0.125, 0.5)
    assert torch.equal(scaled[:, 0], matrix[:, 0] * 0.125) and torch.equal(scaled[:, 1], matrix[:, 1] * 0.5)
    assert torch.equal(scaled[:, 2:], matrix[:, 2:])


class Inference(torch.nn.Module):
    """infer as the forward of a module, which is what torch.export takes."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, pix_T_cams, ref_T_cams, lidar_voxels):
        return self.network.infer(images, pix_T_cams, ref_T_cams, lidar_voxels=lidar_voxels)


@pytest.mark.slow
@pytest.mark.parametrize("unprojection", ["fused", "plain"])
def test_inference_is_exported_for_batches_of_any_size(unprojection):
    network = SmallStep(grid(), unprojection=unprojection).network.eval()
    network.vox_util = grid()

    def tensors(batch):
        return network.inference_inputs(with_voxels(inputs(batch)[0], network.needs, grid()), grid())

    size = torch.export.Dim("batch", min=1, max=64)
    given = tensors(2)
    program = torch.export.export(
        Inference(network), (), given, dynamic_shapes={name: {0: size} for name in given}, strict=False
    )
    for batch in (1, 2, 3):
        exported, plain = program.module()(**tensors(batch)), network.infer(**tensors(batch))
        for name, value in plain.items():
            torch.testing.assert_close(exported[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given, momentum", [(0.0, {0.01, 0.1}), (0.2, {0.1, 0.2})])
def test_batch_norms_of_the_encoder_follow_as_fast_as_they_are_told(given, momentum):
    """EfficientNet's own 0.01 is for published weights: after 240 updates from random ones IoU was half of what it could be."""
    options = Options(encoder_type="effb0", no_pretrained=True, latent_dim=16, bn_momentum=given)
    network, _ = make_network(options)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {round(norm.momentum, 6) for norm in norms} == momentum
