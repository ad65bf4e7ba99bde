"""A small network and its losses as one module, with inputs as a batch gives them: what is compiled and run on fake devices."""

import torch

from common.vox import VoxUtil
from train.loss import SimpleLoss, balanced_mse_loss
from train.model import Flips, Segnet

GRID = (16, 2, 24)
IMAGE = (64, 96)
CAMERAS = 3


def grid():
    """A new VoxUtil: what one test keeps in it, another never sees."""
    return VoxUtil(*GRID, scene_centroid=torch.tensor([[0.0, 1.0, 0.0]]), bounds=(-24, 24, -4, 4, -16, 16))


class SmallStep(torch.nn.Module):
    """Images, matrices, lidar points, labels -> loss; points become voxels inside."""

    def __init__(self, vox_util, dtype=None, **options):
        super().__init__()
        torch.manual_seed(0)
        options = {"latent_dim": 8, "encoder_type": "res50", "use_lidar": True, **options}
        self.network, self.vox_util, self.dtype = Segnet(*GRID, **options), vox_util, dtype
        self.seg_loss = SimpleLoss(2.13)

    def voxels(self, points, count):
        """(B,N,3) points in ref of which the first (B,) count -> (B,1,Z,Y,X)."""
        with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
            valid = torch.arange(points.shape[1], device=points.device) < count[:, None]
            return self.vox_util.voxelize_xyz(points, valid)

    def forward(self, images, pix_T_cams, cam0_T_cams, points, count, seg, center, offset, flips=None):
        device, dtype = images.device.type, self.dtype
        voxels = self.voxels(points, count) if self.network.use_lidar else None
        with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = self.network(images, pix_T_cams, cam0_T_cams, self.vox_util, voxels, flips=flips)
        _, _, seg_out, center_out, offset_out = (v.float() for v in outputs)
        loss = self.seg_loss(seg_out, seg, torch.ones_like(seg)) * torch.exp(-self.network.ce_weight)
        loss = loss + balanced_mse_loss(center_out, center) + (offset_out - offset).abs().mean()
        return loss + 0.5 * (self.network.ce_weight + self.network.center_weight + self.network.offset_weight)


def inputs(batch=2, points=50, seed=0):
    """Arguments of SmallStep on the CPU; the number of lidar points varies from batch to batch."""
    rng = torch.Generator().manual_seed(seed)
    pix_T_cams = torch.eye(4).repeat(batch, CAMERAS, 1, 1)
    pix_T_cams[..., 0, 0] = pix_T_cams[..., 1, 1] = 40.0
    pix_T_cams[..., 0, 2], pix_T_cams[..., 1, 2] = IMAGE[1] / 2, IMAGE[0] / 2
    cam0_T_cams = torch.eye(4).repeat(batch, CAMERAS, 1, 1)
    cam0_T_cams[..., :3, 3] = torch.randn((batch, CAMERAS, 3), generator=rng)
    return (
        torch.rand((batch, CAMERAS, 3, *IMAGE), generator=rng) - 0.5,
        pix_T_cams,
        cam0_T_cams,
        torch.randn((batch, points, 3), generator=rng) * 8,
        torch.randint(1, points + 1, (batch,), generator=rng),
        (torch.rand((batch, 1, GRID[0], GRID[2]), generator=rng) < 0.1).float(),
        torch.rand((batch, 1, GRID[0], GRID[2]), generator=rng),
        torch.randn((batch, 2, GRID[0], GRID[2]), generator=rng),
        Flips.of(torch.rand((batch, 2 + CAMERAS), generator=rng)),
    )
