"""Normalisation, a sum and ReLU in one go on CUDA, for channels-last tensors: Triton kernels that read memory as it lies.

torch reads and writes a channels-last tensor of a training step ten times for batch norm, sum and ReLU, forward and backward,
its statistics at a quarter of an H100's bandwidth, and copies it to and fro for instance norm. Here it is eight at most, all at
the memory's speed. Statistics are sums of differences from the first row, in float32 whatever the tensor is, part by part and
then over the parts: the same bits in every run. Loops over sizes are written with `while`, since Triton 3.6 cannot interpret
others beside NumPy 2.5.

A tensor is (G, R, C): G groups of R rows of C channels, and each group's channel is normalised by itself. Batch norm has one
group of N*H*W rows, instance norm has N of H*W.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from train.model.operators import operator

BLOCK_ROWS, BLOCK_CHANNELS = 32, 128  # measured on an H100 against 8 and 16 rows
ROWS_PER_PROGRAM = 128  # of the kernels that write a tensor
PARTS = 1056  # programs that the sums are spread over: eight for each of an H100's multiprocessors
FINISH_PARTS, FINISH_CHANNELS = 64, 16
NUM_WARPS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _place(first_row, C, channels, BLOCK_R: tl.constexpr):
    """Offsets of a tile of rows and channels."""
    rows = first_row + tl.arange(0, BLOCK_R)
    return rows[:, None].to(tl.int64) * C + channels[None, :]


@triton.jit
def _normalised(x, mean, rstd):
    return (x.to(tl.float32) - mean[None, :]) * rstd[None, :]


@triton.jit
def _affine(weight, bias, channels, own, AFFINE: tl.constexpr):
    """Weight and bias of the channels; 1 and 0 where the norm has none."""
    scale = tl.where(own, 1.0, 0.0)
    shift = tl.where(own, 0.0, 0.0)
    if AFFINE:
        scale = tl.load(weight + channels, mask=own, other=0.0).to(tl.float32)
        shift = tl.load(bias + channels, mask=own, other=0.0).to(tl.float32)
    return scale, shift


@triton.jit
def moments_kernel(x, sums, R, C, rows_each, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """x (G,R,C) -> sums (G,parts,2,C): of the differences from each group's first row, and of their squares."""
    part, group = tl.program_id(1), tl.program_id(2)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    base = x + group.to(tl.int64) * R * C
    first = tl.load(base + channels, mask=own, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    begin = part * rows_each
    end = tl.minimum(begin + rows_each, R)
    row = begin
    while row < end:
        inside = ((row + tl.arange(0, BLOCK_R)) < end)[:, None] & own[None, :]
        values = tl.load(base + _place(row, C, channels, BLOCK_R), mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - first[None, :], 0.0)
        total += values
        squares += values * values
        row += BLOCK_R
    place = sums + ((group * tl.num_programs(1) + part) * 2).to(tl.int64) * C + channels
    tl.store(place, tl.sum(total, 0), mask=own)
    tl.store(place + C, tl.sum(squares, 0), mask=own)


@triton.jit
def _over_parts(sums, group, parts, C, channels, own, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Both sums over all parts of a group."""
    one = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    two = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    first = group * 0
    while first < parts:
        part = first + tl.arange(0, BLOCK_P)
        inside = (part < parts)[:, None] & own[None, :]
        place = sums + ((group * parts + part) * 2)[:, None].to(tl.int64) * C + channels[None, :]
        one += tl.load(place, mask=inside, other=0.0)
        two += tl.load(place + C, mask=inside, other=0.0)
        first += BLOCK_P
    return tl.sum(one, 0), tl.sum(two, 0)


@triton.jit
def statistics_kernel(
    x, sums, mean, rstd, running_mean, running_var, batches, R, C, parts, eps, momentum,
    FOLLOW: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sums of moments_kernel -> mean and rstd (G,C): 1 / sqrt(variance + eps), with the biased variance.

    FOLLOW, of one group: move the running statistics (C,) towards them, their variance over R - 1, and count the batch.
    """
    group = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    first = tl.load(x + group.to(tl.int64) * R * C + channels, mask=own, other=0.0).to(tl.float32)
    total, squares = _over_parts(sums, group, parts, C, channels, own, BLOCK_P, BLOCK_C)
    away = total / R
    variance = tl.maximum(squares / R - away * away, 0.0)
    tl.store(mean + group * C + channels, first + away, mask=own)
    tl.store(rstd + group * C + channels, 1.0 / tl.sqrt(variance + eps), mask=own)
    if FOLLOW:
        so_far = tl.load(running_mean + channels, mask=own, other=0.0).to(tl.float32)
        so_far += momentum * (first + away - so_far)
        tl.store(running_mean + channels, so_far.to(running_mean.dtype.element_ty), mask=own)
        so_far = tl.load(running_var + channels, mask=own, other=0.0).to(tl.float32)
        so_far += momentum * (variance * R / tl.maximum(R - 1, 1) - so_far)
        tl.store(running_var + channels, so_far.to(running_var.dtype.element_ty), mask=own)
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)


@triton.jit
def apply_kernel(
    x, mean, rstd, weight, bias, residual, y, R, C,
    AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y = x normalised, times weight, plus bias, plus residual (G,R,C), and 0 where that is negative."""
    group = tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    mu = tl.load(mean + group * C + channels, mask=own, other=0.0)
    sigma = tl.load(rstd + group * C + channels, mask=own, other=0.0)
    scale, shift = _affine(weight, bias, channels, own, AFFINE)
    base = group.to(tl.int64) * R * C
    for step in range(0, ROWS, BLOCK_R):
        row = tl.program_id(0) * ROWS + step
        inside = ((row + tl.arange(0, BLOCK_R)) < R)[:, None] & own[None, :]
        place = base + _place(row, C, channels, BLOCK_R)
        values = tl.load(x + place, mask=inside, other=0.0)
        values = _normalised(values, mu, sigma) * scale[None, :] + shift[None, :]
        if RESIDUAL:
            values += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            values = tl.where(values < 0.0, 0.0, values)  # NaN stays NaN, as in torch
        tl.store(y + place, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _through_relu(grad, values, scale, shift, y, place, inside, RELU: tl.constexpr, BY_Y: tl.constexpr):
    """The gradient where y is positive: as y says, or as what is normalised does, of which y was made."""
    if RELU:
        if BY_Y:
            grad = tl.where(tl.load(y + place, mask=inside, other=0.0).to(tl.float32) > 0.0, grad, 0.0)
        else:
            grad = tl.where(values * scale[None, :] + shift[None, :] > 0.0, grad, 0.0)
    return grad


@triton.jit
def gradient_sums_kernel(
    grad, x, y, mean, rstd, weight, bias, sums, passed, R, C, rows_each,
    AFFINE: tl.constexpr, RELU: tl.constexpr, BY_Y: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sums (G,parts,2,C): of the gradient behind the ReLU, and of its product with x normalised.

    With BY_Y that gradient, which is the residual's, is also written to `passed` (G,R,C).
    """
    part, group = tl.program_id(1), tl.program_id(2)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    mu = tl.load(mean + group * C + channels, mask=own, other=0.0)
    sigma = tl.load(rstd + group * C + channels, mask=own, other=0.0)
    scale, shift = _affine(weight, bias, channels, own, AFFINE)
    base = group.to(tl.int64) * R * C
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    begin = part * rows_each
    end = tl.minimum(begin + rows_each, R)
    row = begin
    while row < end:
        inside = ((row + tl.arange(0, BLOCK_R)) < end)[:, None] & own[None, :]
        place = base + _place(row, C, channels, BLOCK_R)
        values = _normalised(tl.load(x + place, mask=inside, other=0.0), mu, sigma)
        given = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        given = _through_relu(given, values, scale, shift, y, place, inside, RELU, BY_Y)
        if BY_Y:
            tl.store(passed + place, given.to(passed.dtype.element_ty), mask=inside)
        total += given
        products += given * values
        row += BLOCK_R
    place = sums + ((group * tl.num_programs(1) + part) * 2).to(tl.int64) * C + channels
    tl.store(place, tl.sum(total, 0), mask=own)
    tl.store(place + C, tl.sum(products, 0), mask=own)


@triton.jit
def totals_kernel(sums, totals, C, parts, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """sums (G,parts,2,C) -> totals (G,2,C)."""
    group = tl.program_id(1)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    one, two = _over_parts(sums, group, parts, C, channels, own, BLOCK_P, BLOCK_C)
    tl.store(totals + group * 2 * C + channels, one, mask=own)
    tl.store(totals + (group * 2 + 1) * C + channels, two, mask=own)


@triton.jit
def gradient_kernel(
    grad, x, mean, rstd, weight, bias, totals, out, R, C,
    AFFINE: tl.constexpr, RELU: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient for x, of the gradient before the ReLU (RELU) or behind it, and of its totals (G,2,C)."""
    group = tl.program_id(2)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    own = channels < C
    mu = tl.load(mean + group * C + channels, mask=own, other=0.0)
    sigma = tl.load(rstd + group * C + channels, mask=own, other=0.0)
    scale, shift = _affine(weight, bias, channels, own, AFFINE)
    of_sum = tl.load(totals + group * 2 * C + channels, mask=own, other=0.0) / R
    of_products = tl.load(totals + (group * 2 + 1) * C + channels, mask=own, other=0.0) / R
    base = group.to(tl.int64) * R * C
    for step in range(0, ROWS, BLOCK_R):
        row = tl.program_id(0) * ROWS + step
        inside = ((row + tl.arange(0, BLOCK_R)) < R)[:, None] & own[None, :]
        place = base + _place(row, C, channels, BLOCK_R)
        values = _normalised(tl.load(x + place, mask=inside, other=0.0), mu, sigma)
        given = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        given = _through_relu(given, values, scale, shift, x, place, inside, RELU, False)
        result = (given - of_sum[None, :] - values * of_products[None, :]) * (scale * sigma)[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


def _normalise(x, weight, bias, residual, running_mean, running_var, batches, by_item, relu, eps, momentum):
    rows = _Rows(x, by_item)
    y, mean, rstd = _new_normalised(x, by_item)
    with _device_of(x):
        sums = rows.new_sums(x)
        moments_kernel[rows.summing](x, sums, *rows.size, rows.rows_each, *rows.tile, num_warps=NUM_WARPS)
        tensors = x, sums, mean, rstd, running_mean, running_var, batches
        sizes = *rows.size, rows.parts, eps, momentum, running_mean is not None, FINISH_PARTS, FINISH_CHANNELS
        statistics_kernel[rows.finishing](*tensors, *sizes, num_warps=NUM_WARPS)
        own = weight is not None, residual is not None, relu
        tensors = x, mean, rstd, weight, bias, residual, y
        apply_kernel[rows.writing](*tensors, *rows.size, *own, *rows.tile, ROWS_PER_PROGRAM, num_warps=NUM_WARPS)
    return y, mean, rstd


def _new_normalised(x, by_item):
    mean, rstd = (x.new_empty((x.shape[0] if by_item else 1, x.shape[1]), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, rstd


def _fake_normalise(x, weight, bias, residual, running_mean, running_var, batches, by_item, relu, eps, momentum):
    return _new_normalised(x, by_item)


def _normalise_backward(grad, x, y, mean, rstd, weight, bias, by_item, relu):
    """Gradients for x and for the residual, and totals (G,2,C).

    y is given where a ReLU follows a sum; without it the second is empty, for it is grad then. totals: of grad behind the
    ReLU, and of its product with x normalised.
    """
    rows, by_y, affine = _Rows(x, by_item), y is not None, weight is not None
    out, passed, totals = _new_gradients(x, y, mean)
    with _device_of(x):
        sums = rows.new_sums(x)
        tensors = grad, x, y, mean, rstd, weight, bias, sums, passed
        sizes = *rows.size, rows.rows_each, affine, relu, by_y, *rows.tile
        gradient_sums_kernel[rows.summing](*tensors, *sizes, num_warps=NUM_WARPS)
        sizes = rows.channels, rows.parts, FINISH_PARTS, FINISH_CHANNELS
        totals_kernel[rows.finishing](sums, totals, *sizes, num_warps=NUM_WARPS)
        tensors = passed if by_y else grad, x, mean, rstd, weight, bias, totals, out
        sizes = *rows.size, affine, relu and not by_y, *rows.tile, ROWS_PER_PROGRAM
        gradient_kernel[rows.writing](*tensors, *sizes, num_warps=NUM_WARPS)
    return out, passed, totals


def _new_gradients(x, y, mean):
    out = torch.empty_like(x, memory_format=torch.channels_last)
    passed = x.new_empty(0) if y is None else torch.empty_like(out)
    return out, passed, x.new_empty((mean.shape[0], 2, mean.shape[1]), dtype=torch.float32)


def _fake_normalise_backward(grad, x, y, mean, rstd, weight, bias, by_item, relu):
    return _new_gradients(x, y, mean)


_NORMALISE = operator(
    "normalise(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "Tensor(c!)? batches, bool by_item, bool relu, float eps, float momentum) -> (Tensor, Tensor, Tensor)",
    _normalise,
    _fake_normalise,
)
_NORMALISE_BACKWARD = operator(
    "normalise_backward(Tensor grad, Tensor x, Tensor? y, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, "
    "bool by_item, bool relu) -> (Tensor, Tensor, Tensor)",
    _normalise_backward,
    _fake_normalise_backward,
)


def normalise(x, affine, residual, running, by_item, relu, eps):
    """relu(normalised x, times weight, plus bias, plus residual); its gradient goes to all four.

    Args:
        x: (N,C,H,W), channels-last, as residual is, and the result. affine: weight and bias (C,), or None twice.
        running: running mean and variance (C,), count of batches () int64 and momentum, which are moved in place, or None.
        by_item: normalise each item by itself. relu: whether negative values become 0.
    """
    return _Normalise.apply(x, *affine, residual, running or (None, None, None, 0.0), by_item, relu, eps)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, running, by_item, relu, eps):
        y, mean, rstd = _NORMALISE(x, weight, bias, residual, *running[:3], by_item, relu, eps, running[3])
        ctx.by_item, ctx.relu, ctx.has_residual = by_item, relu, residual is not None
        ctx.save_for_backward(x, y if relu and residual is not None else None, mean, rstd, weight, bias)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, mean, rstd, weight, bias = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        out, passed, totals = _NORMALISE_BACKWARD(grad, x, y, mean, rstd, weight, bias, ctx.by_item, ctx.relu)
        of_bias, of_weight = (None, None) if weight is None else totals.sum(0) if ctx.by_item else totals[0]
        of_residual = (grad if y is None else passed) if ctx.has_residual else None
        return out, of_weight, of_bias, of_residual, None, None, None, None


class _Rows:
    """How an (N,C,H,W) tensor is divided: sizes, tiles, and the grids of programs."""

    def __init__(self, x, by_item):
        items, self.channels, height, width = x.shape
        self.groups, rows = (items, height * width) if by_item else (1, items * height * width)
        self.size = rows, self.channels
        block = min(BLOCK_CHANNELS, triton.next_power_of_2(self.channels))
        self.tile = BLOCK_ROWS, block
        blocks = triton.cdiv(self.channels, block)
        most = max(1, PARTS // (blocks * self.groups))
        tiles = triton.cdiv(rows, BLOCK_ROWS)
        self.rows_each = BLOCK_ROWS * triton.cdiv(tiles, min(most, tiles))
        self.parts = triton.cdiv(rows, self.rows_each)
        self.summing = blocks, self.parts, self.groups
        self.finishing = triton.cdiv(self.channels, FINISH_CHANNELS), self.groups
        self.writing = triton.cdiv(rows, ROWS_PER_PROGRAM), blocks, self.groups

    def new_sums(self, x):
        return x.new_empty((self.groups, self.parts, 2, self.channels), dtype=torch.float32)


def _device_of(x):
    """What makes the tensor's device the current one; nothing where it is, since that costs as much as a launch."""
    return torch.cuda.device(x.device) if x.is_cuda and x.device.index != torch.cuda.current_device() else nullcontext()
