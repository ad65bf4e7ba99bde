"""A network of two layers that takes cameras, lidar and radar, for what is not about networks: an update costs next to nothing.

It has what a checkpoint must hold and a run that goes on must have again: weights, buffers that change in training, flips,
random draws of its own.
"""

import time

import torch
from torch import nn

from train.model import Needs
from train.model.bev_flips import flip_where


class TwoLayers(nn.Module):
    """Heads for the default losses from the points in each cell and the images' mean colours."""

    def __init__(self, options, grid):
        super().__init__()
        self.needs = Needs()  # points as voxels, where the options ask for points
        channels = 3 + grid.Y * (options.use_lidar + options.use_radar)
        # Centred in evaluation, too, after an update or two: some cells lie above the threshold, others under it.
        self.inner, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.9)
        self.heads = nn.Conv2d(4, 4, 1, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, batch, grid, flips=None):
        images = batch.imgs[:, 0]
        if flips is not None:
            images = torch.where(flips.image[:, :, None, None, None], images.flip(-1), images)
        colours = images[..., : images.shape[-1] // 2].mean((1, 3, 4))  # of the left halves, which a flip changes
        cells = [colours[:, :, None, None].expand(-1, -1, grid.Z, grid.X)]
        cells += [v[:, 0, 0].transpose(1, 2) for v in (batch.lidar_voxels, batch.radar_voxels) if v is not None]
        maps = torch.cat(cells, 1)
        if flips is not None:
            maps = flip_where(flips.bev_z, flip_where(flips.bev_x, maps, -1), -2)
        maps = self.heads(self.dropout(self.norm(self.inner(maps)).tanh()))
        if flips is not None:
            maps = flip_where(flips.bev_z, flip_where(flips.bev_x, maps, -1), -2)
        return {"seg": maps[:, :1], "center": maps[:, 1:2].sigmoid(), "offset": maps[:, 2:]}


class Unhurried(TwoLayers):
    """Rests in training, so that what befalls a run finds it under way on a fast machine, too."""

    def forward(self, batch, grid, flips=None):
        if self.training:
            time.sleep(0.1)
        return super().forward(batch, grid, flips)


class Heavy(TwoLayers):
    """With 12 MB beside its weights, for disks that get full and files that are damaged."""

    def __init__(self, options, grid):
        super().__init__(options, grid)
        self.register_buffer("ballast", torch.zeros(3_000_000))
