"""Bilinear doubling and joining of channels-last tensors on CUDA: values are written once, gradients have one owner each."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from train.model.operators import operator

BLOCK_PIXELS, BLOCK_CHANNELS = 16, 128
NUM_WARPS = 4


@triton.jit
def _neighbours(place, size):
    """The two coarse places beside a fine one, and the weight of the second: src = (place + 1/2) / 2 - 1/2, at least 0."""
    first = tl.maximum((place + 1) // 2 - 1, 0)
    second = tl.minimum(first + 1, size - 1)
    weight = tl.where(place % 2 == 1, 0.25, 0.75)
    return first, second, tl.where(place == 0, 0.0, weight)


@triton.jit
def join_kernel(
    coarse, fine, out, PIXELS, H, W, C, D, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, WITH_FINE: tl.constexpr
):
    """coarse (N,H,W,C), fine (N,2H,2W,D) -> out (N,2H,2W,D+C), of PIXELS pixels."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (pixel < PIXELS)[:, None] & (channel < D + C)[None, :]
    column, row, item = pixel % (2 * W), (pixel // (2 * W)) % (2 * H), pixel // (4 * H * W)
    left, right, of_right = _neighbours(column, W)
    top, bottom, of_bottom = _neighbours(row, H)
    take = inside & (channel >= D)[None, :]
    own = (channel - D)[None, :]
    above, below = (item * H + top) * W, (item * H + bottom) * W
    upper_left = tl.load(coarse + (above + left)[:, None] * C + own, mask=take, other=0.0).to(tl.float32)
    upper_right = tl.load(coarse + (above + right)[:, None] * C + own, mask=take, other=0.0).to(tl.float32)
    lower_left = tl.load(coarse + (below + left)[:, None] * C + own, mask=take, other=0.0).to(tl.float32)
    lower_right = tl.load(coarse + (below + right)[:, None] * C + own, mask=take, other=0.0).to(tl.float32)
    upper = (1.0 - of_right)[:, None] * upper_left + of_right[:, None] * upper_right
    lower = (1.0 - of_right)[:, None] * lower_left + of_right[:, None] * lower_right
    value = (1.0 - of_bottom)[:, None] * upper + of_bottom[:, None] * lower
    if WITH_FINE:
        copy = inside & (channel < D)[None, :]
        value += tl.load(fine + pixel[:, None] * D + channel[None, :], mask=copy, other=0.0).to(tl.float32)
    tl.store(out + pixel[:, None] * (D + C) + channel[None, :], value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _weight(tap: tl.constexpr, place, size):
    """What the fine place 2 * place - 1 + tap takes of a coarse place; nothing where there is none."""
    inner: tl.constexpr = tap == 1 or tap == 2
    weight = tl.where((place >= 0), 0.75 if inner else 0.25, 0.0)
    if tap == 0:
        weight = tl.where(place == 0, 0.0, weight)
    if tap == 1:
        weight = tl.where(place == 0, 1.0, weight)
    if tap == 2:
        weight = tl.where(place == size - 1, 1.0, weight)
    if tap == 3:
        weight = tl.where(place == size - 1, 0.0, weight)
    return weight


@triton.jit
def gradient_kernel(grad, out, PIXELS, H, W, C, D, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """grad (N,2H,2W,D+C) of join_kernel's out -> out (N,H,W,C), of PIXELS pixels: the gradient for coarse."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (pixel < PIXELS)[:, None] & (channel < C)[None, :]
    column, row, item = pixel % W, (pixel // W) % H, pixel // (H * W)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for dy in tl.static_range(4):
        for dx in tl.static_range(4):
            weight = _weight(dy, row, H) * _weight(dx, column, W)
            place = ((item * 2 * H + 2 * row - 1 + dy) * 2 * W + 2 * column - 1 + dx)[:, None] * (D + C)
            take = inside & (weight > 0)[:, None]
            total += weight[:, None] * tl.load(grad + place + (D + channel)[None, :], mask=take, other=0.0).to(
                tl.float32
            )
    tl.store(out + pixel[:, None] * C + channel[None, :], total.to(out.dtype.element_ty), mask=inside)


def _join(coarse, fine):
    out = _new_joined(coarse, fine)
    items, channels, height, width = coarse.shape
    sizes = 4 * items * height * width, height, width, channels, out.shape[1] - channels
    _launch(join_kernel, coarse, (coarse, fine, out), sizes, out.shape[1], fine is not None)
    return out


def _new_joined(coarse, fine):
    items, channels, height, width = coarse.shape
    channels += 0 if fine is None else fine.shape[1]
    shape = items, channels, 2 * height, 2 * width
    return torch.empty(shape, dtype=coarse.dtype, device=coarse.device, memory_format=torch.channels_last)


def _join_backward(grad, channels):
    """The gradient for `coarse`, which has so many channels."""
    out = _new_halved(grad, channels)
    items, _, height, width = out.shape
    sizes = items * height * width, height, width, channels, grad.shape[1] - channels
    _launch(gradient_kernel, grad, (grad, out), sizes, channels)
    return out


def _new_halved(grad, channels):
    items, _, height, width = grad.shape
    shape = items, channels, height // 2, width // 2
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)


def _launch(kernel, on, tensors, sizes, channels, *more):
    block = min(BLOCK_CHANNELS, triton.next_power_of_2(channels))
    blocks = triton.cdiv(sizes[0], BLOCK_PIXELS), triton.cdiv(channels, block)
    with torch.cuda.device(on.device) if on.is_cuda else nullcontext():  # on the CPU under Triton's interpreter
        kernel[blocks](*tensors, *sizes, BLOCK_PIXELS, block, *more, num_warps=NUM_WARPS)


_JOIN = operator("join_doubled(Tensor coarse, Tensor? fine) -> Tensor", _join, _new_joined)
_JOIN_BACKWARD = operator("join_doubled_backward(Tensor grad, int channels) -> Tensor", _join_backward, _new_halved)


def join(coarse, fine):
    """See train.model.upsampling.doubled; both tensors are channels-last and of one dtype."""
    return _Join.apply(coarse, fine)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, coarse, fine):
        ctx.channels, ctx.with_fine = coarse.shape[1], fine is not None
        return _JOIN(coarse, fine)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_coarse = _JOIN_BACKWARD(grad, ctx.channels)
        return of_coarse, grad[:, : -ctx.channels] if ctx.with_fine else None
