"""A batch through the network: what training and evaluation share."""

import torch

from common.geometry import apply_4x4, cam0_T_cams, merge_rt, rigid_inverse

NEAR_EGO_M = 1.0  # lidar points this close to the ego origin are dropped, as in the lineage
RADAR_FEATURES = slice(3, 19)  # of radar_data's rows: all but the position


def run_model(model, batch, vox_util, flips=None):
    """Segnet's outputs for the first time step of a Batch. flips: see Segnet.

    Geometry and voxels are float32 whatever the autocast: bfloat16 would move a point at 40 m by 13 cm.
    """
    with torch.autocast(batch.rots.device.type, enabled=False):
        ego_T_cam = merge_rt(batch.rots[:, 0], batch.trans[:, 0])
        cam0_T_cam = cam0_T_cams(ego_T_cam)
        voxels = sensor_voxels(model, batch, rigid_inverse(ego_T_cam[:, 0]), vox_util)
    return model(batch.imgs[:, 0] - 0.5, batch.intrins[:, 0], cam0_T_cam, vox_util, voxels, flips=flips)


def sensor_voxels(net, batch, cam0_T_ego, vox_util):
    """Voxels of the other sensors that a Segnet uses, from the Batch's first time step.

    Args:
        net: Segnet, or what has its use_radar, use_metaradar and use_lidar. cam0_T_ego: (B,4,4) float32.
    Returns:
        (B,D,Z,Y,X) float32: radar's channels, then lidar's; None for cameras only.
    """
    parts = []
    with torch.no_grad(), torch.autocast(cam0_T_ego.device.type, enabled=False):
        if net.use_radar:
            radar = batch.radar_data[:, 0].transpose(1, 2)
            valid = _valid(radar, batch.num_radar[:, 0])
            xyz = apply_4x4(cam0_T_ego, radar[..., :3])
            if net.use_metaradar:
                parts.append(vox_util.voxelize_xyz_and_feats(xyz, radar[..., RADAR_FEATURES], valid))
            else:
                parts.append(vox_util.voxelize_xyz(xyz, valid))
        if net.use_lidar:
            far = batch.lidar_data[:, 0].square().sum(1) > NEAR_EGO_M**2  # norm() is a hundred times as slow on the CPU
            lidar = batch.lidar_data[:, 0].transpose(1, 2)
            valid = _valid(lidar, batch.num_lidar[:, 0]) & far
            parts.append(vox_util.voxelize_xyz(apply_4x4(cam0_T_ego, lidar), valid))
    return torch.cat(parts, 1) if parts else None


def _valid(points, counts):
    return torch.arange(points.shape[1], device=points.device) < counts[:, None]
