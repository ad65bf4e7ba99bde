"""Network and losses are one graph, which batches that vary do not make anew; --compile from training to evaluation."""

import functools
import shutil
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.small_step import GRID, SmallStep, grid, inputs
from tests.train.model.test_built_in_networks import options_of
from tests.train.model.test_fake_cuda import of_a_window
from train import checkpoint
from train.evaluation.files import read_json
from train.jobs.evaluating import Evaluation
from train.jobs.evaluation_options import read_options
from train.jobs.launch import launch
from train.model import Needs
from train.model.forward import with_voxels
from train.model.pillars import Pillars
from train.options import Options
from train.run import train

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler"
)
LENGTHS = (50, 71, 33)  # of the longest lidar cloud of each batch


def voxels(step, batch, flips=None):
    """What a SmallStep's `scored` is given, as training gives it: clouds differ in length, and are no part of the graph."""
    return with_voxels(batch, step.network.needs, step.vox_util), flips


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(step):
    return {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}


def close(ours, theirs, tolerance):
    for name, value in theirs.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert (ours[name] - value).abs().max() <= tolerance * scale, name


def test_one_graph_and_at_most_one_recompilation():
    step = SmallStep(grid())
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step.scored, fullgraph=True, backend=counter)
    for seed, length in enumerate(LENGTHS):
        batch = voxels(step, *inputs(points=length, seed=seed))
        step.zero_grad()
        loss = compiled(*batch)
        loss.backward()
        ours = gradients(step)
        step.zero_grad()
        plain = step.scored(*batch)
        plain.backward()
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
        close(ours, gradients(step), 1e-3)
    assert counter.frame_count <= 2


def test_neither_the_plain_unprojection_nor_flips_drawn_inside_break_the_graph():
    step = SmallStep(grid(), rand_flip=True, unprojection="plain", use_lidar=False, do_rgbcompress=False)
    with torch.no_grad():
        compiled = torch.compile(step.scored, fullgraph=True, backend="aot_eager")
        assert compiled(voxels(step, inputs()[0])[0]).isfinite()


class Tiny(torch.nn.Module):
    """One convolution over lidar and images: Inductor builds it in seconds."""

    needs = Needs(lidar="voxels", radar=False)

    def __init__(self, height):
        super().__init__()
        self.conv = torch.nn.Conv2d(height + 3, 1, 3, padding=1)

    def forward(self, batch, grid):
        heights = batch.lidar_voxels[:, 0, 0].transpose(1, 2)
        image = torch.nn.functional.interpolate(batch.imgs[:, 0].mean(1), heights.shape[2:])
        return {"seg": self.conv(torch.cat([heights, image], 1))}


def tiny(options, grid):
    return Tiny(grid.Y)


@needs_compiler
def test_training_validation_and_evaluation_run_compiled_by_the_option(small_shards, tmp_path):
    """With whole Batches and the default backend, from --compile alone."""
    graphs = torch._dynamo.utils.counters
    graphs.clear()
    options = Options(
        model=f"{__name__}:tiny",
        shards=(f"{small_shards}/train-*.tar",),
        bounds=(-24.0, 24.0, -4.0, 4.0, -16.0, 16.0),
        **dict(zip("ZYX", GRID, strict=True)),
        **dict(max_iters=2, val_freq=2, batch_size=2, grad_acc=1, nworkers=0, nworkers_val=0, nsweeps=1),
        **dict(res_scale=0.25, use_lidar=True, device="cpu", precision="fp32", compile=True, run_name="compiled"),
        **dict(log_dir=str(tmp_path / "logs"), ckpt_dir=str(tmp_path / "runs")),
    )
    path = train(options)
    # Of network and losses: one to train, one to validate, and one for batches of other sizes.
    assert 2 <= graphs["stats"]["unique_graphs"] <= 3 and not graphs["graph_break"]
    trained = graphs["stats"]["unique_graphs"]
    choices = {"out": None, "pictures": 0, "robustness": False, "baseline": None}
    given = {"init_dir": str(path), "nworkers": 0, "device": "cpu"}
    launch(Evaluation(choices), read_options({**given, "compile": True}))
    assert trained < graphs["stats"]["unique_graphs"] <= trained + 2 and not graphs["graph_break"]
    compiled = figures(path)
    launch(Evaluation(choices), read_options(given))
    for figure, plain in zip(compiled, figures(path), strict=True):
        # A cell on the threshold may fall to either side.
        assert figure["numerator"] == pytest.approx(plain["numerator"], abs=2)
    theirs = checkpoint.read(train(replace(options, compile=False, run_name="plain")))
    ours = checkpoint.read(path)
    assert ours["model_state_dict"].keys() == theirs["model_state_dict"].keys()
    for part in "tv":
        for (mine, _), (other, _) in zip(ours["pools"][part], theirs["pools"][part], strict=True):
            assert mine["total_loss"] == pytest.approx(other["total_loss"], rel=1e-4)


def figures(path):
    return read_json(path.parent)["figures"]


@pytest.mark.slow
@needs_compiler
def test_inductor_gives_the_same_loss_and_gradients():
    """Of all that is not a known encoder's, with one block per level: each further kernel is a second for the C++ compiler."""
    step = SmallStep(grid(), use_lidar=False).eval()
    network = step.network
    network.encoder = torch.nn.Conv2d(3, 8, 8, stride=8)
    network.encoder.multiple, network.encoder.strides = 8, (8,)
    for level in ("layer1", "layer2", "layer3"):
        setattr(network.decoder, level, getattr(network.decoder, level)[:1])
    batch = voxels(step, *inputs(batch=1))
    loss = torch.compile(step.scored, fullgraph=True)(*batch)
    loss.backward()
    ours = gradients(step)
    step.zero_grad()
    plain = step.scored(*batch)
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-4)
    close(ours, gradients(step), 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name, most", [("lift_splat, cam0", 3), ("lift_splat, ego", 4)])
def test_lift_splat_trains_compiled_with_depths_and_without(name, most, small_shards, tmp_path, monkeypatch):
    """By Inductor's graphs without its C++ compiler, which takes minutes for an EfficientNet.

    Of network and losses: one to train, one to validate, one for batches of other sizes; with depths one for clouds of any
    length. Updates are small, since Adam makes whole steps of what is rounding.
    """
    options = options_of(name, small_shards, tmp_path / "plain", max_iters=4, val_freq=4, lr=1e-6)
    plain = train(options)
    graphs = torch._dynamo.utils.counters
    graphs.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled = train(replace(options, ckpt_dir=str(tmp_path / "compiled"), compile=True))
    assert 2 <= graphs["stats"]["unique_graphs"] <= most and not graphs["graph_break"]
    ours, theirs = (checkpoint.read(path)["pools"] for path in (compiled, plain))
    for part in "tv":
        for (mine, _), (other, _) in zip(ours[part], theirs[part], strict=True):
            assert mine.keys() == other.keys()
            assert mine["total_loss"] == pytest.approx(other["total_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["past", "pillars"])
def test_a_past_and_pillars_are_one_graph(what):
    past = 2 if what == "past" else 0
    step = SmallStep(grid(), use_lidar=False, past=past)
    if what == "pillars":
        step.network = Pillars(*GRID, latent_dim=8, encoder_type="effb0")
    step.eval()  # without the encoder's random draws
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step.scored, fullgraph=True, backend=counter)
    for seed, length in enumerate(LENGTHS):
        batch, flips = inputs(points=length, seed=seed)
        batch = of_a_window(batch, 1 + past)
        batch.lenses = None
        given = voxels(step, batch, flips)
        torch.testing.assert_close(compiled(*given), step.scored(*given), rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2
