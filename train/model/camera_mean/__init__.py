"""Image features -> their mean over the cameras that see each voxel, and a convolution of it."""

import importlib.util

import torch
import torch.nn.functional as F

from train.model.camera_mean.cpu import cpu_conv, cpu_mean
from train.model.camera_mean.portable import portable_mean
from train.model.camera_mean.reference import reference_mean

UNPROJECTIONS = ("fused", "plain")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def camera_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips=None, unprojection="fused", lenses=None):
    """Mean over cameras of features unprojected into the grid. Geometry is float32 whatever the autocast.

    Args:
        feats: (B,S,C,h,w). pix_T_refs: (B,S,4,4), pixels of feats from ref. cams_T_ref: (B,S,4,4).
        flips: Flips whose image flips the features have and shall lose, and whose BEV flips the result shall have.
        unprojection: "fused" gathers what the cameras see and counts a camera where its weights are not all zero;
            "plain" samples each camera's whole volume, and counts it channel by channel where features are not zero; or an
            object of train.exporting.view that does it otherwise.
        lenses: (B,S,LENS_SIZE+6) of cameras that bend, see common.vox.project; None for pinholes.
    Returns:
        (B,C,Z,Y,X). Fused: in the features' dtype, summed in float32 at least, a voxel's features side by side in memory.
        Plain: float32, float64 for float64 features.
    """
    if not isinstance(unprojection, str):
        return unprojection.mean(feats, pix_T_refs, cams_T_ref, vox_util, lenses)
    mean = reference_mean if unprojection == "plain" else _fused_for(feats, lenses is not None)
    bent = {} if lenses is None else {"lenses": lenses}
    with torch.autocast(feats.device.type, enabled=False):
        return mean(feats, pix_T_refs, cams_T_ref, vox_util, flips, **bent)


def convolved_mean(feats, pix_T_refs, cams_T_ref, vox_util, kernels, flips=None, unprojection="fused", lenses=None):
    """The sum over heights y of conv2d(camera_mean[..., y, :], kernels[y]), padded to keep the size.

    On the CPU the fused way never holds the whole mean. Arguments as camera_mean's, and kernels (Y,O,C,k,k), k odd.

    Returns:
        (B,O,Z,X), in the dtype of a convolution of the mean.
    """
    if not isinstance(unprojection, str):
        return unprojection.convolved(feats, pix_T_refs, cams_T_ref, vox_util, kernels, lenses)
    if unprojection == "fused" and feats.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return cpu_conv(feats, pix_T_refs, cams_T_ref, vox_util, kernels, flips, lenses)
    volume = camera_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips, unprojection, lenses)
    return F.conv2d(_heights_as_channels(volume), kernels.transpose(0, 1).flatten(1, 2), padding=kernels.shape[-1] // 2)


def _heights_as_channels(volume):
    """(B,C,Z,Y,X) -> (B,Y*C,Z,X); no copy, and channels-last, where it lies in memory as (B,Z,X,Y,C), as the kernel's does."""
    if volume.stride(1) != 1:
        return volume.permute(0, 3, 1, 2, 4).flatten(1, 2)
    # By way of (B,Z,X,Y*C): else a batch of one has a stride by which torch takes it for another order, and copies it to and
    # fro around the convolution, forward and backward.
    return volume.permute(0, 2, 4, 3, 1).flatten(3).permute(0, 3, 1, 2)


def _fused_for(feats, bent):
    """The fused way for these features; the Triton kernel projects by pinholes alone."""
    if feats.device.type == "cpu":
        return cpu_mean
    if feats.is_cuda and HAS_TRITON and not bent and not torch.are_deterministic_algorithms_enabled():
        from train.model.camera_mean.triton import DTYPES, triton_mean

        if feats.dtype in DTYPES:
            return triton_mean
    return portable_mean
