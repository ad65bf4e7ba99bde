"""Evaluation of a network over every sample of a loader, on any number of ranks."""

import re
from collections.abc import Mapping

import numpy as np
import torch

from common.errors import InputError
from train.evaluation.counting import ring_map
from train.evaluation.measure import measure
from train.evaluation.samples import Evaluation
from train.metrics import metrics_of, read
from train.model.finite import finite_outputs
from train.model.forward import run_network, without_gradients
from train.processes.ranks import say

NAMED = 5  # samples, where a network's outputs are not finite

RESERVED = ("eval",)  # names of files that an evaluation writes itself


def evaluate(network, batches, grid, world, autocast=None, thumbnails=None):
    """The Evaluation over every batch of every rank, on rank 0; None on the others.

    One forward pass per batch serves all labels. The result does not depend on how many ranks share the batches, but for
    what the network itself makes of another batch size. Outputs that are not finite are told with their samples, and predict
    nothing.
    The network's own metrics and what it collects are kept.

    Args:
        network: see train/model/README.md; left in evaluation mode. batches: iterable of this rank's Batch objects.
        grid: VoxUtil. world: distributed.World. autocast: dtype of the network's arithmetic, None for float32.
        thumbnails: function of batch, outputs and grid to key -> kind -> bytes of a small picture; None draws none.
    Raises:
        ValueError: what the network's metrics or its `collect` give is no metric or nothing that can be kept.
    """
    rings = ring_map(grid).to(world.device)
    own, wrong = Evaluation(), []

    def run(batch):
        return run_network(network, batch, grid, autocast=autocast)

    for batch, outputs in without_gradients(network, run, batches):
        outputs, not_finite = finite_outputs(outputs)
        own.add(*measure(outputs, batch, rings))
        _add_own(own, network, outputs, batch, grid)
        if thumbnails is not None:
            own.thumbnails.update(thumbnails(batch, outputs, grid))
        if not_finite is not None:
            wrong += [f.key for (f, *_), bad in zip(batch.facts, not_finite.tolist(), strict=True) if bad]
    wrong = sorted(key for part in world.gather(wrong) for key in part)
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        say(f"note: outputs that are not finite, and predict nothing, in {', '.join(wrong[:NAMED])}{more}")
    whole = Evaluation()
    for part in world.gather(own):
        whole.merge(part)
    if not world.leads:
        return None
    whole.scores = read(whole.metrics)
    return whole.sorted()


def _add_own(evaluation, network, outputs, batch, grid):
    """Update the network's own metrics with a batch, and keep what it collects of it."""
    evaluation.metrics = evaluation.metrics or metrics_of(network)
    with torch.no_grad():
        for metric in evaluation.metrics:
            metric.update(outputs, batch)
        collected = network.collect(outputs, batch, grid) if hasattr(network, "collect") else {}
    for name, values in _checked(network, collected, len(batch.facts)).items():
        kept = evaluation.collected.setdefault(name, {})
        kept.update(zip((facts.key for (facts, *_) in batch.facts), map(_plain, values), strict=True))


def _checked(network, collected, samples):
    """What collect gave. Raises ValueError where it is no mapping of file names to a value per sample."""
    what = f"{type(network).__name__}.collect"
    if not isinstance(collected, Mapping):
        raise InputError(f"{what} gave a {type(collected).__name__}; it is a mapping of names to a value per sample")
    for name, values in collected.items():
        if not (isinstance(name, str) and re.fullmatch(r"[\w-]{1,64}", name)) or name in RESERVED:
            raise InputError(f"{what}: {name!r} cannot be a file's name; letters, digits, _ and - can")
        if not hasattr(values, "__len__") or len(values) != samples:
            raise InputError(f"{what}: {name} has not one value for each of the {samples} samples")
    return collected


def _plain(value):
    """A value as JSON knows it: tensors and arrays as lists."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
