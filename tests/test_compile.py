"""Network and losses are one graph, which batches that vary do not make anew."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.small_step import SmallStep, grid, inputs

LENGTHS = (50, 71, 33)  # of the longest lidar cloud of each batch


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
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for seed, length in enumerate(LENGTHS):
        batch = inputs(points=length, seed=seed)
        step.zero_grad()
        loss = compiled(*batch)
        loss.backward()
        ours = gradients(step)
        step.zero_grad()
        plain = step(*batch)
        plain.backward()
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
        close(ours, gradients(step), 1e-3)
    assert counter.frame_count <= 2


def test_neither_the_plain_unprojection_nor_flips_drawn_inside_break_the_graph():
    step = SmallStep(grid(), rand_flip=True, unprojection="plain", use_lidar=False, do_rgbcompress=False)
    with torch.no_grad():
        assert torch.compile(step, fullgraph=True, backend="aot_eager")(inputs()[0]).isfinite()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler")
def test_inductor_gives_the_same_loss_and_gradients():
    step = SmallStep(grid(), encoder_type="effb0", use_lidar=False).eval()
    batch = inputs(batch=1)
    loss = torch.compile(step, fullgraph=True)(*batch)
    loss.backward()
    ours = gradients(step)
    step.zero_grad()
    plain = step(*batch)
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-4)
    close(ours, gradients(step), 0.01)
