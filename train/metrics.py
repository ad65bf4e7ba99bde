"""Metrics: objects that count what a network said of batches, are added up, and give figures; nobody else knows what they do.

A metric has three methods:

- update(outputs, batch): count one batch. outputs: mapping as the network gives it; batch: Batch, whose t = 0 is the present.
- merge(other): take in what one of the same kind counted, of other batches, another scene or another process.
- figures(): dict from name to Score of all that was counted.

It is sent between processes as it is, so it pickles. One whose state is a vector of sums (Sums) is also counted in training.
"""

import copy
import math
from typing import NamedTuple

import torch

from common.errors import InputError

METHODS = ("update", "merge", "figures")


class Score(NamedTuple):
    """A figure: its value, NaN where nothing was counted, and whether a higher one is better."""

    value: float
    higher_is_better: bool = True


class Sums:
    """A metric whose state is one vector of sums: the training step adds it up over processes in the exchange that it makes.

    A metric of this kind has count(outputs, batch), a (n,) tensor on the batch's device made without waiting for it, n the same
    for every batch, and figures(), which reads self.counts: a (n,) float64 tensor.
    """

    counts = None

    def update(self, outputs, batch):
        """Add what count gives of a batch."""
        self._add(self.count(outputs, batch).detach().double())

    def merge(self, other):
        """Add what another one counted."""
        if other.counts is not None:
            self._add(other.counts)

    def _add(self, counts):
        self.counts = counts if self.counts is None else self.counts + counts.to(self.counts.device)

    def of(self, counts):
        """One of this kind with these counts."""
        out = object.__new__(type(self))
        out.__dict__ |= vars(self) | {"counts": counts}
        return out

    def __getstate__(self):
        """What is sent to another process: counts are on the CPU there."""
        return vars(self) | {"counts": None if self.counts is None else self.counts.cpu()}


class Segmentation(Sums):
    """IoU of `seg`, class by class, and their mean; intersections and unions are summed before they are divided."""

    names = ()

    def count(self, outputs, batch):
        """(2K,) float64: intersection and union of each class."""
        self.names = tuple(getattr(batch, "class_names", ()))
        return intersection_union(outputs["seg"], batch.seg_bev[:, 0], batch.valid_bev[:, 0]).flatten()

    def figures(self):
        """iou, the mean of the classes, and with several of them iou_NAME of each."""
        if self.counts is None:
            return {"iou": Score(math.nan)}
        out = {"iou": Score(iou(self.counts))}
        if len(self.counts) > 2:
            each = zip(self.names, self.counts.reshape(-1, 2), strict=True)
            out |= {f"iou_{name}": Score(iou(counts)) for name, counts in each}
        return out


def intersection_union(seg_logits, seg_bev, valid_bev):
    """(K,2) float64: cells in both and in either of prediction (sigmoid rounded) and truth, where valid.

    Three tensors (B,K,Z,X): logits, truth in {0,1}, and where it counts.
    """
    predicted = seg_logits.detach().sigmoid().round()
    both = (predicted * seg_bev * valid_bev).sum((0, 2, 3), dtype=torch.float64)
    either = ((predicted + seg_bev).clamp(0, 1) * valid_bev).sum((0, 2, 3), dtype=torch.float64)
    return torch.stack([both, either], 1)


def iou(counts):
    """IoU of summed counts (K,2), in any shape: of several classes the mean of those of which anything was predicted or true.

    0 where there is none of them, NaN of no counts.
    """
    pairs = torch.as_tensor(counts).reshape(-1, 2).tolist()
    if not pairs:
        return math.nan
    found = [both / either for both, either in pairs if either]
    return sum(found) / len(found) if found else 0.0


def metrics_of(network):
    """A network's own metrics, new ones: what its `metrics()` gives, or copies of those in a list of that name.

    Raises:
        ValueError: `metrics` is something else.
    """
    own = getattr(network, "metrics", None)
    if own is None:
        return []
    name = type(network).__name__
    own = own() if callable(own) else copy.deepcopy(own)
    if not isinstance(own, (list, tuple)):
        raise InputError(f"{name}.metrics is {own!r}; it is a list of metrics, or a method that gives new ones")
    for metric in own:
        missing = [method for method in METHODS if not callable(getattr(metric, method, None))]
        if missing:
            raise InputError(f"{name}.metrics hold a {type(metric).__name__}, which has no {' and no '.join(missing)}")
    return list(own)


def merged(parts):
    """One list of metrics of those that several processes counted; a process that had no batch gives an empty one."""
    whole = []
    for part in parts:
        if not whole:
            whole = list(part)
            continue
        for metric, other in zip(whole, part, strict=False):
            metric.merge(other)
    return whole


def read(metrics):
    """Figures of several metrics, name -> Score. Raises ValueError where two give one name."""
    out = {}
    for metric in metrics:
        scores = metric.figures()
        if twice := sorted(out.keys() & scores.keys()):
            raise InputError(f"two metrics give {', '.join(twice)}; names are a metric's own")
        out |= {
            name: Score(*score) if isinstance(score, tuple) else Score(float(score)) for name, score in scores.items()
        }
    return out
