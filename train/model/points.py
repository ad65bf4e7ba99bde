"""Points of a batch as networks take them: in the grid's frame, which of them count, and their measurements near 1."""

from typing import NamedTuple

import torch

from common.geometry import apply_4x4, merge_rt

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
    ego_T_cams = merge_rt(batch.rots[:, t], batch.trans[:, t])
    if batch.true_times:
        ego_T_cams = batch.ego_T_camego[:, t] @ ego_T_cams
    return ref_T_ego(batch, t)[:, None] @ ego_T_cams


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
