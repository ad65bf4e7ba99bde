"""Simple-BEV with past keyframes: placed exactly, streams equal to windows bit for bit, and all that a run does with it."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from common.geometry import similarity_inverse
from tests.conftest import call_module
from tests.small_step import GRID, grid
from train import checkpoint, show
from train.data import Grid
from train.data.frames import ego_T_nows
from train.model import Flips, Needs
from train.model.forward import run_network, with_voxels
from train.model.memory import memory_of
from train.model.past import Memory, Past, PastConv, past_of_window
from train.model.points import pixels_of_ref
from train.model.simple_bev import SimpleBev
from train.options import Options
from train.run import train
from train.setup import make_loaders, make_network


def options_of(shards, out="unused", **more):
    options = Options(
        shards=(f"{shards}/train-*.tar",), batch_size=2, grad_acc=1, max_iters=2, image_size="64x96", nworkers=0,
        nworkers_val=0, Z=16, Y=2, X=16, bounds=(-24, 24, -2, 2, -24, 24), latent_dim=8, encoder_type="effb0", past=2,
        no_pretrained=True, device="cpu", log_dir=f"{out}/logs", ckpt_dir=f"{out}/runs", run_name="run", log_freq=9,
        save_freq=1,
    )  # fmt: skip
    return dataclasses.replace(options, **more)


@pytest.fixture(scope="module")
def network(small_shards):
    network, _ = make_network(options_of(small_shards))
    torch.manual_seed(0)
    torch.nn.init.normal_(network.past_conv.gain_per_s)  # as training would, so that ages count
    return network.eval()


def loader_of(shards, network, **more):
    return make_loaders(options_of(shards, **more), "cpu", needs=network.needs)[0]


def streams_and_windows(shards, network, change=lambda network, batch: None, **more):
    """(outputs, batch) of a stream over all scenes, and of windows of the same samples in the same batches."""
    out = []
    stream, windows = (loader_of(shards, network, order=order, **more) for order in ("streams", "shuffled"))
    other = copy.deepcopy(network)  # which forgets, as windows are no streams
    with torch.no_grad():
        for batch in stream:
            assert batch.imgs.shape[1] == 1 and batch.tokens[0][0]
            got = run_network(network, batch, stream.stage.vox_util)
            change(network, batch)
            window = windows.batch_of([tokens[0] for tokens in batch.tokens])
            assert window.imgs.shape[1] == 3
            out.append((batch, got, window, run_network(other, window, stream.stage.vox_util)))
    return out


def plain(**more):
    """Options of loading without draws, so that a sample is the same in any order."""
    return dict(rand_flip=False, rand_crop_and_resize=False, do_shuffle_cams=False, refcam_id=1) | more


@pytest.mark.parametrize("true_times", [False, True])
def test_streams_are_windows_bit_for_bit(small_shards, network, true_times):
    pairs = streams_and_windows(small_shards, network, **plain(true_times=true_times))
    assert len(pairs) == 3 and memory_of(network)["is_real"].tolist() == [[True, True]] * 2
    for n, (batch, got, window, want) in enumerate(pairs):
        assert batch.starts.tolist() == [n == 0] * 2 and window.is_real.tolist() == [[t <= n for t in range(3)]] * 2
        for name, value in want.items():
            assert torch.equal(got[name], value), (n, name)
    assert not torch.equal(pairs[0][1]["seg"], pairs[1][1]["seg"])


def test_a_memory_saved_and_loaded_in_mid_scene_says_the_same(small_shards, network):
    def again(network, batch):
        kept = memory_of(network)
        network.load_stream_state({})
        network.load_stream_state(kept)

    for _, got, _, want in streams_and_windows(small_shards, network, again, **plain()):
        assert all(torch.equal(got[name], value) for name, value in want.items())


def test_what_is_not_real_changes_nothing_and_what_is_does(small_shards, network):
    loader = loader_of(small_shards, network, **plain())
    vox, later = loader.stage.vox_util, loader.batch_of([2, 5])
    assert later.is_real.all() and later.age_s.tolist() == [[0, 0.5, 1.0]] * 2
    with torch.no_grad():
        want = run_network(network, later, vox)["seg"]
        other = dataclasses.replace(later, imgs=torch.cat([later.imgs[:, :1], later.imgs[:, 1:].flip(-1)], 1))
        assert not torch.equal(run_network(network, other, vox)["seg"], want)
        older = dataclasses.replace(later, age_s=2 * later.age_s)
        assert not torch.equal(run_network(network, older, vox)["seg"], want)
        none = later.is_real & torch.tensor([True, False, False])
        alone, changed = (
            run_network(network, dataclasses.replace(b, is_real=none), vox)["seg"] for b in (later, other)
        )
        assert torch.equal(alone, changed) and not torch.equal(alone, want)


def test_of_the_past_no_points_are_read(small_shards):
    network, options = make_network(options_of(small_shards, past=1, use_lidar=True, use_radar=True, nsweeps=2))
    loader, _, vox = make_loaders(options, "cpu", needs=network.needs)
    asked, read = [], loader.reader.read
    loader.reader.read = lambda number, members: (
        asked.append([m for m in members if "lidar" in m or "radar" in m]) or read(number, members)
    )
    batch = loader.batch_of([1, 2])
    assert [len(names) for names in asked] == [4, 0] * 2 and batch.imgs.shape[1] == 2
    for counts in (batch.num_lidar, batch.num_lidar0, batch.num_radar):
        assert (counts[:, 0] > 0).all() and not counts[:, 1].any()
    alone, options = make_network(options_of(small_shards, past=0, use_lidar=True, use_radar=True, nsweeps=2))
    present = make_loaders(options, "cpu", needs=alone.needs)[0].batch_of([1, 2])
    assert torch.equal(present.lidar_data[:, 0], batch.lidar_data[:, 0]) and torch.equal(
        present.num_radar[:, 0], batch.num_radar[:, 0]
    )
    with torch.no_grad():
        assert run_network(network.eval(), batch, vox)["seg"].shape == (2, 1, 16, 16)


def test_the_gradient_reaches_the_fusion_and_no_past_image(small_shards):
    network, _ = make_network(options_of(small_shards, past=1))
    loader = loader_of(small_shards, network, past=1)
    batch = loader.batch_of([2, 5], augment=True)
    batch.imgs = batch.imgs.clone().requires_grad_()
    flips = Flips.of(torch.rand(2, 2 + batch.imgs.shape[2], generator=torch.Generator().manual_seed(0)))
    outputs = run_network(network.train(), batch, loader.stage.vox_util, flips)
    outputs["seg"].square().mean().backward()
    assert batch.imgs.grad[:, 0].any() and not batch.imgs.grad[:, 1].any()
    assert network.past_conv.weight.grad.any() and network.past_conv.gain_per_s.grad.any()


def test_a_static_world_coincides():
    """Marks that stand still, seen at three times and in grids of other reference cameras: in the grid of now they coincide."""
    rng = np.random.default_rng(0)
    where = Grid((0, 0, 0), (-20, 20, -2, 2, -20, 20), (40, 4, 40), "ego")
    vox, batch, times = where.vox_util(), 2, 3
    global_T_ego = np.tile(np.eye(4), (batch, times, 1, 1))
    for b in range(batch):
        for t in range(times):
            yaw = rng.uniform(-0.2, 0.2)
            global_T_ego[b, t, :2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
            global_T_ego[b, t, :3, 3] = [4e5 - 4.0 * t, 1e6 + rng.uniform(-2, 2), 0.0]
    own = torch.from_numpy(np.stack([ego_T_nows(poses) for poses in global_T_ego]))
    axes = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # ego_T_cam, looking ahead
    move = torch.eye(4)
    move[0, 3], move[2, 3] = 3.0, -1.0  # a grid that is augmented
    ref_T_ego = (move @ torch.from_numpy(where.ref_T_ego(None))).expand(batch, times, 4, 4).clone()
    ref_T_ego[:, 1:] = torch.eye(4)  # of other reference cameras: must not matter
    pix_T_cam = torch.eye(4)
    pix_T_cam[0, 0] = pix_T_cam[1, 1] = 60.0
    pix_T_cam[0, 2] = pix_T_cam[1, 2] = 60.0

    marks = vox.mem_to_ref(torch.tensor([[23.0, 1, 36], [20, 2, 33], [18, 1, 38]]))
    images = torch.zeros(batch, times, 1, 3, 121, 121)
    for b in range(batch):
        for t in range(times):
            cam_T_ref = torch.linalg.inv(axes) @ own[b, t] @ similarity_inverse(ref_T_ego[b, 0])
            pixels = pix_T_cam[:3, :3] @ (cam_T_ref @ torch.cat([marks, torch.ones(3, 1)], 1).T)[:3]
            u, v = (pixels[:2] / pixels[2]).round().long()
            images[b, t, 0, 0, v, u] = 1.0

    class World:
        imgs, intrins = images, pix_T_cam.expand(batch, times, 1, 4, 4)
        rots, trans = axes[:3, :3].expand(batch, times, 1, 3, 3), axes[:3, 3].expand(batch, times, 1, 3)
        lenses = None
        ego_T_now, true_times, age_s, is_real = own, False, torch.zeros(batch, times), torch.ones(batch, times) > 0

    World.ref_T_ego = ref_T_ego
    past = past_of_window(World, 2, lambda own: torch.nn.functional.max_pool2d(own[:, 0], 3, 1, 1)[:, None])
    kernels = PastConv(2, 3, 4, 1, size=1)
    torch.nn.init.ones_(kernels.weight)
    for b in range(batch):
        for k in range(2):
            *where_seen, _ = pixels_of_ref(past.pix_T_cams[b, k], past.ref_T_cams[b, k], 1)
            seen = vox.unproject_image_to_mem(past.features[b, k], *where_seen)[0, 0]
            assert all(seen[z, y, x] > 0.2 for x, y, z in ((23, 1, 36), (20, 2, 33), (18, 1, 38))), (b, k)
            assert (seen > 0.2).float().mean() < 0.05
    fused = kernels(past, 1, vox)
    assert fused.shape == (batch, 1, 40, 40) and (fused[:, 0, [36, 33, 38], [23, 20, 18]] > 0.4).all()


def test_rows_come_and_go():
    memory = Memory(1)
    memory.reset(torch.ones(2, dtype=torch.bool))
    assert memory.stream_state() == {}
    memory.load_stream_state({"is_real": torch.ones(2, 1, dtype=torch.bool), "features": torch.rand(2, 1, 3)})
    kept = memory.state["features"]
    memory.reset(torch.tensor([False]))
    assert memory.state["is_real"].tolist() == [[True]] and torch.equal(memory.state["features"], kept[:1])
    memory.reset(torch.tensor([False, True, True]))
    assert memory.state["is_real"].tolist() == [[True], [False], [False]] and len(memory.state["features"]) == 3


def test_without_a_past_nothing_is_new(small_shards):
    network, _ = make_network(options_of(small_shards, past=0))
    assert not any(hasattr(network, name) for name in ("reset", "stream_state", "memory"))
    assert not any("past" in name for name in network.state_dict()) and network.needs == Needs(
        lidar=False, radar=False, lenses=True
    )
    with pytest.raises(ValueError, match="past features go through the compressor"):
        SimpleBev(*GRID, past=1, do_rgbcompress=False, encoder_type="effb0", latent_dim=4)
    with pytest.raises(ValueError, match="remembers=1; it is True or False"):
        Needs(remembers=1)


class Step(torch.nn.Module):
    """infer as a module's forward: what is exported of a network with a past."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, pix_T_cams, ref_T_cams, **past):
        return self.network.infer(images, pix_T_cams, ref_T_cams, **past)


@pytest.mark.slow
def test_a_step_is_exported_with_its_memory(small_shards, network):
    loader = loader_of(small_shards, network, **plain())
    with torch.no_grad():
        batch = with_voxels(loader.batch_of([1, 5]), network.needs, grid())
        given = network.inference_inputs(batch, grid())
        assert {f"past_{name}" for name in Past._fields[:-1]} < given.keys()
        program = torch.export.export(Step(network), (), given, strict=False)
        want, got = network.infer(**given), program.module()(**given)
    assert want.keys() == got.keys() == {"seg", "center", "offset", "features"}
    assert want["features"].shape == given["past_features"][:, 0].shape
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)


def evaluated(run, order):
    words = [run, "--device", "cpu", "--pictures", 1, "--order", order, "--batch_size", 1]
    assert "3 samples" in call_module("train.evaluate", *words).stdout
    return json.loads((run / "eval" / "eval.json").read_text())


@pytest.mark.slow
def test_it_trains_resumes_on_two_processes_evaluates_and_is_shown(small_shards, tmp_path):
    for order in ("shuffled", "streams"):
        out = tmp_path / order
        path = train(options_of(small_shards, out, order=order))
        content = checkpoint.read(path)
        assert content["options"]["past"] == 2 and bool(content["stream_state"]) is (order == "streams")
        train(options_of(small_shards, out, order=order, resume=str(path.parent), device_ids=(0, 1), max_iters=4))
        assert checkpoint.read(path.parent)["step"] == 4
    one, two = (evaluated(path.parent, order) for order in ("shuffled", "streams"))
    assert one["figures"] == two["figures"]
    words = [small_shards, "0", "--run", path.parent, "--out", tmp_path / "p.png", "--device", "cpu", "--width", "800"]
    result = CliRunner().invoke(show.main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    call_module("train.report", path.parent, "--out", tmp_path / "report.html")
    assert (tmp_path / "report.html").is_file()
