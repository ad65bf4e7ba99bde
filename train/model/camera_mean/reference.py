"""The camera mean as plain grid sampling, one camera's volume at a time: the reference, and what exports can say."""

import torch
import torch.nn.functional as F

from train.model.bev_flips import flip_where

COUNT_FLOOR = 1e-6


class PlainMean(torch.autograd.Function):
    """Masked mean of unprojected features over cameras.

    A voxel's features count where they are not zero, as in Simple-BEV. Neither pass holds more than one camera's volume
    besides the result: the backward pass samples again.
    """

    @staticmethod
    def forward(ctx, feats, grids, valid, grid_shape):
        """feats (B,S,C,h,w), grids (B,S,Z*Y,X,2), valid (B,S,1,Z*Y,X) -> (B,C,Z,Y,X)."""
        total = feats.new_zeros((feats.shape[0], feats.shape[2], *grids.shape[2:4]), dtype=_precise(feats.dtype))
        count = torch.zeros_like(total)
        for s in range(feats.shape[1]):
            dtype = _precise(feats.dtype)
            values = F.grid_sample(feats[:, s].to(dtype), grids[:, s].to(dtype), align_corners=False) * valid[:, s]
            total += values
            count += values != 0
        count += COUNT_FLOOR
        ctx.save_for_backward(feats, grids, valid, count)
        return total.div_(count).unflatten(2, grid_shape[:2])

    @staticmethod
    def backward(ctx, grad):
        feats, grids, valid, count = ctx.saved_tensors
        grad = grad.flatten(2, 3) / count
        out = torch.empty_like(feats)
        for s in range(feats.shape[1]):
            # Bilinear, zeros outside, corners not aligned; of the features alone.
            out[:, s], _ = torch.ops.aten.grid_sampler_2d_backward(
                grad * valid[:, s], feats[:, s].to(grad.dtype), grids[:, s].to(grad.dtype), 0, 0, False, [True, False]
            )
        return out, None, None, None


def _precise(dtype):
    """float32 at least: half precision would lose the mean."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips=None, lenses=None):
    """As camera_mean; (B,C,Z,Y,X) float32, float64 for float64 features."""
    batch, cameras = feats.shape[:2]
    with torch.no_grad():
        lenses = None if lenses is None else lenses.flatten(0, 1)
        geometry = pix_T_refs.flatten(0, 1), cams_T_ref.flatten(0, 1)
        grids, valid = vox_util.sampling_grid(*geometry, feats.shape[-2:], lenses)
        grids = grids.unflatten(0, (batch, cameras))
        valid = valid.flatten(2, 3).unflatten(0, (batch, cameras))
    if flips is not None:
        feats = flip_where(flips.image, feats, -1)
    volume = PlainMean.apply(feats, grids, valid, (vox_util.Z, vox_util.Y, vox_util.X))
    if flips is not None:
        volume = flip_where(flips.bev_z, flip_where(flips.bev_x, volume, -1), -3)
    return volume
