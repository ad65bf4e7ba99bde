"""Image features -> their mean over the cameras that see each voxel."""

import importlib.util

import torch

from train.model.pair_gather import pair_mean
from train.model.plain_mean import plain_mean
from train.model.portable_mean import portable_mean

UNPROJECTIONS = ("fused", "plain")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def camera_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips=None, unprojection="fused"):
    """Mean over cameras of features unprojected into the grid. Geometry is float32 whatever the autocast.

    Args:
        feats: (B,S,C,h,w). pix_T_refs: (B,S,4,4), pixels of feats from ref. cams_T_ref: (B,S,4,4).
        flips: Flips whose image flips the features have and shall lose, and whose BEV flips the result shall have.
        unprojection: "fused" gathers what the cameras see and counts a camera where its weights are not all zero;
            "plain" samples each camera's whole volume, and counts it channel by channel where features are not zero.
    Returns:
        (B,C,Z,Y,X). Fused: in the features' dtype, summed in float32 at least, in memory as (B,Z,X,Y,C). Plain: float32,
        float64 for float64 features.
    """
    mean = plain_mean if unprojection == "plain" else _fused_for(feats)
    with torch.autocast(feats.device.type, enabled=False):
        return mean(feats, pix_T_refs, cams_T_ref, vox_util, flips)


def _fused_for(feats):
    if feats.device.type == "cpu":
        return pair_mean
    if feats.is_cuda and HAS_TRITON and not torch.are_deterministic_algorithms_enabled():
        from train.model.triton_mean import DTYPES, kernel_mean

        if feats.dtype in DTYPES:
            return kernel_mean
    return portable_mean
