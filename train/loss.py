"""Losses of the benchmark (Simple-BEV): segmentation, centre heat, and offsets, weighed by learned log-variances."""

import torch
from torch import nn
from torch.nn import functional as F

COUNT_FLOOR = 1e-6
CE_FACTOR = 10.0


def own_cells(count):
    """The denominator of masked_mean in one process."""
    return count + COUNT_FLOOR


def masked_mean(values, mask, denominator=own_cells):
    """Mean of values where mask is 1; nearly 0 where it is 1 nowhere.

    denominator: own count -> what to divide by; with over_ranks the results' average over ranks is the mean of all cells.
    """
    return (values * mask).sum() / denominator(mask.sum())


def over_ranks(world):
    """The denominator of masked_mean where `world` is a distributed.World: one rank's share of all ranks' cells."""
    return lambda count: (world.sum(count) + COUNT_FLOOR) / world.size


class SimpleLoss(nn.Module):
    """Binary cross-entropy of logits against {0, 1}, positives weighed by pos_weight, averaged over valid cells."""

    def __init__(self, pos_weight):
        super().__init__()
        self.register_buffer("pos_weight", torch.tensor([float(pos_weight)]), persistent=False)

    def forward(self, ypred, ytgt, valid, denominator=own_cells):
        """Three tensors (B,1,Z,X) -> scalar; denominator as in masked_mean."""
        each = F.binary_cross_entropy_with_logits(ypred, ytgt, pos_weight=self.pos_weight, reduction="none")
        return masked_mean(each, valid, denominator)


def balanced_mse_loss(pred, gt, valid=None, denominator=own_cells):
    """Half the sum of the mean squared errors where gt > 0.5 and where gt < 0.5, over valid cells."""
    squared = F.mse_loss(pred, gt, reduction="none")
    valid = torch.ones_like(gt) if valid is None else valid
    positive, negative = (gt > 0.5).float() * valid, (gt < 0.5).float() * valid
    return (masked_mean(squared, positive, denominator) + masked_mean(squared, negative, denominator)) * 0.5


def total_loss(model, outputs, batch, seg_loss, denominator=own_cells):
    """The benchmark's sum; may be negative, since each term carries half its learned log-variance.

    Args:
        model: holder of ce_weight, center_weight and offset_weight. outputs: of Segnet. batch: Batch with T = 1.
    Returns:
        (scalar, dict of the weighed terms without their log-variances, detached).
    """
    _, _, seg, center, offset = outputs
    seg_gt, valid = batch.seg_bev[:, 0], batch.valid_bev[:, 0]
    ce = CE_FACTOR * seg_loss(seg, seg_gt, valid, denominator) * torch.exp(-model.ce_weight)
    center_term = balanced_mse_loss(center, batch.center_bev[:, 0], None, denominator)
    center_term = center_term / (2 * torch.exp(model.center_weight))
    error = (offset - batch.offset_bev[:, 0]).abs().sum(1, keepdim=True)
    offset_term = masked_mean(error, seg_gt * valid, denominator) / (2 * torch.exp(model.offset_weight))
    loss = ce + center_term + offset_term
    loss = loss + 0.5 * (model.ce_weight + model.center_weight + model.offset_weight)
    terms = {"ce_loss": ce.detach(), "center_loss": center_term.detach(), "offset_loss": offset_term.detach()}
    return loss, terms
