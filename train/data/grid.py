"""The BEV grid: where it lies, and how many cells it has."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from common.errors import InputError
from common.geometry import rigid_inverse
from common.vox import VoxUtil

# Frame -> centroid of its grids, metres: Simple-BEV's; half a metre over the ego's origin, which lies on the ground.
CENTROIDS_M = {"cam0": (0.0, 1.0, 0.0), "ego": (0.0, -0.5, 0.0)}
# Camera-like axes at the ego's origin: X right, Y down, Z forward, of x forward, y left, z up.
_REF_T_EGO = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Grid:
    """The BEV grid: centroid (3,) metres in ref, bounds XMIN XMAX YMIN YMAX ZMIN ZMAX around it, zyx cells.

    frame: what ref is: "cam0", the reference camera's frame, or "ego", X right, Y down, Z forward at the ego's origin.
    """

    centroid: tuple
    bounds: tuple
    zyx: tuple
    frame: str = "cam0"

    @classmethod
    def of(cls, options):
        """The grid of Options, or of any object with their frame, bounds, Z, Y, X and centroid; None or empty: the frame's."""
        centroid = options.centroid
        if centroid is None or not len(np.asarray(centroid).reshape(-1)):
            centroid = CENTROIDS_M[options.frame]
        return cls(centroid, options.bounds, (options.Z, options.Y, options.X), options.frame)

    def __post_init__(self):
        for name, cast in (("centroid", float), ("bounds", float), ("zyx", int)):
            object.__setattr__(self, name, tuple(cast(v) for v in np.asarray(getattr(self, name)).reshape(-1)))
        if self.frame not in CENTROIDS_M:
            raise InputError(f"frame {self.frame!r}; the grid's is one of {', '.join(CENTROIDS_M)}")

    @property
    def zx(self):
        """Rows and columns of the BEV maps."""
        return self.zyx[0], self.zyx[2]

    def vox_util(self):
        """VoxUtil of the grid; it follows its arguments to their devices."""
        return VoxUtil(*self.zyx, scene_centroid=np.array([self.centroid], np.float32), bounds=self.bounds)

    @property
    def reach_m(self):
        """Metres along the ground from ref's origin to the grid's farthest corner."""
        (x, _, z), (x0, x1, _, _, z0, z1) = self.centroid, self.bounds
        return max(math.hypot(x + dx, z + dz) for dx in (x0, x1) for dz in (z0, z1))

    def ref_T_ego(self, ego_T_cam0):
        """(4, 4) float32, from the ego's to the grid's frame. ego_T_cam0: (4, 4) float32 of the reference camera."""
        return rigid_inverse(ego_T_cam0) if self.frame == "cam0" else _REF_T_EGO

    @cached_property
    def mem_T_ref(self):
        """(4, 4) float32, from ref to voxel coordinates."""
        ends = self.vox_util().ref_to_mem(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).numpy()
        out = np.diag([*(ends[1] - ends[0]), 1.0]).astype(np.float32)
        out[:3, 3] = ends[0]
        return out
