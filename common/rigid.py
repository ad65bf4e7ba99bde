"""Rigid transforms as NumPy arrays, for what does without torch. `a_T_b` takes points from frame b to frame a."""

import numpy as np


def rigid_inverse(a_T_b):
    """b_T_a of rigid arrays (..., 4, 4), by transposing the rotation."""
    rotation_t = a_T_b[..., :3, :3].swapaxes(-1, -2)
    out = np.zeros_like(a_T_b)
    out[..., :3, :3] = rotation_t
    # The order of this sum is in the last bit of every shard that there is; a matrix product would take another.
    out[..., :3, 3:] = -np.einsum("...ij,...jk->...ik", rotation_t, a_T_b[..., :3, 3:])
    out[..., 3, 3] = 1.0
    return out
