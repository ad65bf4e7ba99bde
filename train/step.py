"""Network and losses as one module: what DistributedDataParallel wraps, so that every parameter is used inside it."""

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.data.order import FLIP_STREAM, sample_rng
from train.forward import run_model
from train.loss import SimpleLoss, over_ranks, own_cells, total_loss
from train.metrics import intersection_union
from train.model import Flips

POS_WEIGHT = 2.13
LOG_VARIANCES = ("ce_weight", "center_weight", "offset_weight")
FIGURES = ("total_loss", "ce_loss", "center_loss", "offset_loss", *LOG_VARIANCES)


class LossStep(nn.Module):
    """Batch -> (loss, (9,) float64 of FIGURES, intersection and union, logits (B,1,Z,X)); all but the loss detached.

    Args:
        model: Segnet. vox_util: VoxUtil. autocast: dtype of the network's arithmetic, None for float32.
        world: distributed.World over whose cells the masked means go in training; None for this process alone.
        seed: of the flips, which like all draws of a sample are a function of (seed, epoch, sample).
    """

    def __init__(self, model, vox_util, autocast=None, world=None, seed=0):
        super().__init__()
        self.model, self.vox_util, self.autocast = model, vox_util, autocast
        self.world, self.seed = world, seed
        self.shared = over_ranks(world) if world is not None else own_cells
        self.seg_loss = SimpleLoss(POS_WEIGHT)

    def forward(self, batch):
        with torch.autocast(batch.rots.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            outputs = run_model(self.model, batch, self.vox_util, self._flips(batch))
        outputs = tuple(o if o.dtype == torch.float64 else o.float() for o in outputs)
        denominator = self.shared if self.training else own_cells
        loss, terms = total_loss(self.model, outputs, batch, self.seg_loss, denominator)
        terms["total_loss"] = loss.detach()
        terms |= {name: getattr(self.model, name).detach() for name in LOG_VARIANCES}
        counts = intersection_union(outputs[2], batch.seg_bev[:, 0], batch.valid_bev[:, 0])
        figures = torch.cat([torch.stack([terms[name].double() for name in FIGURES]), counts])
        return loss, figures, outputs[2].detach()

    def _flips(self, batch):
        if not (self.training and self.model.rand_flip):
            return None
        each = 2 + batch.imgs.shape[2]
        draws = [sample_rng(self.seed, batch.epoch, sample, FLIP_STREAM).random(each) for sample in batch.indices]
        return Flips.of(torch.from_numpy(np.stack(draws)))


def over_processes(step):
    """The LossStep wrapped so that its gradients are averaged over the processes of its world; itself in one process."""
    if step.world is None or step.world.size == 1:
        return step
    # No loss reaches this head, as in the lineage. Said so, the gradients' exchange needs no search for unused parameters.
    step.model.decoder.feat_head.requires_grad_(False)
    return DistributedDataParallel(step)
