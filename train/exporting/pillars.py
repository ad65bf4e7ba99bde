"""Pillars without a reduction while scattering: points come grouped, sorted by their columns."""

import torch
import torch.nn.functional as F
from torch import nn

from train.model.pillars import PillarNet

STEPS = 17  # columns of up to 2**17 points


class GroupedPillars(nn.Module):
    """As PillarNet, of points that are sorted by cell.

    The greatest of what lies from each point to the end of its cell, found in steps of 1, 2, 4, …, is at a cell's first point
    the greatest of the cell; that alone is written.
    """

    def __init__(self, net):
        super().__init__()
        self.points, self.zx = net.points, net.zx

    def forward(self, cells, features):
        """cells (B,N) ascending, Z * X for points of none; features (B,N,F). (B,C,Z,X)."""
        rows, columns = self.zx
        learned = self.points(features)
        for step in range(STEPS):
            # Nothing is below zero, so what lies in another cell may be taken for zero.
            later = F.pad(learned, (0, 0, 0, 1 << step))[:, 1 << step :]
            same = F.pad(cells, (0, 1 << step), value=-1)[:, 1 << step :] == cells
            learned = torch.maximum(learned, torch.where(same[..., None], later, 0.0))
        is_first = F.pad(cells, (1, 0), value=-1)[:, :-1] != cells
        place = torch.where(is_first, cells, rows * columns)[..., None].expand(-1, -1, learned.shape[2])
        flat = learned.new_zeros(learned.shape[0], rows * columns + 1, learned.shape[2]).scatter(1, place, learned)
        return flat[:, :-1].transpose(1, 2).unflatten(2, (rows, columns))


def sorted_by_cell(tensors):
    """Tensors with each sensor's cells (B,N) and features (B,N,F) in the order that GroupedPillars takes; the rest as it is."""
    out = dict(tensors)
    for name in [name for name in tensors if name.endswith("_cells")]:
        cells, order = tensors[name].sort(dim=1, stable=True)
        features = name.replace("_cells", "_features")
        out[name] = cells
        out[features] = tensors[features].gather(1, order[..., None].expand_as(tensors[features]))
    return out


def group_pillars(network):
    """Put GroupedPillars in the place of every PillarNet of a network."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, PillarNet):
                module.add_module(name, GroupedPillars(child))
