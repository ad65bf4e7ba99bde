"""What training does to the grid as a whole: it is turned, scaled and shifted, and all that is seen in it with it.

One matrix does it, moved_T_ref, after which `ref` is the moved frame: labels, boxes, velocities, maps, voxels and what networks
unproject all go by ref_T_ego. As BEVDet's BEV data augmentation (Huang et al., 2021).
"""

import math

import numpy as np


def draws_bev(conf):
    """Whether an AugmentConfig moves the grid."""
    return bool(conf.bev_rotate or conf.bev_scale or conf.bev_shift)


def draw_bev(rng, conf):
    """(4, 4) float64 moved_T_ref: scale and turn about ref's origin and its Y axis, then a shift along X and Z.

    rng: numpy Generator of the sample. conf: AugmentConfig.
    """
    turn, scale, shift_x, shift_z = rng.uniform(-1.0, 1.0, 4)
    angle, scale = math.radians(conf.bev_rotate) * turn, 1 + conf.bev_scale * scale
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return np.array(
        [
            [cos, 0, sin, conf.bev_shift * shift_x],
            [0, scale, 0, 0],
            [-sin, 0, cos, conf.bev_shift * shift_z],
            [0, 0, 0, 1],
        ]
    )


def most_reach_m(reach_m, conf):
    """The most metres along the ground, before it is moved, to the farthest corner of a grid that reaches reach_m after it."""
    return (reach_m + math.sqrt(2) * conf.bev_shift) / (1 - conf.bev_scale)
