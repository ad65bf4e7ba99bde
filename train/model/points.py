"""Points of a batch as networks take them: in the grid's frame, which of them count, and their measurements near 1."""

from typing import NamedTuple

import torch

from common.geometry import apply_4x4, merge_rt, scale_intrinsics, similarity_inverse

NEAR_EGO_M = 1.0  # lidar points this close to the ego origin are dropped, as in Simple-BEV
RADAR_FEATURES = slice(3, 19)  # of radar_data's rows: all but the position
# What intensity, ring and lag are divided by: the first two as nuScenes has them, the lag in seconds.
INTENSITY_SCALE, RING_SCALE, LAG_SCALE_S = 255.0, 32.0, 0.5


class Points(NamedTuple):
    """xyz (B,N,3) metres in the grid's frame, features (B,N,F) float32, valid (B,N) bool: neither padding nor too near."""

    xyz: torch.Tensor
    features: torch.Tensor
    valid: torch.Tensor


def ref_T_ego(batch, t=0):
    """(B,4,4): the grid's frame at frame t of the batch's windows from the ego at t. A similarity: never invert it as rigid."""
    return batch.ref_T_ego[:, t]


def ref_T_cams(batch, t=0):
    """(B,S,4,4): the grid's frame at frame t from each camera.

    With --true_times from where the car was when the camera took its picture. The benchmark, and this without the option, takes
    all sensors as of one moment.
    """
    return ref_T_ego(batch, t)[:, None] @ ego_T_cams(batch, t)


def ego_T_cams(batch, t=0):
    """(B,S,4,4): the ego at frame t from each camera, at its own time with --true_times."""
    own = merge_rt(batch.rots[:, t], batch.trans[:, t])
    return batch.ego_T_camego[:, t] @ own if batch.true_times else own


def pixels_of_ref(pix_T_cams, ref_T_cams, stride, lenses=None):
    """What unprojecting features takes, float32 whatever the autocast: pix_T_ref and cams_T_ref (...,4,4), and a dict.

    That is {"lenses": rows as common.vox.project takes them}, and empty for pinholes.

    Args:
        pix_T_cams: (...,4,4) pixels of the images from each camera. ref_T_cams: (...,4,4). stride: pixels of an image per pixel
        of its features. lenses: (...,LENS_SIZE) rows of common.lens, or None.
    """
    with torch.autocast(pix_T_cams.device.type, enabled=False):
        cams_T_ref = similarity_inverse(ref_T_cams.float())
        pix_T_cams, bent = scale_intrinsics(pix_T_cams.float(), 1 / stride, 1 / stride), {}
        if lenses is not None:
            bent["lenses"] = torch.cat([lenses.float(), pix_T_cams[..., :2, :3].flatten(-2)], -1)
        return pix_T_cams @ cams_T_ref, cams_T_ref, bent


def lidar_places(batch, t=0):
    """(xyz, valid) of Points of frame t's lidar sweeps."""
    far = batch.lidar_data[:, t].square().sum(1) > NEAR_EGO_M**2  # norm() is a hundred times as slow on the CPU
    lidar = batch.lidar_data[:, t].transpose(1, 2)
    valid = _counted(lidar, batch.num_lidar[:, t]) & far
    return apply_4x4(ref_T_ego(batch, t), lidar), valid


def lidar_points(batch, t=0):
    """Points of frame t's lidar sweeps. features: intensity, ring and lag over INTENSITY_SCALE, RING_SCALE and LAG_SCALE_S."""
    xyz, valid = lidar_places(batch, t)
    intensity, ring, lag = batch.lidar_extra[:, t].unbind(1)
    return Points(xyz, torch.stack([intensity / INTENSITY_SCALE, ring / RING_SCALE, lag / LAG_SCALE_S], -1), valid)


def radar_points(batch, t=0):
    """Points of frame t's radar sweeps. features: the 16 rows of radar_data after the position, as they were measured."""
    radar = batch.radar_data[:, t].transpose(1, 2)
    xyz = apply_4x4(ref_T_ego(batch, t), radar[..., :3])
    return Points(xyz, radar[..., RADAR_FEATURES], _counted(radar, batch.num_radar[:, t]))


def _counted(points, counts):
    return torch.arange(points.shape[1], device=points.device) < counts[:, None]
