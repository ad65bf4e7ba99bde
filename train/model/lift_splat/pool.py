"""Pooling of lifted features: each cell's sum of context times depth, without the product of both in memory.

A point is a pixel at a depth; what it adds to its cell is the pixel's context times the depth's share. Sorted by cell, the
points are bags of pixels with weights, which is what torch's embedding bag sums. Both directions are such bags, so every run
adds in one order, on a CPU and on CUDA, and nothing is read back to the host.
"""

import torch
import torch.nn.functional as F


def pooled(context, depth, cells, count):
    """Sums of context * depth over the points of each cell.

    Args:
        context: (P,C) float32, of each pixel. depth: (P,D) float32, shares of each pixel's depths. cells: (P,D) int64 of the
            points, in 0..count-1, or `count` for a point that lies in none. count: of the cells.
    Returns:
        (count,C) float32, zero where no point lies.
    """
    if torch.is_grad_enabled() and (context.requires_grad or depth.requires_grad):
        return _Pooled.apply(context, depth, cells, count)
    return _sums(context, depth, cells, count)


def _sums(context, depth, cells, count):
    pixels, depths = cells.shape
    # A point outside goes to a bag of its pixel: all in one would be summed by a single thread, long after the others.
    bags = torch.arange(count + pixels, device=cells.device, dtype=torch.int32)  # sorted in half the time of int64
    keys, order = torch.where(cells < count, cells.int(), bags[count:, None]).flatten().sort(stable=True)
    starts = torch.searchsorted(keys, bags)
    weights = depth.flatten()[order]
    return F.embedding_bag(order // depths, context, starts, mode="sum", per_sample_weights=weights)[:count]


class _Pooled(torch.autograd.Function):
    """_sums with the gradients of both factors: bags of cells, one for each pixel, and dot products."""

    @staticmethod
    def forward(ctx, context, depth, cells, count):
        ctx.save_for_backward(context, depth, cells)
        return _sums(context, depth, cells, count)

    @staticmethod
    def backward(ctx, grad):
        context, depth, cells = ctx.saved_tensors
        pixels, depths = cells.shape
        grad = F.pad(grad, (0, 0, 0, 1))  # of points in no cell: zero
        flat = cells.flatten()
        number = torch.arange(pixels, device=cells.device)
        of_context = of_depth = None
        if ctx.needs_input_grad[0]:
            weights = depth.flatten()
            of_context = F.embedding_bag(flat, grad, number * depths, mode="sum", per_sample_weights=weights)
        if ctx.needs_input_grad[1]:
            # The dot product of each point's cell and pixel, by the operator that computes it for weights of bags.
            dots = torch.ops.aten._embedding_bag_per_sample_weights_backward
            bags = number[:, None].expand(-1, depths).reshape(-1)
            of_depth = dots(context, grad, flat, number * depths, bags, 0, -1).view(pixels, depths)
        return of_context, of_depth, None, None
