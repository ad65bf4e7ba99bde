"""Bilinear sampling as four weighted pixels per point, with the semantics of grid_sample (zeros outside the image)."""

import torch


def corners(x, y, feat_hw):
    """The four pixels that a sample takes, and their weights.

    Args:
        x, y: (...) coordinates of grid_sample with align_corners=False, in the precision that the weights shall have.
        feat_hw: rows and columns of the feature map.
    Returns:
        columns (..., 2) and rows (..., 2) int32 within the map; weights (..., 2, 2), row by column, 0 outside the map.
    """
    (columns, across), (rows, down) = (_pair(v, size) for v, size in ((x, feat_hw[1]), (y, feat_hw[0])))
    return columns, rows, down[..., :, None] * across[..., None, :]


def _pair(coordinate, size):
    """The two pixels (..., 2) int32 beside a coordinate along an axis of that many pixels, and their weights."""
    pixel = ((coordinate + 1) * size - 1) / 2
    first = pixel.floor()
    part = pixel - first
    both = torch.stack([first, first + 1], -1)
    weights = torch.stack([1 - part, part], -1) * ((both >= 0) & (both < size))
    # Whole numbers are clamped, not floats: a NaN passes through the latter's clamp, and must not index memory.
    return both.int().clamp(0, size - 1), weights
