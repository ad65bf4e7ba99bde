"""Padded points with counts -> voxels, inside the exported network; no operator adds up what falls into one place.

Where several points give a voxel the same 1, writing it is the same in any order; where the last of them wins, each is asked
whether a later one lies in its voxel. Of radar there are few enough.
"""

import torch

from common.geometry import apply_4x4
from train.model.points import NEAR_EGO_M, RADAR_FEATURES


def counted(points, count):
    """(B,P) bool: which rows of (B,P,…) are points, of which each sample has `count` (B,) int64."""
    return torch.arange(points.shape[1], device=points.device) < count[:, None]


def lidar_voxels(points, count, ref_T_ego, grid):
    """(B,1,Z,Y,X) float32 in {0,1}, as train.model.forward.lidar_occupancy.

    points: (B,P,3) float32 metres in the ego frame, padded; count: (B,) int64. ref_T_ego: (B,4,4). grid: VoxUtil.
    """
    far = points.square().sum(2) > NEAR_EGO_M**2
    return grid.voxelize_xyz(apply_4x4(ref_T_ego, points), counted(points, count) & far)


def radar_voxels(points, count, ref_T_ego, grid, features):
    """(B,1,Z,Y,X), or with `features` (B,16,Z,Y,X), float32, as train.model.forward.radar_occupancy and radar_features.

    points: (B,P,19) float32, the rows of Batch.radar_data, padded. The rest as lidar_voxels'.
    """
    valid, xyz = counted(points, count), apply_4x4(ref_T_ego, points[..., :3])
    if not features:
        return grid.voxelize_xyz(xyz, valid)
    voxel, cells = grid.voxel_of(xyz, valid), grid.Z * grid.Y * grid.X
    number = torch.arange(points.shape[1], device=points.device)
    is_later = number[None, :] > number[:, None]
    beaten = ((voxel[:, :, None] == voxel[:, None, :]) & is_later).any(2)
    place = torch.where(beaten, cells, voxel)[:, :, None].expand(-1, -1, RADAR_FEATURES.stop - RADAR_FEATURES.start)
    out = torch.zeros((points.shape[0], cells + 1, place.shape[2]), device=points.device)
    return grid.from_flat(out.scatter(1, place, points[..., RADAR_FEATURES])[:, :-1])
