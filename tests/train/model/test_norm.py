"""Norms that take a sum and a ReLU along: torch's own arithmetic on the CPU, and kernels that give the same."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as torchvision_resnet

from tests.processes.client import REPOSITORY
from tests.train.model.sm_90 import compiled
from train.model import resnet
from train.model.norm import BatchNorm, InstanceNorm, normed

WAYS = [(residual, relu) for residual in (False, True) for relu in (False, True)]


def drawn(shape, seed=0, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (3.0 + 0.5 * values).to(dtype).contiguous(memory_format=torch.channels_last)


def plain(norm, x, residual, relu):
    out = norm(x)
    out = out if residual is None else out + residual
    return F.relu(out) if relu else out


@pytest.mark.parametrize(("residual", "relu"), WAYS)
@pytest.mark.parametrize("kind", ["batch", "instance", "instance of one"])
@pytest.mark.parametrize("training", [True, False])
def test_on_the_cpu_it_is_torch_s(kind, training, residual, relu):
    shape = (1 if kind == "instance of one" else 3, 6, 4, 5)
    ours, theirs = (BatchNorm(6), nn.BatchNorm2d(6)) if kind == "batch" else (InstanceNorm(6), nn.InstanceNorm2d(6))
    x, added = drawn(shape), drawn(shape, 1) if residual else None
    for _ in range(2):
        a = normed(ours.train(training), x.clone(), added, relu)
        b = plain(theirs.train(training), x, added, relu)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    for (name, one), two in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_are_torchvision_s(name):
    networks = []
    for make in (getattr(resnet, name), getattr(torchvision_resnet, name)):
        torch.manual_seed(0)
        networks.append(make())
    ours, theirs = networks
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = drawn((2, 3, 32, 32))
    for training in (True, False):
        a, b = (network.train(training)(x) for network in networks)
        assert torch.equal(a, b)
    a, b = (network.train()(x).square().sum() for network in networks)
    for one, two in zip(
        *(torch.autograd.grad(v, list(n.parameters())) for v, n in ((a, ours), (b, theirs))), strict=True
    ):
        assert torch.equal(one, two)


def test_norms_that_are_synchronised_over_devices_run_one_after_the_other():
    norm = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(BatchNorm(4)))[0]
    x, residual = drawn((2, 4, 3, 3)), drawn((2, 4, 3, 3), 1)
    expected = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias) + residual)
    torch.testing.assert_close(normed(norm.eval(), x.clone(), residual, relu=True), expected)


# On a GPU where there is one; else under Triton's interpreter, which is chosen before its first import.
KERNELS_AGAINST_TORCH = """
import itertools, torch
from torch.nn import functional as F
from tests.train.model.test_norm import WAYS, drawn
from train.model.norm import triton as kernels

kernels.PARTS, kernels.ROWS_PER_PROGRAM = 6, 64
device = 'cuda' if torch.cuda.is_available() else 'cpu'
for shape, by_item, affine, dtype in (
    ((3, 5, 7, 9), False, True, torch.float32),
    ((3, 5, 7, 9), True, False, torch.float32),
    ((1, 130, 5, 20), False, True, torch.float32),
    ((2, 16, 9, 8), True, False, torch.bfloat16),
    ((2, 16, 9, 8), False, True, torch.bfloat16),
    ((2, 3, 1, 1), False, True, torch.float32),
):
    for with_residual, relu in WAYS:
        x, added, wanted = (drawn(shape, n, dtype).to(device) for n in range(3))
        weight, bias = (drawn((shape[1], 1, 1, 1), n).flatten().to(device) - 3 for n in (3, 4)) if affine else (None, None)
        given = [t for t in (x, added if with_residual else None, weight, bias) if t is not None]
        results = []
        for exact in (False, True):
            leaves = [t.detach().to(torch.float64 if exact else t.dtype).requires_grad_() for t in given]
            left = iter(leaves)
            own = next(left), next(left) if with_residual else None, *((next(left), next(left)) if affine else (None, None))
            if exact:
                dims = (2, 3) if by_item else (0, 2, 3)
                mean, var = own[0].mean(dims, True), own[0].var(dims, unbiased=False, keepdim=True)
                out = (own[0] - mean) / (var + 1e-5).sqrt()
                out = out * own[2][:, None, None] + own[3][:, None, None] if affine else out
                out = out + own[1] if with_residual else out
                out = F.relu(out) if relu else out
                rstd = (var + 1e-5).rsqrt()
            else:
                out = kernels.normalise(own[0], own[2:], own[1], None, by_item, relu, 1e-5)
                mean, rstd = kernels._NORMALISE(own[0], *[None] * 6, by_item, False, 1e-5, 0.0)[1:]
                assert out.is_contiguous(memory_format=torch.channels_last)
            grads = torch.autograd.grad((out * (wanted.to(out.dtype) - 3)).sum(), leaves)
            results.append((out, mean.flatten(), rstd.flatten(), *grads))
        tolerance = 2e-4 if dtype == torch.float32 else 0.06
        for name, ours, theirs in zip(("y", "mean", "rstd", *"abcd"), *results):
            near = (ours.double() - theirs).abs() <= tolerance * theirs.abs().max().clamp(min=1)
            # A ReLU's corner may fall to either side by the last bit.
            assert near.double().mean() >= (1 if dtype == torch.float32 else 0.97), (shape, by_item, relu, with_residual, name)
for count, momentum in ((40, 0.1), (1, 0.5)):
    x, norm = drawn((count, 5, 1, 1)).to(device), torch.nn.BatchNorm2d(5, momentum=momentum).to(device)
    running = [buffer.clone() for buffer in norm.buffers()]
    kernels.normalise(x, (None, None), None, (*running, momentum), False, False, norm.eps)
    if count > 1:
        norm(x)
    else:
        norm.running_mean.lerp_(x.flatten(), momentum), norm.running_var.mul_(1 - momentum)
        norm.num_batches_tracked.add_(1)
    torch.testing.assert_close(running, list(norm.buffers()), rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_kernels_give_what_float64_gives():
    pytest.importorskip("triton", reason="Triton is not installed")
    interpreter = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", KERNELS_AGAINST_TORCH],
        env={**os.environ, **interpreter, "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == "equal", result.stderr


KERNELS = {
    "moments_kernel": ("x", "sums"),
    "apply_kernel": ("x", "mean", "rstd", "weight", "bias", "residual", "y"),
    "gradient_sums_kernel": ("grad", "x", "y", "mean", "rstd", "weight", "bias", "sums", "passed"),
    "gradient_kernel": ("grad", "x", "mean", "rstd", "weight", "bias", "totals", "out"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_sm_90_without_spilling_and_with_wide_loads(name, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    from train.model.norm import triton as kernels

    kernel = getattr(kernels, name)
    features = ("grad", "x", "y", "residual", "passed", "out")
    pointers = {argument: "*bf16" if argument in features else "*fp32" for argument in KERNELS[name]}
    known = dict(AFFINE=True, RESIDUAL=True, RELU=True, BY_Y=True, ROWS=kernels.ROWS_PER_PROGRAM)
    known |= dict(BLOCK_R=kernels.BLOCK_ROWS, BLOCK_C=kernels.BLOCK_CHANNELS)
    constants = {argument: value for argument, value in known.items() if argument in kernel.arg_names}
    ptx, used = compiled(kernel, pointers, constants, tmp_path, kernels.NUM_WARPS)
    assert used["STACK"] == used["LOCAL"] == 0 and used["REG"] <= 168  # as it was measured on an H100
    assert "ld.global.v4.b32" in ptx
