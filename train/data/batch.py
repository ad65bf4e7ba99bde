"""The batch: one named object, from the loader to the loss.

Shape legend: B batch, T time, S camera slot, C channel, K class, N box, V lidar point, R radar point; H, W image rows and
columns; Z, X rows and columns of the BEV grid. Names are Simple-BEV's.
"""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from common.rig import Rig
from train.data.targets import box_maps


@dataclass(frozen=True)
class FrameFacts:
    """What is known of one keyframe besides tensors; arrays in the order of the batch's boxes, on the CPU.

    key: in the shards. location, description: the log's place, and the scene's free text. timestamp_us: of the keyframe.
    global_T_ego: (4, 4) float64. conditions: what the record states of those that the rig knows, such as {"light": "night",
    "weather": "dry"}. rig: Rig of the set, with the names and orders of its sensors. categories: n names. instances: n tokens,
    the same for a thing in all keyframes. attributes: n tuples of names. visibility: (n,) int32, 1-4, 0 where not annotated.
    num_lidar_pts, num_radar_pts: (n,) int32, -1 where unknown. velocity: (n, 3) float64 m/s, global frame, NaN where unknown.
    """

    key: str
    scene: str
    description: str
    location: str
    timestamp_us: int
    global_T_ego: np.ndarray
    conditions: dict
    rig: Rig
    categories: tuple
    instances: tuple
    attributes: tuple
    visibility: np.ndarray
    num_lidar_pts: np.ndarray
    num_radar_pts: np.ndarray
    velocity: np.ndarray


def _moved(members, device, non_blocking):
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device, non_blocking=non_blocking), members)


@dataclass(repr=False)
class Batch:
    """One batch on one device. Modalities that are switched off are None.

    Time: t = 0 is the present. In a window that looks back (Needs(past=K)) t is the t-th keyframe before it; in one of
    compile_data(seqlen) t is the t-th after it.

    Frames: ego = the car at the LIDAR_TOP timestamp of its t; camego = the car when a camera took its picture; cam = camera of
    the slot, X right, Y down, Z forward; cam0 = the reference camera, slot 0; ref = the grid's frame, that of cam0 or, with
    Grid.frame "ego", X right, Y down, Z forward at the ego's origin. BEV maps are in ref's Z, X plane. Metres, radians,
    seconds. Padding, to the longest in the batch, is zero except where said; true counts are in the num_* fields.

    What no loss needs is computed when asked for, each time anew: size_bev (B,T,3,Z,X) l, w, h; ry_bev (B,T,1,Z,X) heading
    about ref's Y; ycoord_bev (B,T,1,Z,X) height of the box centre along ref's Y; lidar0_data and lidar0_extra
    (B,T,3,V), the keyframe's sweep alone, all zero where padded; scorelist (B,T,N), 1 for real boxes. All float32.
    """

    imgs: torch.Tensor | None  # (B,T,S,3,H,W) float32 in [0,1], RGB
    rots: torch.Tensor  # (B,T,S,3,3) float32, rotation of ego_T_cam
    trans: torch.Tensor  # (B,T,S,3) float32, translation of ego_T_cam
    intrins: torch.Tensor  # (B,T,S,4,4) float32, pixels of imgs from cam; of a camera left out, far beside the image
    pix_T_stored: (
        torch.Tensor
    )  # (B,T,S,3,3) float32, pixels of imgs from those of the stored images, by which layers go
    lenses: torch.Tensor | None  # (B,T,S,16) float32, rows of common.lens; None where all cameras are pinholes
    lidar_data: torch.Tensor | None  # (B,T,3,V) float32 ego, all sweeps, the keyframe's first
    lidar_extra: torch.Tensor | None  # (B,T,3,V) float32 intensity, ring, lag; padding -1
    lidar_index: (
        torch.Tensor | None
    )  # (B,T,V) int16, place in the rig of each point's lidar; padding -1; None for one lidar
    radar_data: torch.Tensor | None  # (B,T,19,R) float32, 18 PCD fields (x, y, z ego) and lag
    lrtlist: torch.Tensor  # (B,T,N,19) float32, lengths l, w, h and ego_T_box row by row
    lrtlist_ref: torch.Tensor  # (B,T,N,19) float32, lengths and ref_T_box
    vislist: torch.Tensor  # (B,T,N) float32, 0 for visibility 1, else 1
    tidlist: torch.Tensor | None  # (B,T,N) int64, one id a track over the window; padding -1
    box_class: torch.Tensor  # (B,T,N) int64, which of class_names, the first that fits; -1 of none, and padding
    box_velocity: torch.Tensor  # (B,T,N,3) float32 m/s in ref, NaN where unknown
    box_numbers: torch.Tensor  # (B,T,Z,X) int16, number of the box on top, of any class, and 1; 0 where none is
    seg_bev: torch.Tensor  # (B,T,K,Z,X) float32 in {0,1}
    valid_bev: torch.Tensor  # (B,T,K,Z,X) float32 in {0,1}, 0 where the cell is ignored by loss and IoU of the class
    box_bev: torch.Tensor  # (B,T,1,Z,X) float32 in {0,1}, where a box of any class lies; of one class seg_bev itself
    center_bev: torch.Tensor  # (B,T,1,Z,X) float32 heat in [0,1], of the boxes of any class
    offset_bev: torch.Tensor  # (B,T,2,Z,X) float32, twice the (x, z) cells from the centre of the box on top
    labels: dict  # name of each LabelSpec -> (seg, valid) as above; the first's are seg_bev and valid_bev
    class_names: tuple  # K names
    class_weights: tuple  # K numbers, of each class's part of the loss
    class_positives: tuple  # K numbers, how many times as much a cell of the class counts there as one outside it
    egopose: torch.Tensor  # (B,T,4,4) float32 global_T_ego
    ref_T_ego: torch.Tensor  # (B,T,4,4) float32; what labels, voxels, masks and pictures go by. A similarity: may scale
    ego_T_camego: torch.Tensor  # (B,T,S,4,4) float32 of a float64 computation
    ego_T_now: torch.Tensor  # (B,T,4,4) float32 of a float64 computation, ego at t from ego at t = 0
    age_s: torch.Tensor  # (B,T) float32, seconds from t to t = 0: how long ago t was, in windows that look back
    is_real: torch.Tensor  # (B,T) bool, False where it stands in for a keyframe that there is not
    starts: torch.Tensor  # (B,) bool, where a scene starts, or samples come in no order of time
    num_lidar0: torch.Tensor | None  # (B,T) int64
    num_lidar: torch.Tensor | None  # (B,T) int64
    num_radar: torch.Tensor | None  # (B,T) int64
    num_boxes: torch.Tensor  # (B,T) int64
    longest_lidar0: int  # V of lidar0_data
    tokens: list  # B lists of T sample tokens
    scenes: list  # B scene names
    cams: list  # B lists of S camera names in slot order
    facts: list  # B lists of T FrameFacts
    indices: list  # B window numbers: what the sample's augmentation depends on, besides seed and epoch
    epoch: int = 0
    true_times: bool = False  # whether networks are to take cameras from where the car was at their own times
    layers: dict = field(
        default_factory=dict
    )  # name of each layer -> dict of its members, see train.data.layer_members

    def __len__(self):
        return self.rots.shape[0]

    def to(self, device, non_blocking=False):
        """The batch on another device."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        labels = {
            name: tuple(m.to(device, non_blocking=non_blocking) for m in maps) for name, maps in self.labels.items()
        }
        layers = {name: _moved(members, device, non_blocking) for name, members in self.layers.items()}
        return replace(self, **moved, labels=labels, layers=layers)

    def tensors(self):
        """Every tensor that the batch holds."""
        for value in vars(self).values():
            if isinstance(value, torch.Tensor):
                yield value
        for maps in self.labels.values():
            yield from maps
        yield from (value for value in tree_leaves(self.layers) if isinstance(value, torch.Tensor))

    @property
    def size_bev(self):
        return self._box_map("size")

    @property
    def ry_bev(self):
        return self._box_map("ry")

    @property
    def ycoord_bev(self):
        return self._box_map("ycoord")

    @property
    def lidar0_data(self):
        return self._keyframe_sweep(self.lidar_data)

    @property
    def lidar0_extra(self):
        return self._keyframe_sweep(self.lidar_extra)

    @property
    def scorelist(self):
        place = torch.arange(self.lrtlist.shape[2], device=self.lrtlist.device)
        return (place < self.num_boxes[..., None]).float()

    def _box_map(self, name):
        maps = box_maps(self.box_numbers.flatten(0, 1), self.lrtlist_ref.flatten(0, 1))
        return maps[name].unflatten(0, self.box_numbers.shape[:2])

    def _keyframe_sweep(self, points):
        if points is None:
            return None
        place = torch.arange(self.longest_lidar0, device=points.device)
        return torch.where(place < self.num_lidar0[..., None, None], points[..., : self.longest_lidar0], 0.0)

    def __repr__(self):
        lines = [f"Batch of {len(self)}, epoch {self.epoch}"]
        absent = [each.name for each in fields(self) if getattr(self, each.name) is None]
        for each in (each for each in fields(self) if each.name not in (*absent, "epoch")):
            value = getattr(self, each.name)
            if isinstance(value, torch.Tensor):
                what = f"{str(tuple(value.shape)):<28}{str(value.dtype).removeprefix('torch.'):<9}{value.device}"
            elif each.name == "labels":
                what = ", ".join(value)
            elif isinstance(value, list):
                what = f"{len(value)} of {type(value[0]).__name__}" if value else "none"
            else:
                what = str(value)
            lines.append(f"  {each.name:<16}{what}")
        lines += [f"  None: {', '.join(absent)}"] * bool(absent)
        return "\n".join(lines)
