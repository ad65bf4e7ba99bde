"""Losses of the benchmark (Simple-BEV): segmentation, centre heat and offsets, as masked means.

The cells that a mean counts follow from the labels alone. A loss asks its normaliser for all of its denominators at once,
so that several processes, whose means are then those of all their cells, exchange their counts once per batch.
"""

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import InputError
from train.classes import POSITIVES

COUNT_FLOOR = 1e-6
CE_FACTOR = 10.0
TERMS = {"seg": "ce_loss", "center": "center_loss", "offset": "offset_loss"}  # of the network's outputs


class Normaliser:
    """Counts of cells -> what sums over these cells are divided by: normaliser(a, b) gives two tensors, normaliser(a) one.

    world: distributed.World over whose cells the means go: the average over ranks of the results is the mean of all cells,
    and each call is one collective, whatever it carries. None for this process alone.
    """

    def __init__(self, world=None):
        self.world = world

    def __call__(self, *counts):
        """counts: scalar tensors of one dtype."""
        if self.world is None or self.world.size == 1:
            out = tuple(count + COUNT_FLOOR for count in counts)
        else:
            out = ((self.world.sum(torch.stack(counts)) + COUNT_FLOOR) / self.world.size).unbind()
        return out[0] if len(counts) == 1 else out


def masked_mean(values, mask, denominator=None):
    """Mean of values where mask is 1; nearly 0 where it is 1 nowhere. denominator: a Normaliser's, for mask.sum()."""
    return (values * mask).sum() / (mask.sum() + COUNT_FLOOR if denominator is None else denominator)


class SimpleLoss(nn.Module):
    """Binary cross-entropy of logits against {0, 1}, positives weighed by pos_weight, averaged over valid cells."""

    def __init__(self, pos_weight):
        super().__init__()
        self.register_buffer("pos_weight", torch.tensor([float(pos_weight)]), persistent=False)

    def forward(self, ypred, ytgt, valid, denominator=None):
        """Three tensors (B,1,Z,X) -> scalar; denominator as in masked_mean."""
        each = F.binary_cross_entropy_with_logits(ypred, ytgt, pos_weight=self.pos_weight, reduction="none")
        return masked_mean(each, valid, denominator)


def balanced_mse_loss(pred, gt, valid=None, denominators=(None, None)):
    """Half the sum of the mean squared errors where gt > 0.5 and where gt < 0.5, over valid cells."""
    squared = F.mse_loss(pred, gt, reduction="none")
    masks = _halves(gt, torch.ones_like(gt) if valid is None else valid)
    positive, negative = (masked_mean(squared, m, d) for m, d in zip(masks, denominators, strict=True))
    return (positive + negative) * 0.5


def _halves(gt, valid):
    return (gt > 0.5).float() * valid, (gt < 0.5).float() * valid


def benchmark_terms(outputs, batch, normaliser):
    """The benchmark's terms of those outputs that there are, not weighed against each other.

    Of several classes the cross-entropy is the mean of each one's mean over its cells, weighed by the classes' weights; in each
    the cells of the class count `positives` times.

    Args:
        outputs: mapping with any of seg (B,K,Z,X) logits, center (B,1,Z,X) in [0,1], offset (B,2,Z,X) cells.
        batch: Batch; its labels of the present count. normaliser: Normaliser.
    Returns:
        dict of the scalars ce_loss, center_loss, offset_loss.
    Raises:
        ValueError: outputs has none of them, or maps of another shape than the labels'.
    """
    labels = {name: getattr(batch, f"{name}_bev")[:, 0] for name in TERMS if name in outputs}
    _check_shapes(outputs, labels)
    masks = _masks(labels, batch)
    counts = normaliser(*(mask.sum() for group in masks.values() for mask in group))
    counts = iter(counts if isinstance(counts, tuple) else (counts,))
    shares = {name: [next(counts) for _ in group] for name, group in masks.items()}
    terms = {}
    if "seg" in labels:
        terms["ce_loss"] = CE_FACTOR * _cross_entropy(outputs["seg"], labels["seg"], masks["seg"], shares["seg"], batch)
    if "center" in labels:
        terms["center_loss"] = balanced_mse_loss(outputs["center"], labels["center"], None, shares["center"])
    if "offset" in labels:
        error = (outputs["offset"] - labels["offset"]).abs().sum(1, keepdim=True)
        terms["offset_loss"] = masked_mean(error, masks["offset"][0], shares["offset"][0])
    return terms


def _check_shapes(outputs, labels):
    if not labels:
        raise InputError(
            f"the network returned {', '.join(outputs) or 'nothing'}, and none of {', '.join(TERMS)}; "
            "return one of these, or give it a loss of its own"
        )
    for name, label in labels.items():
        if outputs[name].shape != label.shape:
            raise InputError(
                f"the network's {name} is {tuple(outputs[name].shape)}, the labels are {tuple(label.shape)}"
            )


def _masks(labels, batch):
    """The cells that each term's means count, a list of masks per term; seg has one per class."""
    valid = batch.valid_bev[:, 0]
    classes = valid.shape[1]
    masks = {}
    if "seg" in labels:
        masks["seg"] = [valid] if classes == 1 else list(valid.split(1, 1))
    if "center" in labels:
        masks["center"] = list(_halves(labels["center"], torch.ones_like(labels["center"])))
    if "offset" in labels:
        masks["offset"] = [offset_mask(batch)]
    return masks


def offset_mask(batch):
    """(B,1,Z,X): the cells of the present whose offsets count: where a box lies, of whatever class, and no class ignores it."""
    valid = batch.valid_bev[:, 0]
    if valid.shape[1] == 1:
        return batch.seg_bev[:, 0] * valid
    return batch.box_bev[:, 0] * valid.amin(1, keepdim=True)


def _cross_entropy(logits, truth, masks, shares, batch):
    terms, each_class = (
        [],
        getattr(batch, "class_positives", (POSITIVES,) * len(masks)),
    )  # a batch of one's own has none
    for n, (mask, share, positives) in enumerate(zip(masks, shares, each_class, strict=True)):
        weight = logits.new_full((1,), positives)  # filled on the device: a tensor of a number would be sent there
        own, wanted = (logits, truth) if len(masks) == 1 else (logits[:, n : n + 1], truth[:, n : n + 1])
        each = F.binary_cross_entropy_with_logits(own, wanted, pos_weight=weight, reduction="none")
        terms.append(masked_mean(each, mask, share))
    if len(terms) == 1:
        return terms[0]
    return sum(w * term for w, term in zip(batch.class_weights, terms, strict=True)) / sum(batch.class_weights)


def default_loss(outputs, batch, normaliser):
    """(total, terms) of a network without a loss of its own: Simple-BEV's weights at their start, not learned."""
    terms = benchmark_terms(outputs, batch, normaliser)
    terms = {name: value if name == "ce_loss" else 0.5 * value for name, value in terms.items()}
    return sum(terms.values()), terms
