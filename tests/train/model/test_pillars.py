"""Pillars: points grouped and learned as a slow loop has it, whatever their order and padding, and all that a run does."""

import dataclasses

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import call_module
from tests.small_step import grid
from train import checkpoint, show
from train.model import Flips
from train.model.forward import run_network
from train.model.pillars import PLACE_FEATURES, PillarNet, grouped
from train.model.points import Points
from train.options import Options
from train.run import train
from train.setup import make_loaders, make_network

COUNT = 24


def cloud(seed, batch=2, count=COUNT):
    rng = torch.Generator().manual_seed(seed)
    xyz = torch.randn((batch, count, 3), generator=rng) * torch.tensor([14.0, 2.0, 9.0])
    xyz[:, ::3] = xyz[:, :1] + torch.rand((batch, len(range(0, count, 3)), 3), generator=rng) * 0.5  # a full column
    return Points(xyz, torch.rand((batch, count, 3), generator=rng), torch.rand((batch, count), generator=rng) < 0.8)


def slow(points, vox):
    """Cells and features point by point, in float64."""
    cells, features = [], []
    for xyz, own, valid in zip(*points, strict=True):
        mem = vox.ref_to_mem(xyz).double().numpy()
        inside = vox.get_inbounds(xyz) & valid
        columns, offs = {}, {}
        for n in np.flatnonzero(inside):
            x, z = int(np.rint(np.float32(mem[n, 0]))), int(np.rint(np.float32(mem[n, 2])))
            offs[n] = np.array([mem[n, 0] - x, (mem[n, 1] - (vox.Y - 1) / 2) / vox.Y, mem[n, 2] - z])
            columns.setdefault(z * vox.X + x, []).append(n)
        rows, numbers = np.zeros((len(xyz), 10)), np.full(len(xyz), vox.Z * vox.X)
        for cell, members in columns.items():
            mean = np.mean([offs[n] for n in members], 0)
            for n in members:
                away = np.hypot(xyz[n, 0], xyz[n, 2]) / 24
                rows[n], numbers[n] = np.concatenate([offs[n], offs[n] - mean, [away], own[n]]), cell
        cells.append(numbers)
        features.append(rows)
    return torch.tensor(np.stack(cells)), torch.tensor(np.stack(features))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_points_are_grouped_as_a_slow_loop_has_them_and_learned_column_by_column(seed):
    points, vox = cloud(seed), grid()
    cells, features = grouped(points, vox)
    want_cells, want = slow(points, vox)
    assert torch.equal(cells, want_cells) and (cells < vox.Z * vox.X).any()
    torch.testing.assert_close(features.double(), want, rtol=0, atol=2e-5)

    torch.manual_seed(seed)
    net = PillarNet(features.shape[2], 5, (vox.Z, vox.X))
    with torch.no_grad():
        made, each = net(cells, features), net.points(features)
        for b, n in torch.nonzero(cells < vox.Z * vox.X).tolist():
            z, x = divmod(int(cells[b, n]), vox.X)
            assert torch.equal(made[b, :, z, x], each[b, cells[b] == cells[b, n]].amax(0))
        assert int((made != 0).any(1).sum()) <= sum(len(set(c.tolist()) - {vox.Z * vox.X}) for c in cells)
        # Neither the order of points nor padding is anything to it.
        order = torch.randperm(COUNT)
        padded = Points(*(torch.cat([v[:, order], torch.zeros_like(v[:, :7])], 1) for v in points))
        again = grouped(padded, vox)
        assert torch.equal(again[0][:, :COUNT], cells[:, order]) and torch.equal(
            again[1][:, :COUNT], features[:, order]
        )
        torch.testing.assert_close(net(*again), made, rtol=0, atol=1e-5)


def options_of(shards, out="unused", **more):
    options = Options(
        shards=(f"{shards}/train-*.tar",), model="pillars", batch_size=2, grad_acc=1, max_iters=2, image_size="64x96",
        nworkers=0, nworkers_val=0, Z=16, Y=2, X=24, bounds=(-24, 24, -4, 4, -16, 16), latent_dim=8, encoder_type="effb0",
        no_pretrained=True, device="cpu", log_dir=f"{out}/logs", ckpt_dir=f"{out}/runs", run_name="run", log_freq=9,
        save_freq=1, nsweeps=2, model_args='{"channels": 6}',
    )  # fmt: skip
    return dataclasses.replace(options, **more)


def made(shards, **more):
    network, options = make_network(options_of(shards, **more))
    train_loader, _, vox = make_loaders(options, "cpu", needs=network.needs)
    return network.eval(), train_loader, vox


def test_the_network_takes_points_and_every_flip_cancels_out(small_shards):
    network, loader, vox = made(small_shards)
    batch = loader.batch_of([0, 4], augment=True)
    assert network.needs.lidar == network.needs.radar == "points" and network.needs.past == 0
    tensors = network.inference_inputs(batch, vox)
    assert tensors["lidar_features"].shape[2] == PLACE_FEATURES + 3 and tensors["radar_features"].shape[2] == 7 + 16
    assert (tensors["radar_cells"] < 16 * 24).any() and tensors["radar_features"].abs().max() < 30
    # Points are flipped with the map that they make: a network that sees a mirrored column says the same of it.
    captured = []
    network.bev = lambda *args, **more: captured.append(more["maps"]) or type(network).bev(network, *args, **more)
    none = Flips(torch.zeros(2, 6, dtype=bool), torch.zeros(2, dtype=bool), torch.zeros(2, dtype=bool))
    both = Flips(none.image, ~none.bev_x, ~none.bev_z)
    with torch.no_grad():
        run_network(network, batch, vox, none)
        run_network(network, batch, vox, both)
        mirrored = tensors["lidar_features"] * torch.tensor([-1, 1, -1, -1, 1, -1] + [1] * 4)
        want = network.pillars["lidar"](tensors["lidar_cells"], mirrored)
    assert torch.equal(captured[1][:, :6], want) and not torch.equal(*captured)
    assert len(captured) == 2 and captured[0].shape == (2, 12, 16, 24)


def test_lidar_alone_and_a_past_beside_it(small_shards):
    network, loader, vox = made(small_shards, model_args='{"channels": 6, "sensors": ["lidar"]}', past=1)
    assert network.needs.radar is False and network.needs.remembers and list(network.pillars) == ["lidar"]
    batch = loader.batch_of([1, 4])
    assert batch.radar_data is None and batch.imgs.shape[1] == 2
    with torch.no_grad():
        outputs = run_network(network, batch, vox)
    assert outputs.keys() == {"seg", "center", "offset"} and outputs["seg"].shape == (2, 1, 16, 24)
    for wrong, told in (('{"sensors": []}', "lidar, radar or both"), ('{"channels": 0}', "channels is at least 1")):
        with pytest.raises(ValueError, match=told):
            make_network(options_of(small_shards, model_args=wrong))
    with pytest.raises(ValueError, match="use_lidar: the network takes no lidar|--use_metaradar"):
        make_network(options_of(small_shards, use_radar=True, use_metaradar=True))


def test_the_gradient_reaches_all_that_learns(small_shards):
    network, loader, vox = made(small_shards)
    outputs = run_network(network.train(), loader.batch_of([0, 4], augment=True), vox)
    (outputs["seg"].square().mean() + outputs["offset"].square().mean() + outputs["center"].mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.pillars.parameters())


class Inference(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, pix_T_cams, ref_T_cams, lidar_cells, lidar_features, radar_cells, radar_features):
        points = {"lidar_cells": lidar_cells, "lidar_features": lidar_features}
        points |= {"radar_cells": radar_cells, "radar_features": radar_features}
        return self.network.infer(images, pix_T_cams, ref_T_cams, **points)


@pytest.mark.slow
def test_inference_is_exported_for_any_number_of_points(small_shards):
    network, loader, vox = made(small_shards)
    with torch.no_grad():
        given, other = (network.inference_inputs(loader.batch_of(own), vox) for own in ([0, 4], [1, 8]))
        points = {s: torch.export.Dim(f"{s}_points", min=2) for s in ("lidar", "radar")}
        shapes = {name: {1: points[name.split("_")[0]]} if name.split("_")[0] in points else {} for name in given}
        program = torch.export.export(Inference(network), (), given, dynamic_shapes=shapes, strict=False).module()
        for tensors in (given, other):
            want, got = network.infer(**tensors), program(**tensors)
            assert want.keys() == got.keys() == {"seg", "center", "offset"}
            for name, value in want.items():
                torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_trains_resumes_on_two_processes_evaluates_and_is_shown(small_shards, tmp_path):
    path = train(options_of(small_shards, tmp_path))
    train(options_of(small_shards, tmp_path, resume=str(path.parent), device_ids=(0, 1), max_iters=4))
    assert checkpoint.read(path.parent)["step"] == 4
    assert "3 samples" in call_module("train.evaluate", path.parent, "--device", "cpu", "--pictures", 1).stdout
    words = [small_shards, "0", "--run", path.parent, "--out", tmp_path / "p.png", "--device", "cpu", "--width", "800"]
    result = CliRunner().invoke(show.main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    call_module("train.report", path.parent, "--out", tmp_path / "report.html")
    assert (tmp_path / "report.html").is_file()
