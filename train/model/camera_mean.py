"""Image features -> their mean over the cameras that see each voxel, one camera's volume at a time."""

import torch
import torch.nn.functional as F

COUNT_FLOOR = 1e-6


class CameraMean(torch.autograd.Function):
    """Masked mean of unprojected features over cameras.

    A voxel's features count where they are not zero, as in the lineage. Neither pass holds more than one camera's volume
    besides the result: the backward pass samples again.
    """

    @staticmethod
    def forward(ctx, feats, grids, valid, grid_shape):
        """feats (B,S,C,h,w), grids (B,S,Z*Y,X,2), valid (B,S,1,Z*Y,X) -> (B,C,Z,Y,X)."""
        batch, cameras, channels = feats.shape[:3]
        total = feats.new_zeros((batch, channels, *grids.shape[2:4]), dtype=_precise(feats.dtype))
        count = torch.zeros_like(total)
        for s in range(cameras):
            values = _sample(feats[:, s], grids[:, s]) * valid[:, s]
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
            with torch.enable_grad():
                feat = feats[:, s].detach().requires_grad_()
                values = _sample(feat, grids[:, s])
            (out[:, s],) = torch.autograd.grad(values, feat, grad * valid[:, s])
        return out, None, None, None


def _sample(feat, grid):
    dtype = _precise(feat.dtype)
    return F.grid_sample(feat.to(dtype), grid.to(dtype), align_corners=False)


def _precise(dtype):
    """float32 at least: half precision would lose the mean."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def camera_mean(feats, pix_T_refs, cams_T_ref, vox_util):
    """Mean over cameras of features unprojected into the grid.

    Args:
        feats: (B,S,C,h,w). pix_T_refs: (B,S,4,4), pixels of feats from ref. cams_T_ref: (B,S,4,4).
    Returns:
        (B,C,Z,Y,X) float32 (float64 for float64 features).
    """
    batch, cameras = feats.shape[:2]
    with torch.no_grad():
        grids, valid = vox_util.sampling_grid(pix_T_refs.flatten(0, 1), cams_T_ref.flatten(0, 1), feats.shape[-2:])
        grids, valid = (
            grids.unflatten(0, (batch, cameras)),
            valid.flatten(2, 3).unflatten(0, (batch, cameras)),
        )
    with torch.autocast(feats.device.type, enabled=False):
        return CameraMean.apply(feats, grids, valid, (vox_util.Z, vox_util.Y, vox_util.X))
