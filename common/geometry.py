"""Rigid transforms, intrinsics and boxes, batched: torch tensors, and NumPy arrays where said.

`a_T_b` takes points from frame b to frame a.
"""

import numpy as np


def rigid_inverse(a_T_b):
    """b_T_a of rigid (..., 4, 4), a tensor or an array, by transposing the rotation."""
    rotation_t = a_T_b[..., :3, :3].swapaxes(-1, -2)
    if isinstance(a_T_b, np.ndarray):
        # The order of this sum is in the last bit of every shard that there is; a matrix product would take another.
        out, moved = np.zeros_like(a_T_b), np.einsum("...ij,...jk->...ik", rotation_t, a_T_b[..., :3, 3:])
    else:
        out, moved = a_T_b.new_zeros(a_T_b.shape), rotation_t @ a_T_b[..., :3, 3:]
    out[..., :3, :3] = rotation_t
    out[..., :3, 3:] = -moved
    out[..., 3, 3] = 1.0
    return out


def apply_4x4(a_T_b, xyz):
    """Points (..., N, 3) moved by (..., 4, 4); the last row of the matrix is not used."""
    return xyz @ a_T_b[..., :3, :3].transpose(-1, -2) + a_T_b[..., None, :3, 3]


def merge_rt(rotation, translation):
    """(..., 3, 3) and (..., 3) -> (..., 4, 4)."""
    out = rotation.new_zeros((*rotation.shape[:-2], 4, 4))
    out[..., :3, :3] = rotation
    out[..., :3, 3] = translation
    out[..., 3, 3] = 1.0
    return out


def scale_intrinsics(pix_T_cam, sx, sy):
    """(..., 4, 4) intrinsics for an image scaled by sx along columns and sy along rows."""
    scale = pix_T_cam.new_ones(4)
    scale[0], scale[1] = sx, sy
    return pix_T_cam * scale[:, None]


def cam0_T_cams(ego_T_cam):
    """(B, S, 4, 4) ego_T_cam -> (B, S, 4, 4) transforms from each camera to the one in slot 0."""
    return rigid_inverse(ego_T_cam[:, :1]) @ ego_T_cam


def transform_lrtlist(a_T_b, lrtlist):
    """Boxes (..., N, 19), lengths and b_T_box, moved to frame a by (..., 4, 4); both tensors or both arrays."""
    a_T_box = a_T_b[..., None, :, :] @ lrtlist[..., 3:].reshape(*lrtlist.shape[:-1], 4, 4)
    parts = [lrtlist[..., :3], a_T_box.reshape(*lrtlist.shape[:-1], 16)]
    if isinstance(lrtlist, np.ndarray):
        return np.concatenate(parts, -1)
    import torch  # here, since preprocessing, which has arrays alone, starts faster without

    return torch.cat(parts, -1)
