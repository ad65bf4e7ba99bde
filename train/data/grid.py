"""The BEV grid: where it lies, and how many cells it has."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from common.vox import VoxUtil

CENTROID_M = (0.0, 1.0, 0.0)  # Simple-BEV's


@dataclass(frozen=True)
class Grid:
    """The BEV grid: centroid (3,) metres in cam0, bounds XMIN XMAX YMIN YMAX ZMIN ZMAX around it, zyx cells."""

    centroid: tuple
    bounds: tuple
    zyx: tuple

    @classmethod
    def of(cls, options):
        """The grid of Options, or of any object with their centroid (None: Simple-BEV's), bounds, Z, Y and X."""
        centroid = CENTROID_M if options.centroid is None else options.centroid
        return cls(centroid, options.bounds, (options.Z, options.Y, options.X))

    def __post_init__(self):
        for name, cast in (("centroid", float), ("bounds", float), ("zyx", int)):
            object.__setattr__(self, name, tuple(cast(v) for v in np.asarray(getattr(self, name)).reshape(-1)))

    @property
    def zx(self):
        """Rows and columns of the BEV maps."""
        return self.zyx[0], self.zyx[2]

    def vox_util(self):
        """VoxUtil of the grid; it follows its arguments to their devices."""
        return VoxUtil(*self.zyx, scene_centroid=np.array([self.centroid], np.float32), bounds=self.bounds)

    @cached_property
    def mem_T_cam(self):
        """(4, 4) float32, from cam0 to voxel coordinates."""
        ends = self.vox_util().ref_to_mem(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).numpy()
        out = np.diag([*(ends[1] - ends[0]), 1.0]).astype(np.float32)
        out[:3, 3] = ends[0]
        return out
