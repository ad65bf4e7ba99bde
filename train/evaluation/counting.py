"""Logits and label maps -> counts of every sample, on the device, from which all figures follow by adding up.

A cell belongs to one ring around the origin of the grid's frame, one truth and one bin of predicted probability. The histogram
over these three holds intersection, union, precision, recall and calibration at every threshold at once, and adds up exactly
over samples, scenes and ranks.

Shape legend: B batch, L label, R ring, P probability bin; Z, X rows and columns of the BEV grid.
"""

import torch

from train.evaluation.bins import BINS, RINGS_M


def ring_map(grid):
    """(Z,X) int64 number of each cell's ring: horizontal distance of its middle from the origin of the grid's frame.

    grid: VoxUtil; the result lies on the CPU.
    """
    z, x = torch.meshgrid(torch.arange(grid.Z), torch.arange(grid.X), indexing="ij")
    metres = grid.mem_to_ref(torch.stack([x, torch.zeros_like(x), z], -1).float())
    distance = (metres[..., 0] ** 2 + metres[..., 2] ** 2).sqrt()
    return torch.bucketize(distance, torch.tensor(RINGS_M), right=False)


def probability_bin(probability):
    """int64 bin of each probability. At threshold p / BINS exactly the bins from p on are predicted.

    A probability of exactly one half is not predicted at one half, as where Simple-BEV rounds the sigmoid.
    """
    return ((probability * BINS).ceil().long() - 1).clamp(0, BINS - 1)


def histograms(logits, labels, rings):
    """Count cells by label, ring, truth and predicted probability.

    Args:
        logits: (B,Z,X). labels: list of L (seg, valid) pairs, each (B,Z,X) in {0,1}. rings: (Z,X) of `ring_map`.
    Returns:
        (B,L,R,2,P) int64; cells that are not valid are nowhere.
    """
    bins = probability_bin(logits.float().sigmoid())
    total = (len(RINGS_M) + 1) * 2 * BINS
    out = []
    for seg, valid in labels:
        place = (rings * 2 + seg.long()) * BINS + bins
        place = torch.where(valid > 0, place, total).flatten(1)
        counts = torch.zeros((len(place), total + 1), dtype=torch.int64, device=place.device)
        counts.scatter_add_(1, place, torch.ones_like(place))
        out.append(counts[:, :-1].unflatten(1, (-1, 2, BINS)))
    return torch.stack(out, 1)


def box_cells(predicted, numbers, boxes):
    """Cells of every box, and how many of them are predicted.

    Args:
        predicted: (B,Z,X) bool. numbers: (B,Z,X) integer map of box number + 1, 0 where there is none. boxes: N, the most.
    Returns:
        (B,N,2) int64: predicted cells, cells. A box that others cover, or that lies outside the grid, has none.
    """
    numbers = numbers.long().flatten(1)
    predicted = predicted.long().flatten(1)
    out = torch.zeros((len(numbers), boxes + 1, 2), dtype=torch.int64, device=numbers.device)
    out[..., 0].scatter_add_(1, numbers, predicted)
    out[..., 1].scatter_add_(1, numbers, torch.ones_like(numbers))
    return out[:, 1:]
