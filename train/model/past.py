"""The past as image features: of a window, or remembered from keyframe to keyframe, and placed in the present's grid.

Features are kept as cameras saw them. Where these were is known to the millimetre (`ego_T_now`), so features are unprojected
straight into the present grid: nothing is warped, no plane is assumed, and neither another reference camera nor an augmented
grid in between matters. No gradient goes into the past.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from common.geometry import similarity_inverse
from train.data.frames import ages_s, are_real, ego_T_nows
from train.model.bev_flips import flip_where
from train.model.camera_mean import convolved_mean
from train.model.interface import Flips
from train.model.points import ego_T_cams, pixels_of_ref, ref_T_ego


class Past(NamedTuple):
    """K keyframes before the present, the newest first. Where is_real says that there is none, the rest means nothing.

    features (B,K,S,C,h,w) of their images, not flipped; pix_T_cams (B,K,S,4,4) pixels of those images; ref_T_cams (B,K,S,4,4):
    the present grid's frame from where the cameras then were; age_s (B,K) float32, seconds before the present; is_real (B,K);
    lenses (B,K,S,LENS_SIZE), None for pinholes.
    """

    features: torch.Tensor
    pix_T_cams: torch.Tensor
    ref_T_cams: torch.Tensor
    age_s: torch.Tensor
    is_real: torch.Tensor
    lenses: torch.Tensor | None = None

    @classmethod
    def of(cls, named):
        """Of what `named` gave."""
        return cls(*(named.get(f"past_{name}") for name in cls._fields))

    def named(self):
        """{"past_features": …}: as a network's infer takes them."""
        return {f"past_{name}": value for name, value in self._asdict().items() if value is not None}


def past_of_window(batch, count, encode):
    """Past of a batch whose windows hold `count` keyframes before the present; encode: images (B,S,3,H,W) -> (B,S,C,h,w).

    Keyframe by keyframe, as a memory sees them: the bits are the same.
    """
    times = range(1, count + 1)
    with torch.no_grad():
        features = torch.stack([encode(batch.imgs[:, t]) for t in times], 1)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        cameras = torch.stack([ego_T_cams(batch, t) for t in times], 1)
        places = _in_the_grid(batch, batch.ego_T_now[:, 1:], cameras)
    lenses = None if batch.lenses is None else batch.lenses[:, 1:]
    return Past(features, batch.intrins[:, 1:], places, batch.age_s[:, 1:], batch.is_real[:, 1:], lenses)


def _in_the_grid(batch, ego_T_now, cameras):
    """(B,K,S,4,4): the present grid's frame from cameras of then, of ego_T_now (B,K,4,4) and ego_T_cams (B,K,S,4,4)."""
    ref_T_then = ref_T_ego(batch)[:, None] @ similarity_inverse(ego_T_now)
    return ref_T_then[:, :, None] @ cameras


class Memory:
    """What streams leave behind: for each slot of the batch the last K keyframes' features, cameras, poses and times.

    Its three methods are a network's; README.md beside this file says what they do. Poses are float64 and stay on the host,
    since a GPU's float32 would err by half a metre in map coordinates; so do the times.
    """

    ON_HOST = ("global_T_ego", "timestamp_us")

    def __init__(self, count):
        self.count, self.state = count, {}

    def reset(self, which):
        """Forget the keyframes of those rows (B,) bool. Of other than B rows the last ones are dropped, or new ones begin."""
        self.state = {name: _of_rows(value, len(which)) for name, value in self.state.items()}
        if self.state:
            self.state["is_real"] = self.state["is_real"] & ~which[:, None]

    def stream_state(self):
        """Name -> tensor (rows, K, …) of all that is remembered."""
        return self.state

    def load_stream_state(self, state):
        self.state = {name: value.cpu() if name in self.ON_HOST else value for name, value in state.items()}

    @torch.compiler.disable
    def past(self, batch, shape):
        """Past of a batch of single keyframes. shape: S, C, h, w of features, for a memory that is empty."""
        if not self.state:
            self._begin(batch, shape)
        state, device = self.state, batch.rots.device
        poses, times = (state[name].numpy() for name in self.ON_HOST)
        ego_T_now, age_s, follows = [], [], []
        for (facts, *_), own_poses, own_times in zip(batch.facts, poses, times, strict=True):
            ego_T_now.append(ego_T_nows(np.concatenate([facts.global_T_ego[None], own_poses]))[1:])
            age_s.append(ages_s([facts.timestamp_us, *own_times])[1:])
            follows.append(are_real([facts.timestamp_us, *own_times], facts.rig.keyframe_interval_s)[1:])
        ego_T_now, age_s, follows = (_sent(np.stack(v), device) for v in (ego_T_now, age_s, follows))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            places = _in_the_grid(batch, ego_T_now, state["ego_T_cams"])
        is_real = state["is_real"] & follows
        return Past(state["features"], state["pix_T_cams"], places, age_s, is_real, state.get("lenses"))

    def _begin(self, batch, shape):
        """Nothing that is real; transforms that can be inverted all the same."""
        rows = batch.rots.shape[0], self.count
        cameras = torch.eye(4, device=batch.rots.device).repeat(*rows, shape[0], 1, 1)
        self.state = {
            "features": batch.rots.new_zeros(*rows, *shape),
            "pix_T_cams": cameras,
            "ego_T_cams": cameras,
            "is_real": batch.rots.new_zeros(rows, dtype=torch.bool),
            "global_T_ego": torch.eye(4, dtype=torch.float64).repeat(*rows, 1, 1),
            "timestamp_us": torch.zeros(rows, dtype=torch.int64),
        }
        if batch.lenses is not None:
            self.state["lenses"] = batch.lenses.expand(*rows, *batch.lenses.shape[2:])

    @torch.compiler.disable
    def keep(self, batch, features, is_real):
        """Remember a batch of single keyframes. features: (B,S,C,h,w), not flipped; is_real (B,K): what past() gave for it."""
        facts = [own for own, *_ in batch.facts]
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            newest = {
                "features": features.detach(),
                "pix_T_cams": batch.intrins[:, 0],
                "ego_T_cams": ego_T_cams(batch),
                "is_real": torch.ones_like(is_real[:, 0]),
                "global_T_ego": torch.from_numpy(np.stack([own.global_T_ego for own in facts])),
                "timestamp_us": torch.tensor([own.timestamp_us for own in facts]),
            }
            if batch.lenses is not None:
                newest["lenses"] = batch.lenses[:, 0]
            older = self.state | {"is_real": is_real}
            self.state = {
                name: torch.cat([value[:, None], older[name][:, :-1].to(value.dtype)], 1)
                for name, value in newest.items()
            }


def _of_rows(value, rows):
    if len(value) >= rows:
        return value[:rows]
    return torch.cat([value, value[:1].expand(rows - len(value), *value.shape[1:])])


def _sent(array, device):
    """An array as a tensor on the device, which nothing waits for."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class PastConv(nn.Module):
    """The compressor's convolution of past keyframes: what it would be of their volumes beside the present's.

    Each keyframe has kernels of its own, and gains by its age: what follows normalises each channel, so that an age beside the
    features would be subtracted again.

    Args: count: K. features, heights, outputs: C, Y and channels of the result. size: of the kernels.
    """

    def __init__(self, count, features, heights, outputs, size=3):
        super().__init__()
        self.shape = heights, features
        self.weight = nn.Parameter(torch.empty(count, outputs, features * heights, size, size))
        self.gain_per_s = nn.Parameter(torch.zeros(count, outputs))
        for own in self.weight:
            nn.init.kaiming_uniform_(own, a=5**0.5)  # as nn.Conv2d begins

    def forward(self, past, stride, grid, flips=None, unprojection="fused"):
        """Past -> (B,O,Z,X), flipped as BEV features are.

        stride: pixels of an image per pixel of its features. grid: VoxUtil.
        """
        heights, features = self.shape
        if flips is not None:
            flips = Flips(torch.zeros_like(flips.image), flips.bev_x, flips.bev_z)
        total = 0
        for k in range(past.features.shape[1]):
            lenses = None if past.lenses is None else past.lenses[:, k]
            *where, bent = pixels_of_ref(past.pix_T_cams[:, k], past.ref_T_cams[:, k], stride, lenses)
            kernels = self.weight[k].unflatten(1, (features, heights)).permute(2, 0, 1, 3, 4)
            part = convolved_mean(past.features[:, k], *where, grid, kernels, flips, unprojection, **bent)
            gain = 1 + past.age_s[:, k, None] * self.gain_per_s[k]
            part = part * gain.to(part.dtype)[:, :, None, None]
            total = total + torch.where(past.is_real[:, k, None, None, None], part, 0.0)
        return total


def unflipped_features(features, flips):
    """Features (B,S,C,h,w) of images that were flipped as Flips say, as of images that were not."""
    return features if flips is None else flip_where(flips.image, features, -1)
