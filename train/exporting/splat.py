"""Lift-Splat-Shoot's pooling for one calibration: by Gather, over constant tables, in the order of cells.

Cells are grouped by how many points lie in them, up to 1, 2, 4, 8, …, and a group's table is as wide as that: padding at most
doubles what is gathered, and no cell's sum depends on another's, as with a cumulated sum it would.
"""

import torch
import torch.nn.functional as F
from torch import nn

from train.processes.ranks import say

LARGE = 200 << 20  # bytes of tables, over which is said so


class GatheredSplat(nn.Module):
    """Shares of depth (B,S,D,h,w) and features (B,S,C,h,w) -> sums (B,C,X,Y) in each cell, as LiftSplatShoot.splat.

    Args:
        cells: (S,D,h,w) int64 of each point, X * Y for one that lies in none. shape: X, Y.
    """

    def __init__(self, cells, shape):
        super().__init__()
        self.shape = shape
        count, flat = shape[0] * shape[1], cells.permute(0, 2, 3, 1).reshape(-1)  # a pixel's depths side by side
        depths, points = cells.shape[1], flat.numel()
        order = flat.argsort(stable=True)
        sizes = torch.bincount(flat, minlength=count + 1)[:count]
        starts, place, rank = sizes.cumsum(0) - sizes, torch.zeros(count, dtype=torch.int64), 1
        self.widths = []
        for width in _widths(sizes):
            own = ((sizes > width // 2) & (sizes <= width)).nonzero()[:, 0]
            slot = torch.arange(width)
            table = order[(starts[own, None] + slot).clamp(max=points - 1)]
            table = torch.where(slot < sizes[own, None], table, points)  # the last one has no share
            self.register_buffer(f"points_{width}", table)
            self.register_buffer(f"pixels_{width}", torch.where(table < points, table // depths, 0))
            place[own] = rank + torch.arange(len(own))
            rank += len(own)
            self.widths.append(width)
        self.register_buffer("place", place)  # 0: of a cell without points
        size = sum(buffer.nbytes for buffer in self.buffers())
        if size > LARGE:
            say(
                f"note: the tables of the points' cells take {size >> 20} MB of the export; fewer depths (depth_m) take less"
            )

    def forward(self, depth, context):
        shares = F.pad(depth.float().permute(0, 1, 3, 4, 2).flatten(1), (0, 1))
        features = context.float().permute(0, 1, 3, 4, 2).flatten(1, 3)
        sums = [features[:, :1] * 0]
        for width in self.widths:
            points, pixels = getattr(self, f"points_{width}"), getattr(self, f"pixels_{width}")
            own = shares.index_select(1, points.flatten()).unflatten(1, points.shape)
            seen = features.index_select(1, pixels.flatten()).unflatten(1, pixels.shape)
            sums.append((own[:, :, None] @ seen)[:, :, 0])
        return torch.cat(sums, 1).index_select(1, self.place).unflatten(1, self.shape).permute(0, 3, 1, 2)


def _widths(sizes):
    """1, 2, 4, … of those that hold some cell."""
    width, most = 1, int(sizes.max())
    while width // 2 < most:
        if bool(((sizes > width // 2) & (sizes <= width)).any()):
            yield width
        width *= 2
