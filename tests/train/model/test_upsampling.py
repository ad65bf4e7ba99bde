"""Doubled features: torch's own on the CPU, and kernels that give the same."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.processes.client import REPOSITORY
from tests.train.model.sm_90 import compiled
from train.model.upsampling import doubled


def test_on_the_cpu_it_is_torch_s():
    coarse, fine = torch.randn(2, 5, 3, 4), torch.randn(2, 3, 6, 8)
    large = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)(coarse)
    assert torch.equal(doubled(coarse), large)
    assert torch.equal(doubled(coarse, fine), torch.cat([fine, large], 1))


# On a GPU where there is one; else under Triton's interpreter, which is chosen before its first import.
KERNELS_AGAINST_TORCH = """
import torch
from torch.nn import functional as F
from train.model.upsampling.triton import join

device = 'cuda' if torch.cuda.is_available() else 'cpu'

for shape, more, dtype in (
    ((2, 5, 3, 4), 3, torch.float32),
    ((1, 130, 1, 1), 0, torch.float32),
    ((2, 4, 2, 7), 0, torch.float32),
    ((1, 8, 5, 2), 140, torch.bfloat16),
):
    coarse, fine = (torch.randn(s).to(device) for s in (shape, (shape[0], more, 2 * shape[2], 2 * shape[3])))
    given = [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in ([coarse, fine] if more else [coarse])]
    ours, theirs = ([t.detach().to(d).requires_grad_() for t in given] for d in (dtype, torch.float32))
    out = join(ours[0], ours[1] if more else None)
    wanted = F.interpolate(theirs[0], scale_factor=2, mode="bilinear", align_corners=False)
    wanted = torch.cat([theirs[1], wanted], 1) if more else wanted
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(wanted).to(dtype)
    grads = torch.autograd.grad((out * weight).sum(), ours), torch.autograd.grad((wanted * weight).sum(), theirs)
    for one, two in zip((out, *grads[0]), (wanted, *grads[1])):
        torch.testing.assert_close(one, two.to(dtype), rtol=1e-5 if dtype == torch.float32 else 0.01, atol=1e-5)
print("equal")
"""


def test_kernels_give_what_torch_gives():
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


@pytest.mark.parametrize("name", ["join_kernel", "gradient_kernel"])
def test_kernels_compile_for_sm_90_without_spilling_and_with_wide_loads(name, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    from train.model.upsampling import triton as kernels

    kernel = getattr(kernels, name)
    pointers = {argument: "*bf16" for argument in ("coarse", "fine", "grad", "out") if argument in kernel.arg_names}
    known = dict(BLOCK_P=kernels.BLOCK_PIXELS, BLOCK_C=kernels.BLOCK_CHANNELS, WITH_FINE=True)
    constants = {argument: value for argument, value in known.items() if argument in kernel.arg_names}
    ptx, used = compiled(kernel, pointers, constants, tmp_path, kernels.NUM_WARPS)
    assert used["STACK"] == used["LOCAL"] == 0 and used["REG"] <= 128
    assert "ld.global.v4.b32" in ptx
