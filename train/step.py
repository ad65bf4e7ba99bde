"""Network and losses as one module: what DistributedDataParallel wraps, so that every parameter is used inside it."""

import numpy as np
import torch
from torch import nn

from common.errors import InputError
from train.data.order import FLIP_STREAM, sample_rng
from train.loss import Normaliser, default_loss
from train.metrics import Segmentation, Sums, merged, metrics_of, read
from train.model.float32 import in_float32
from train.model.forward import run_on_voxels, with_voxels, without_gradients
from train.model.interface import Flips, loss_of, takes_flips
from train.model.memory import begin

TOTAL = "total_loss"
RESERVED = (TOTAL, "time_per_batch", "time_per_el")  # figures of the trainer's own


class LossStep(nn.Module):
    """Batch -> (loss, figures, outputs); all but the loss detached.

    The loss and its terms are the network's own where it has a `loss`, else the benchmark's of the outputs there are.
    figures (n,) float64: those that `names` lists, the total first, then the counts of metrics that are sums. Other metrics are
    counted in evaluation alone, and kept in `kept`; `scores` are their figures of the last validation.

    Args:
        network: see train/model/README.md. grid: VoxUtil. autocast: dtype of the network's arithmetic, None for float32.
        world: distributed.World over whose cells the masked means go in training; None for this process alone.
        seed: of the flips, which like all augmentation are a function of (seed, epoch, sample).
        rand_flip: flip in training, where the network takes flips.
    """

    def __init__(self, network, grid, autocast=None, world=None, seed=0, rand_flip=True):
        super().__init__()
        if autocast is not None:
            in_float32(network)
        self.network, self.grid, self.autocast = network, grid, autocast
        self.world, self.seed = world, seed
        self.flips = rand_flip and takes_flips(network)
        self.loss = loss_of(network, default_loss, grid)
        self._names = {}
        self.kept, self.scores, self._sums = (), {}, ()

    def names(self, training):
        """Names of the figures but for the counts, of training or evaluation; empty before the first batch."""
        return self._names.get(training, ())

    def learn_names(self, training, names):
        """Take the names of the figures from another rank, where this one has had no batch yet."""
        self._names.setdefault(training, names)

    def compile_parts(self):
        """Compile network and losses, as one graph where the network allows it; not the voxels, since clouds differ in length.

        Of several processes the network alone: their losses exchange counts in between.
        """
        if self.world is None or self.world.size == 1:
            self._scored = torch.compile(self._scored)
        else:
            self.network.compile()

    def forward(self, batch):
        begin(self.network, batch)
        batch = with_voxels(batch, self.network.needs, self.grid)
        loss, terms, outputs = self._scored(batch, self._flips(batch))
        self._check(loss, terms)
        figures = [loss, *(torch.as_tensor(value, device=loss.device) for value in terms.values())]
        figures = torch.stack([value.detach().double().reshape(()) for value in figures])
        figures = torch.cat([figures, *self._counted(outputs, batch)])
        return loss, figures, {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in outputs.items()}

    def _scored(self, batch, flips):
        outputs = run_on_voxels(self.network, batch, self.grid, flips, self.autocast)
        normaliser = Normaliser(self.world if self.training else None)
        with torch.autocast(batch.rots.device.type, enabled=False):
            loss, terms = self.loss(outputs, batch, normaliser)
        return loss, terms, outputs

    def _counted(self, outputs, batch):
        """Counts of this batch, of each metric that is sums; in evaluation the others are updated."""
        found = [Segmentation()] if "seg" in outputs else []
        found += metrics_of(self.network)
        self._sums = tuple(metric for metric in found if isinstance(metric, Sums))
        if not self.training:
            self.kept = self.kept or tuple(metric for metric in found if not isinstance(metric, Sums))
        with torch.no_grad():
            for metric in self._sums if self.training else self._sums + self.kept:
                metric.update(outputs, batch)
        return [metric.counts for metric in self._sums]

    def read(self, counts):
        """Name -> Score of the metrics with these counts, as `split` gives them, summed over any batches."""
        parts = counts.split([len(metric.counts) for metric in self._sums])
        return read(metric.of(part) for metric, part in zip(self._sums, parts, strict=True))

    def higher_is_better(self, name):
        """Whether a higher value of a figure is better, as its metric says; of what is no metric's, a loss, a lower one is."""
        scores = read(self._sums) | self.scores
        return name in scores and scores[name].higher_is_better

    def split(self, figures, training):
        """(dict of loss and terms, (n,) counts of metrics) of a vector of figures of training or evaluation."""
        names = self.names(training)
        return dict(zip(names, figures[: len(names)].tolist(), strict=True)), figures[len(names) :]

    def _check(self, loss, terms):
        names = self._names.setdefault(self.training, (TOTAL, *terms))
        if taken := [name for name in terms if name in RESERVED]:
            raise InputError(
                f"a term of the loss is named {taken[0]}, which is a figure of the trainer's; name it otherwise"
            )
        if names != (TOTAL, *terms):
            raise InputError(f"the loss gave {', '.join(terms)}; before it were {', '.join(names[1:])}; they must stay")
        if loss.dim():
            raise InputError(f"the loss is {tuple(loss.shape)}; it is a scalar, and its terms are")
        for name, value in terms.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1:
                raise InputError(f"the loss's term {name} is {tuple(value.shape)}; it is a scalar")

    def _flips(self, batch):
        if not (self.training and self.flips):
            return None
        each = 2 + batch.rots.shape[2]
        draws = [sample_rng(self.seed, batch.epoch, sample, FLIP_STREAM).random(each) for sample in batch.indices]
        return Flips.of(torch.from_numpy(np.stack(draws))).to(batch.rots.device)


def validate(step, batches, world):
    """Means of a LossStep's figures over batches, and its counts summed over all samples, of all ranks.

    Args:
        step: LossStep; it is left in evaluation mode. batches: iterable; None where this rank has no share of one.
        world: distributed.World; every rank calls this.
    Returns:
        (dict of means, and of the figures of metrics that are no sums; (n,) float64 counts on the CPU, which step.read reads;
        the last batch and its outputs or None).
    """
    sums = seen = None
    step.kept = ()
    for batch, (_, figures, outputs) in without_gradients(step, step, batches):
        seen = batch, outputs
        figures = torch.cat([figures, figures.new_ones(1)])
        sums = figures if sums is None else sums + figures
    # A rank may have had no batch at all: it learns from the others how many figures there are, and of what.
    length = world.any(0 if sums is None else len(sums))
    if not length:
        raise InputError("no sample to evaluate")
    if sums is None:
        sums = torch.zeros(length, dtype=torch.float64, device=world.device)
    sums = world.sum(sums).cpu()
    step.learn_names(False, next(filter(None, world.gather(step.names(False)))))
    means, _ = step.split(sums[:-1] / sums[-1], training=False)
    step.scores = _kept_of_all(step, world)
    return means | {name: score.value for name, score in step.scores.items()}, sums[len(means) : -1], seen


def _kept_of_all(step, world):
    """Figures of the metrics that are no sums, of all ranks."""
    if getattr(step.network, "metrics", None) is None:
        return {}
    return read(merged(world.gather(step.kept)))
