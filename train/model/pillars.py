"""Pillars: cameras, and lidar and radar as points whose features are learned, seen from above; after PointPillars.

Simple-BEV's encoder, compressor and decoder, with learned features of the points in each column of the grid in place of its
voxels that are full or empty (Lang et al., "PointPillars: Fast Encoders for Object Detection from Point Clouds", CVPR 2019).
networks.md beside this file says what is equal to the paper and what is not.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from common.errors import InputError
from train.model.camera_mean import UNPROJECTIONS
from train.model.encoders import begin
from train.model.interface import Needs
from train.model.points import lidar_points, radar_points
from train.model.segnet import Geometry
from train.model.simple_bev import SimpleBev

FIXED = 1 << 20  # of a coordinate within its cell: sums of whole numbers are the same in any order
PLACE_FEATURES = 7  # see grouped
ALONG_X, ALONG_Z = (0, 3), (2, 5)  # those of them that a flip along an axis mirrors
FEATURES = {"lidar": 3, "radar": 16}
# What nuScenes' radar fields after the position, and the lag, are divided by, so that they are near 1.
RADAR_SCALES = (8, 128, 32, 16, 16, 16, 16, 1, 4, 32, 32, 16, 8, 32, 32, 0.5)


def grouped(points, grid):
    """Points by the column of the grid that they lie in, and what is known of each besides its measurements.

    Args:
        points: Points in the grid's frame. grid: VoxUtil.
    Returns:
        cells (B,N) int64: number z * X + x of each point's column; Z * X for those that lie in none. features (B,N,7+F)
        float32: place from the middle of the column along x, y, z (in cells, y in heights of the grid), the same from the mean
        of the column's points, distance from ref's origin over that of the grid's farthest side, and the points' own.
    """
    mem = grid.ref_to_mem(points.xyz)
    columns = torch.stack([mem[..., 0], mem[..., 2]], -1).round()
    inside = points.valid & grid.get_inbounds(mem, already_mem=True)
    column = torch.where(inside[..., None], columns, 0.0)
    x, z = column.long().unbind(-1)
    cells = torch.where(inside, z * grid.X + x, grid.Z * grid.X)
    middle = torch.stack([column[..., 0], torch.full_like(column[..., 0], (grid.Y - 1) / 2), column[..., 1]], -1)
    size = mem.new_ones(3)
    size = torch.stack([size[0], size[1] * grid.Y, size[2]])
    off = torch.where(inside[..., None], (mem - middle) / size, 0.0)
    ends = [(end - 0.5 - grid.shift[a]) / grid.scale[a] for a, n in ((0, grid.X), (2, grid.Z)) for end in (0, n)]
    far = max(map(abs, ends))
    x_m, _, z_m = points.xyz.unbind(-1)
    away = torch.where(inside, (x_m * x_m + z_m * z_m).sqrt() / far, 0.0)
    features = torch.where(inside[..., None], points.features, 0.0)
    return cells, torch.cat([off, off - _means(off, cells, grid), away[..., None], features], -1)


def _means(off, cells, grid):
    """(B,N,3): the mean of each point's column. Summed in whole numbers, so that the order of points is nothing to it."""
    index = cells[..., None].expand(-1, -1, 3)
    shape = off.shape[0], grid.Z * grid.X + 1, 3
    sums = torch.zeros(shape, dtype=torch.int64, device=off.device).scatter_add(1, index, (off * FIXED).round().long())
    count = torch.zeros(shape, dtype=torch.int64, device=off.device).scatter_add(1, index, torch.ones_like(index))
    return (sums.double() / (FIXED * count.clamp(min=1))).float().gather(1, index)


def mirrored(features, flips):
    """Features of grouped points as the flips of the map that they make (Flips on their device) mirror them."""
    signs = []
    for channel in range(features.shape[2]):
        sign = features.new_ones(features.shape[0])
        for which, channels in ((flips.bev_x, ALONG_X), (flips.bev_z, ALONG_Z)):
            sign = torch.where(which, -sign, sign) if channel in channels else sign
        signs.append(sign)
    return features * torch.stack(signs, -1)[:, None]


class PillarNet(nn.Module):
    """Grouped points -> a map (B,C,Z,X): of each column the greatest of what its points' features become; zero where none lies.

    One linear layer, as in the paper. What follows it normalises each point by itself, not over the batch, whose padding would
    count, and whose statistics each process would have its own.
    """

    def __init__(self, features, channels, zx):
        super().__init__()
        self.zx = zx
        self.points = nn.Sequential(nn.Linear(features, channels, bias=False), nn.LayerNorm(channels), nn.ReLU())

    def forward(self, cells, features):
        """cells (B,N), features (B,N,F) as `grouped` gives them."""
        rows, columns = self.zx
        learned = self.points(features)
        flat = learned.new_zeros(learned.shape[0], rows * columns + 1, learned.shape[2])
        index = cells[..., None].expand(-1, -1, learned.shape[2])
        # Nothing is below zero, so that a column without points stays at it.
        flat = flat.scatter_reduce(1, index, learned, "amax")
        return flat[:, :-1].transpose(1, 2).unflatten(2, (rows, columns))


class Pillars(SimpleBev):
    """Segnet with maps of pillars beside the cameras' features. sensors: of "lidar" and "radar". channels: of each map."""

    decided_by = "--encoder_type, or other sensors or channels"

    def __init__(self, Z, Y, X, vox_util=None, *, sensors=("lidar", "radar"), channels=32, **options):
        super().__init__(Z, Y, X, vox_util, beside=channels * len(sensors), **options)
        self.sensors = tuple(sensors)
        self.pillars = nn.ModuleDict(
            {s: PillarNet(PLACE_FEATURES + FEATURES[s], channels, (Z, X)) for s in self.sensors}
        )
        taken = {sensor: "points" if sensor in self.sensors else False for sensor in FEATURES}
        self.needs = Needs(**taken, lenses=True, past=self.past, past_points=not self.past, remembers=self.past > 0)
        self.register_buffer("radar_scales", torch.tensor(RADAR_SCALES, dtype=torch.float32), persistent=False)

    def others(self, batch, grid):
        """lidar_cells, lidar_features, radar_cells, radar_features of the sensors, as `grouped` gives them."""
        out = {}
        with torch.no_grad(), torch.autocast(batch.rots.device.type, enabled=False):
            for sensor in self.sensors:
                points = lidar_points(batch) if sensor == "lidar" else radar_points(batch)
                if sensor == "radar":
                    points = points._replace(features=points.features / self.radar_scales)
                out[f"{sensor}_cells"], out[f"{sensor}_features"] = grouped(points, grid)
        return out

    def infer(self, images, pix_T_cams, ref_T_cams, *, lenses=None, grid=None, flips=None, **others):
        """As SimpleBev's; others: what `others` gives, points that were grouped before, and the past."""
        flips, maps = self._flips(flips, images), []
        for sensor, net in self.pillars.items():
            features = others[f"{sensor}_features"]
            maps.append(net(others[f"{sensor}_cells"], features if flips is None else mirrored(features, flips)))
        past = {name: value for name, value in others.items() if name.startswith("past_")}
        return self._maps(images, Geometry(pix_T_cams, ref_T_cams, lenses), grid, flips, past, maps=torch.cat(maps, 1))


@dataclass(frozen=True)
class OwnOptions:
    """What --model_args may say; the rest are options of the command line."""

    sensors: tuple[Literal["lidar", "radar"], ...] = field(
        default=("lidar", "radar"), metadata={"help": "whose points it takes beside the cameras"}
    )
    channels: int = field(default=32, metadata={"help": "learned features of a pillar, for each sensor"})
    unprojection: Literal[UNPROJECTIONS] = field(default="fused", metadata={"help": "as simple_bev's"})

    def __post_init__(self):
        if not self.sensors or len(set(self.sensors)) != len(self.sensors):
            raise InputError("sensors are lidar, radar or both; without any take --model simple_bev")
        if self.channels < 1:
            raise InputError("channels is at least 1")


def build(options, grid):
    """Pillars of the options, weights from torch's generator."""
    own = options.model_args
    network = Pillars(
        grid.Z,
        grid.Y,
        grid.X,
        grid,
        sensors=own.sensors,
        channels=own.channels,
        rand_flip=options.rand_flip,
        latent_dim=options.latent_dim,
        encoder_type=options.encoder_type,
        unprojection=own.unprojection,
        classes=len(options.classes) or 1,
        past=options.past,
    )
    begin(network.encoder, options)
    return network


build.options_class = OwnOptions
