"""A small network and its losses as one module, with batches as the loader gives them: what is compiled and faked."""

from types import SimpleNamespace

import torch
from torchvision.models.resnet import Bottleneck, ResNet

from common.geometry import merge_rt, rigid_inverse
from common.vox import VoxUtil
from train.loss import Normaliser
from train.model import Flips
from train.model.encoders import ResNetEncoder
from train.model.forward import run_on_voxels, with_voxels
from train.model.simple_bev import SimpleBev

GRID = (16, 2, 24)
IMAGE = (64, 96)
CAMERAS = 3
RADAR_ROWS = 19


def grid():
    """A new VoxUtil: what one test keeps in it, another never sees."""
    return VoxUtil(*GRID, scene_centroid=[[0.0, 1.0, 0.0]], bounds=(-24, 24, -4, 4, -16, 16))


class SmallStep(torch.nn.Module):
    """Batch -> loss, as the training step has it: points become voxels inside. dtype: of the network's arithmetic."""

    def __init__(self, vox_util, dtype=None, encoder_type="res50", **options):
        super().__init__()
        torch.manual_seed(0)
        options = {"latent_dim": 8, "use_lidar": True, **options}
        self.network, self.vox_util, self.dtype = (
            SimpleBev(*GRID, encoder_type=encoder_type, **options),
            vox_util,
            dtype,
        )
        if encoder_type == "res50":  # with one block per level: the same code, a quarter of the time
            self.network.encoder = ResNetEncoder(ResNet(Bottleneck, [1, 1, 1, 1]), options["latent_dim"])

    def forward(self, batch, flips=None):
        return self.scored(with_voxels(batch, self.network.needs, self.vox_util), flips)

    def scored(self, batch, flips=None):
        """The loss of a batch that has its voxels: what --compile compiles."""
        outputs = run_on_voxels(self.network, batch, self.vox_util, flips, self.dtype)
        return self.network.loss(outputs, batch, Normaliser())[0]


def inputs(batch=2, points=50, seed=0):
    """(batch, Flips) on the CPU; `points` is the longest cloud of the batch, which varies from batch to batch."""
    rng = torch.Generator().manual_seed(seed)
    intrins = torch.eye(4).repeat(batch, 1, CAMERAS, 1, 1)
    intrins[..., 0, 0] = intrins[..., 1, 1] = 40.0
    intrins[..., 0, 2], intrins[..., 1, 2] = IMAGE[1] / 2, IMAGE[0] / 2
    plane = (batch, 1, 1, GRID[0], GRID[2])
    counts = torch.randint(1, points + 1, (2, batch, 1), generator=rng)
    batch = SimpleNamespace(
        imgs=torch.rand((batch, 1, CAMERAS, 3, *IMAGE), generator=rng),
        intrins=intrins,
        rots=torch.eye(3).repeat(batch, 1, CAMERAS, 1, 1),
        trans=torch.randn((batch, 1, CAMERAS, 3), generator=rng),
        lidar_data=torch.randn((batch, 1, 3, points), generator=rng) * 8,
        radar_data=torch.randn((batch, 1, RADAR_ROWS, points), generator=rng) * 8,
        num_lidar=counts[0],
        num_radar=counts[1],
        seg_bev=(torch.rand(plane, generator=rng) < 0.1).float(),
        valid_bev=(torch.rand(plane, generator=rng) < 0.9).float(),
        center_bev=torch.rand(plane, generator=rng),
        offset_bev=torch.randn((batch, 1, 2, GRID[0], GRID[2]), generator=rng),
        true_times=False,
    )
    batch.ref_T_ego = rigid_inverse(merge_rt(batch.rots[:, :, 0], batch.trans[:, :, 0]))
    return batch, Flips.of(torch.rand((len(batch.imgs), 2 + CAMERAS), generator=rng))
