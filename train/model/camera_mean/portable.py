"""The camera mean as gathers of whole tensors: for devices that have neither of the fused kernels."""

import torch

from common.vox import project, sampling_coordinate
from train.model.bev_flips import flip_where
from train.model.camera_mean.bilinear import corners
from train.model.camera_mean.reference import COUNT_FLOOR


def portable_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips=None, lenses=None):
    """As camera_mean; no size depends on what the cameras see. Deterministic where index_add is."""
    batch, cameras, channels, height, width = feats.shape
    shape = (vox_util.Z, vox_util.Y, vox_util.X)
    table = feats.permute(0, 1, 3, 4, 2).reshape(-1, channels)
    with torch.no_grad():
        rows, weights = _taps(pix_T_refs, cams_T_ref, vox_util, flips, (height, width), table.dtype, lenses)
        count = (weights != 0).any(-1).sum(1)
        weights = weights / (count.to(weights.dtype) + COUNT_FLOOR)[:, None, :, None]
    total = 0
    for s in range(cameras):
        for corner in range(4):
            taken = table.index_select(0, rows[:, s, :, corner].flatten())
            total = total + taken * weights[:, s, :, corner].reshape(-1, 1)
    return total.to(feats.dtype).view(batch, shape[0], shape[2], shape[1], channels).permute(0, 4, 1, 3, 2)


def _taps(pix_T_refs, cams_T_ref, vox_util, flips, feat_hw, dtype, lenses):
    """Rows of the table (B,S,Z*X*Y,4) int32 and weights, 0 where a camera does not see a voxel; voxels run Z, X, Y."""
    batch, cameras = pix_T_refs.shape[:2]
    height, width = feat_hw
    centers = vox_util.centers_ref(pix_T_refs.device)
    lenses = None if lenses is None else lenses.flatten(0, 1)
    seen = project(centers, pix_T_refs.flatten(0, 1), cams_T_ref.flatten(0, 1), feat_hw, lenses)
    x, y, valid = (v.view(batch, cameras, vox_util.Z, vox_util.Y, vox_util.X) for v in seen)
    if flips is not None:
        x, y, valid = (flip_where(flips.bev_z, flip_where(flips.bev_x, v, -1), -3) for v in (x, y, valid))
    x, y, valid = (v.transpose(-1, -2).flatten(2) for v in (x, y, valid))
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    x, y = (sampling_coordinate(v, size).to(precise) for v, size in ((x, width), (y, height)))
    columns, rows, weights = corners(x, y, feat_hw)
    if flips is not None:
        columns = torch.where(flips.image[:, :, None, None], width - 1 - columns, columns)
    image = torch.arange(batch * cameras, dtype=torch.int32, device=x.device).view(batch, cameras, 1, 1)
    rows = ((image * height + rows)[..., :, None] * width + columns[..., None, :]).flatten(-2)
    return rows, torch.where(valid[..., None, None], weights, 0).flatten(-2)
