"""Rigid transforms in float64 NumPy, as nuscenes-devkit computes them."""

import numpy as np


def rotation_matrix(quaternion_wxyz):
    """(..., 4) quaternions w, x, y, z of any length > 0 -> (..., 3, 3) rotation matrices."""
    q = np.asarray(quaternion_wxyz, np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def quaternion_of(rotation):
    """(4,) quaternion w, x, y, z of a (3, 3) rotation matrix, to the bit as pyquaternion has it.

    Of the four ways to read it off the matrix, that one is taken in which nothing is divided by a small number: Day,
    "Converting a Rotation Matrix to a Quaternion", 2015.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = np.asarray(rotation, np.float64)
    if zz < 0:
        if xx > yy:
            square = 1 + xx - yy - zz
            parts = [zy - yz, square, yx + xy, xz + zx]
        else:
            square = 1 - xx + yy - zz
            parts = [xz - zx, yx + xy, square, zy + yz]
    elif xx < -yy:
        square = 1 - xx - yy + zz
        parts = [yx - xy, xz + zx, zy + yz, square]
    else:
        square = 1 + xx + yy + zz
        parts = [square, zy - yz, xz - zx, yx - xy]
    return np.array(parts) * (0.5 / np.sqrt(square))


def transform(quaternion_wxyz, translation):
    """a_T_b (..., 4, 4) of the frame b that stands at `translation` (..., 3) metres in a, rotated by the quaternion."""
    rotation = rotation_matrix(quaternion_wxyz)
    out = np.zeros((*rotation.shape[:-2], 4, 4))
    out[..., :3, :3] = rotation
    out[..., :3, 3] = translation
    out[..., 3, 3] = 1.0
    return out
