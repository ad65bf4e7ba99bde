"""Images as they are stored, resized inside the exported network."""

import numpy as np
import torch
from torch import nn

from common.errors import InputError
from train.augment import pix_T_stored, resample_weights, sampling_plan


class StoredImages(nn.Module):
    """(B,S,H,W,3) uint8 -> the network's images (B,S,3,h,w) float32 in [0,1], by two matrix products.

    The weights are those of train.augment.resample, an antialiased bilinear filter; rounding to whole levels between the
    passes, which the loader's way on the CPU has, is left out: a pixel differs by a level at most.

    Args:
        sizes_hw: S sizes of stored images, all the same. resize_wh (S,2), crop_ltrb (S,4): see train.augment. final_hw: h, w.
    Raises:
        ValueError: cameras whose images are of different sizes.
    """

    def __init__(self, sizes_hw, resize_wh, crop_ltrb, final_hw, interpolation="bilinear"):
        super().__init__()
        sizes_hw = np.asarray(sizes_hw)
        if (sizes_hw != sizes_hw[0]).any():
            raise InputError(
                "the cameras' stored images differ in size, so they cannot be one input; export with --images network"
            )
        if interpolation != "bilinear":
            raise InputError(
                f"images inside the graph are resized bilinearly, the run's were by {interpolation}; export with "
                "--images network"
            )
        plan = torch.from_numpy(sampling_plan(sizes_hw, resize_wh, crop_ltrb, final_hw, interpolation))
        rows, columns = (resample_weights(plan[:, n], final_hw[n], sizes_hw[0, n]) for n in (0, 1))
        self.register_buffer("rows", _shared(rows)[None])
        self.register_buffer("columns", _shared(columns).transpose(1, 2)[None].contiguous())
        moved = torch.from_numpy(pix_T_stored(sizes_hw, resize_wh, crop_ltrb))
        scale, shift = torch.eye(4).repeat(len(sizes_hw), 1, 1), torch.zeros(len(sizes_hw), 4, 4)
        scale[:, :2, :2], shift[:, :2, 2] = moved[:, :2, :2], moved[:, :2, 2]
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images):
        half = (self.rows @ images.float().flatten(3)).unflatten(3, (-1, 3))
        return (half.permute(0, 1, 4, 2, 3) @ self.columns[:, :, None] / 255).clamp(max=1)

    def moved(self, pix_T_cams):
        """Intrinsics (B,S,4,4) of stored pixels -> of the network's, as train.augment.moved_intrinsics."""
        return self.scale @ pix_T_cams + self.shift


def _shared(weights):
    """(S,n,m) as (1,n,m) where all are the same."""
    return weights[:1] if bool((weights == weights[:1]).all()) else weights
