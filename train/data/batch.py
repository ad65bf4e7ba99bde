"""The batch: one named object, from the loader to the loss.

Shape legend: B batch, T time, S camera slot, C channel, N box, V lidar point, R radar point; H, W image rows and columns; Z,
X rows and columns of the BEV grid. Names are Simple-BEV's.
"""

from dataclasses import dataclass, fields

import torch


@dataclass
class Batch:
    """One batch on one device. Modalities that are switched off are None.

    Frames: ego = the car at the LIDAR_TOP timestamp; cam = camera of the slot, X right, Y down, Z forward; cam0 = the
    reference camera, slot 0; BEV maps are in cam0's Z, X plane. Metres, radians, seconds. Padding, to the longest in
    the batch, is zero except where said; true counts are in the num_* fields.
    """

    imgs: torch.Tensor | None  # (B,T,S,3,H,W) float32 in [0,1], RGB
    rots: torch.Tensor  # (B,T,S,3,3) float32, rotation of ego_T_cam
    trans: torch.Tensor  # (B,T,S,3) float32, translation of ego_T_cam
    intrins: torch.Tensor  # (B,T,S,4,4) float32, pixels of imgs from cam
    lidar0_data: torch.Tensor | None  # (B,T,3,V) float32 ego, keyframe sweep
    lidar0_extra: torch.Tensor | None  # (B,T,3,V) float32 intensity, ring, lag
    lidar_data: torch.Tensor | None  # (B,T,3,V) float32 ego, all sweeps
    lidar_extra: torch.Tensor | None  # (B,T,3,V) float32 intensity, ring, lag; padding -1
    radar_data: torch.Tensor | None  # (B,T,19,R) float32, 18 PCD fields (x, y, z ego) and lag
    lrtlist: torch.Tensor  # (B,T,N,19) float32, lengths l, w, h and ego_T_box row by row
    vislist: torch.Tensor  # (B,T,N) float32, 0 for visibility 1, else 1
    tidlist: torch.Tensor | None  # (B,T,N) int64, one id a track over the window; padding -1
    scorelist: torch.Tensor  # (B,T,N) float32, 1 for real boxes
    seg_bev: torch.Tensor  # (B,T,1,Z,X) float32 in {0,1}
    valid_bev: torch.Tensor  # (B,T,1,Z,X) float32 in {0,1}, 0 where loss and IoU look away
    center_bev: torch.Tensor  # (B,T,1,Z,X) float32 heat in [0,1]
    offset_bev: torch.Tensor  # (B,T,2,Z,X) float32, twice the (x, z) cells from the box centre
    size_bev: torch.Tensor  # (B,T,3,Z,X) float32 l, w, h
    ry_bev: torch.Tensor  # (B,T,1,Z,X) float32 heading about cam0's Y
    ycoord_bev: torch.Tensor  # (B,T,1,Z,X) float32 height of the box centre along cam0's Y
    egopose: torch.Tensor  # (B,T,4,4) float32 global_T_ego
    num_lidar0: torch.Tensor | None  # (B,T) int64
    num_lidar: torch.Tensor | None  # (B,T) int64
    num_radar: torch.Tensor | None  # (B,T) int64
    num_boxes: torch.Tensor  # (B,T) int64
    tokens: list  # B lists of T sample tokens
    scenes: list  # B scene names
    cams: list  # B lists of S camera names in slot order
    indices: list  # B window numbers: what every random draw of the sample depends on, besides seed and epoch
    epoch: int = 0

    def __len__(self):
        return self.rots.shape[0]

    def to(self, device, non_blocking=False):
        """The batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in moved.items():
            if isinstance(value, torch.Tensor):
                moved[name] = value.to(device, non_blocking=non_blocking)
        return Batch(**moved)
