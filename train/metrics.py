"""Intersection over union, summed over samples before it is divided."""

import math

import torch


def intersection_union(seg_logits, seg_bev, valid_bev):
    """(2,) float64: cells in both and in either of prediction (sigmoid rounded) and truth, where valid."""
    predicted = seg_logits.detach().sigmoid().round()
    both = (predicted * seg_bev * valid_bev).sum(dtype=torch.float64)
    either = ((predicted + seg_bev).clamp(0, 1) * valid_bev).sum(dtype=torch.float64)
    return torch.stack([both, either])


def iou(counts):
    """IoU of summed counts; 0 where nothing was predicted or true, NaN of no counts."""
    if not len(counts):
        return math.nan
    both, either = counts.tolist()
    return both / either if either else 0.0
