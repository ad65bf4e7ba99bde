"""Rigid transforms, intrinsics and boxes, batched: torch tensors, and NumPy arrays where said.

`a_T_b` takes points from frame b to frame a.
"""

import numpy as np
import torch

from common import rigid

RIGID_TOLERANCE = 1e-5  # of a squared scale: what float32 matrices, multiplied, stay within by far


def rigid_inverse(a_T_b):
    """b_T_a of rigid (..., 4, 4), a tensor or an array, by transposing the rotation."""
    if not isinstance(a_T_b, torch.Tensor):
        return rigid.rigid_inverse(a_T_b)
    rotation_t = a_T_b[..., :3, :3].transpose(-1, -2)
    return _with_last_row(rotation_t, -(rotation_t @ a_T_b[..., :3, 3:]))


def similarity_inverse(a_T_b):
    """b_T_a of tensors (..., 4, 4) that turn, mirror, move and scale all axes alike.

    A scale that rounding alone sets apart from 1 is 1: of a rigid transform this is rigid_inverse, to the last bit.
    """
    rotation_t = a_T_b[..., :3, :3].transpose(-1, -2) / _squared_scale(a_T_b)[..., None, None]
    return _with_last_row(rotation_t, -(rotation_t @ a_T_b[..., :3, 3:]))


def _squared_scale(a_T_b):
    """(...) of similarities (..., 4, 4), tensors or arrays: the square of their scale, exactly 1 where they are rigid."""
    squared = (a_T_b[..., :3, 0] * a_T_b[..., :3, 0]).sum(-1)
    if isinstance(a_T_b, torch.Tensor):
        return torch.where((squared - 1).abs() < RIGID_TOLERANCE, 1.0, squared)
    return np.where(abs(squared - 1) < RIGID_TOLERANCE, np.ones_like(squared), squared)


def _with_last_row(rotation, translation):
    """(..., 3, 3) and (..., 3, 1) tensors -> (..., 4, 4); joined, since what fills a matrix in place cannot be exported."""
    upper = torch.cat([rotation, translation], -1)
    zeros = torch.zeros_like(upper[..., :1, :3])
    return torch.cat([upper, torch.cat([zeros, zeros[..., :1] + 1], -1)], -2)


def apply_4x4(a_T_b, xyz):
    """Points (..., N, 3) moved by (..., 4, 4); the last row of the matrix is not used."""
    return xyz @ a_T_b[..., :3, :3].transpose(-1, -2) + a_T_b[..., None, :3, 3]


def merge_rt(rotation, translation):
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    return _with_last_row(rotation, translation[..., None])


def scale_intrinsics(pix_T_cam, sx, sy):
    """(..., 4, 4) intrinsics for an image scaled by sx along columns and sy along rows."""
    # Filled on the device: a tensor made from a list would be sent there.
    rows = [torch.full((), v, dtype=pix_T_cam.dtype, device=pix_T_cam.device) for v in (sx, sy, 1.0, 1.0)]
    return pix_T_cam * torch.stack(rows)[:, None]


def cam0_T_cams(ego_T_cam):
    """(B, S, 4, 4) ego_T_cam -> (B, S, 4, 4) transforms from each camera to the one in slot 0."""
    return rigid_inverse(ego_T_cam[:, :1]) @ ego_T_cam


def transform_lrtlist(a_T_b, lrtlist):
    """Boxes (..., N, 19), lengths and b_T_box, moved to frame a by similarities (..., 4, 4); both tensors or both arrays.

    A scale goes into the lengths: a_T_box is rigid.
    """
    joined = torch.cat if isinstance(lrtlist, torch.Tensor) else np.concatenate
    a_T_box = a_T_b[..., None, :, :] @ lrtlist[..., 3:].reshape(*lrtlist.shape[:-1], 4, 4)
    scale = (_squared_scale(a_T_b) ** 0.5)[..., None, None]
    upper = joined([a_T_box[..., :3, :3] / scale[..., None], a_T_box[..., :3, 3:]], -1)
    a_T_box = joined([upper, a_T_box[..., 3:, :]], -2)
    return joined([lrtlist[..., :3] * scale, a_T_box.reshape(*lrtlist.shape[:-1], 16)], -1)
