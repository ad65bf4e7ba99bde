"""Layer `depth`: where the keyframe's lidar points lie in each camera's image, and how far they are from it.

Points go through the pose that each camera has of its own, so that they lie where they were seen even when the car moves. A
network that learns depth from lidar (BEVDepth, Li et al., AAAI 2023) so trains without reading a lidar member.
"""

import numpy as np
import torch

from common.geometry import rigid_inverse
from common.lens import bend, lens_row
from common.record import encode_points
from common.rig import rig_of

LAYER = "depth"
MEMBER = "depth.planes.zst"
FIELDS = ("camera", "u", "v", "depth")
NEAREST_M = 0.5
PIXEL_STEP, DEPTH_STEP_M = (
    1 / 64,
    1 / 1024,
)  # values are multiples of these: whole bytes of them are alike, and pack well


def make(sample):
    """{MEMBER: (4, n) float32}: number of the camera in the record, u and v in stored pixels, depth along its axis in metres.

    Pixel (0, 0) is the middle of the upper left one. sample: preprocess.layer.LayerSample; without lidar nothing is made.
    """
    points = sample.lidar(0)
    if points is None:
        return {}
    xyz = points[:3].astype(np.float64)
    global_T_ego = np.asarray(sample.facts["global_T_ego"], np.float64)
    facts = sample.facts
    lenses = {camera.name: camera.distortion for camera in rig_of(facts["facts"], facts["schema"]).cameras}
    rows = zip(sample.cameras, (lenses[camera["channel"]] for camera in facts["cameras"]), strict=True)
    seen = [in_camera(row, number, xyz, global_T_ego, lens) for number, (row, lens) in enumerate(rows)]
    return {MEMBER: encode_points(np.concatenate(seen, 1))}


def in_camera(row, number, xyz, global_T_ego, distortion=None):
    """(4, n) float32, FIELDS of those points that one camera sees.

    Args:
        row: of common.record.CAMERA_DTYPE. xyz: (3, n) metres, ego frame at the lidar's time, whose pose is global_T_ego.
        distortion: common.rig.Distortion of its images; None for a pinhole.
    """
    ego_T_camego = rigid_inverse(global_T_ego) @ row["global_T_ego"]
    cam_T_ego = rigid_inverse(ego_T_camego @ row["ego_T_cam"])
    x, y, depth = cam_T_ego[:3, :3] @ xyz + cam_T_ego[:3, 3:]
    ahead = depth >= NEAREST_M
    if distortion is None:
        u, v, _ = row["intrinsics"] @ np.stack([x[ahead], y[ahead], depth[ahead]]) / depth[ahead]
    else:
        lens = torch.from_numpy(lens_row(distortion).astype(np.float64))
        bent = [part.numpy() for part in bend(torch.from_numpy(np.stack([x, y, depth], 1)), lens)]
        ahead &= bent[2]
        u, v, _ = row["intrinsics"] @ np.stack([bent[0][ahead], bent[1][ahead], np.ones(ahead.sum())])
    inside = (u >= -0.5) & (v >= -0.5) & (u < row["width"] - 0.5) & (v < row["height"] - 0.5)
    pixels = np.round(np.stack([u, v])[:, inside] / PIXEL_STEP) * PIXEL_STEP
    metres = np.round(depth[ahead][inside] / DEPTH_STEP_M) * DEPTH_STEP_M
    return np.concatenate([np.full((1, len(metres)), number), pixels, metres[None]]).astype(np.float32)
