"""Norm with sum and ReLU, and doubling with joining, against torch's own operations: how long, by how many rows a block."""

import os
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from tests.bench.device_clock import device_ms

# As in the encoder and in the BEV network, of a batch of eight.
SHAPES = {
    "batch norm, ReLU": (48, 256, 112, 200),
    "batch norm, sum, ReLU": (48, 1024, 28, 50),
    "instance norm, ReLU": (8, 128, 200, 200),
}
DOUBLED = (48, 1024, 28, 50), (48, 512, 56, 100)


def time_them(settings, rows):
    """Milliseconds of forward and backward of each, in bfloat16; on the CPU under Triton's interpreter, at tiny sizes."""
    if settings.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    from train.model.norm import triton as norms
    from train.model.upsampling import triton as upsampling

    for name, shape in SHAPES.items():
        given = _drawn(settings, shape), _drawn(settings, shape)
        _row(settings, rows, f"{name}: torch", partial(_torch_norm, name), given)
        for number in (norms.BLOCK_ROWS,) if settings.dry else (8, 16, 32):
            norms.BLOCK_ROWS = number
            _row(settings, rows, f"{name}: {number} rows a block", partial(_our_norm, norms, name), given)
    given = tuple(_drawn(settings, shape) for shape in DOUBLED)
    _row(settings, rows, "doubled and joined: torch", _torch_join, given)
    for pixels in (upsampling.BLOCK_PIXELS,) if settings.dry else (8, 16, 32):
        upsampling.BLOCK_PIXELS = pixels
        _row(settings, rows, f"doubled and joined: {pixels} pixels a block", upsampling.join, given)


def _drawn(settings, shape):
    if settings.dry:
        shape = 2, 4, 2 * (shape[2] // 28), 2 * (shape[3] // 50)
    values = torch.randn(shape, device=settings.device, dtype=torch.bfloat16)
    return values.contiguous(memory_format=torch.channels_last).requires_grad_()


def _row(settings, rows, name, action, given):
    out = action(*given)
    gradient = torch.randn_like(out)
    used = [t for t in given if t.requires_grad]

    def forward_and_backward():
        return torch.autograd.grad(action(*given), used, gradient, allow_unused=True)

    rows.add(f"{name}, forward", device_ms(lambda: action(*given), settings.device, 1 if settings.dry else 20), "ms")
    both = device_ms(forward_and_backward, settings.device, 1 if settings.dry else 20)
    rows.add(f"{name}, forward and backward", both, "ms")


def _torch_norm(name, x, residual):
    make = nn.InstanceNorm2d if name.startswith("instance") else nn.BatchNorm2d
    out = make(x.shape[1]).to(x.device)(x)
    return F.relu(out + residual if "sum" in name else out)


def _our_norm(norms, name, x, residual):
    affine = (torch.ones(x.shape[1], device=x.device), torch.zeros(x.shape[1], device=x.device))
    by_item = name.startswith("instance")
    residual = residual if "sum" in name else None
    return norms.normalise(x, (None, None) if by_item else affine, residual, None, by_item, True, 1e-5)


def _torch_join(coarse, fine):
    large = F.interpolate(coarse.float(), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.cat([fine.float(), large], 1).bfloat16()
