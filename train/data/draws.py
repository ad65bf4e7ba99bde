"""What an experiment chooses about a sample: cameras, reference camera, and where each image is resized and cropped."""

from dataclasses import dataclass

import numpy as np

from common.cameras import CAMERAS


@dataclass(frozen=True)
class AugmentConfig:
    """Image and camera settings; `from_dict` takes Simple-BEV's data_aug_conf.

    final_hw: size of the network's images. resize_lim: bounds of the random scale relative to final_hw. crop_offset: largest
    random shift of the crop in pixels. cams: cameras in slot order. ncams: how many of them a training sample uses.
    """

    final_hw: tuple
    resize_lim: tuple = (1.0, 1.0)
    crop_offset: int = 0
    cams: tuple = CAMERAS
    ncams: int = 6

    def __post_init__(self):
        unknown = [c for c in self.cams if c not in CAMERAS]
        if unknown or len(set(self.cams)) != len(self.cams) or not self.cams:
            raise ValueError(f"cams {list(self.cams)} must be different cameras out of {', '.join(CAMERAS)}")
        if not 1 <= self.ncams:
            raise ValueError(f"ncams is {self.ncams}; it must be at least 1")
        if min(self.final_hw) < 1:
            raise ValueError(f"final_dim {tuple(self.final_hw)} must be positive")
        if not 0 < self.resize_lim[0] <= self.resize_lim[1]:
            raise ValueError(f"resize_lim {list(self.resize_lim)} must be two positive numbers in order")

    @classmethod
    def from_dict(cls, conf):
        """From the lineage's dict. Raises ValueError for a missing or unknown entry."""
        known = {"crop_offset", "resize_lim", "resize_scale", "final_dim", "H", "W", "cams", "ncams"}
        if set(conf) - known or "final_dim" not in conf:
            raise ValueError(f"data_aug_conf needs final_dim and knows {sorted(known)}, but has {sorted(conf)}")
        limits = conf.get("resize_lim")
        if limits is None:
            limits = [conf.get("resize_scale", 1.0)] * 2
        cams = tuple(conf.get("cams", CAMERAS))
        return cls(
            tuple(int(n) for n in conf["final_dim"]),
            tuple(limits),
            int(conf.get("crop_offset", 0)),
            cams,
            int(conf.get("ncams", len(cams))),
        )


@dataclass(frozen=True)
class Draw:
    """One sample's draw. cams: S names, the reference camera first. resize_wh (T,S,2), crop_ltrb (T,S,4): int pixels."""

    cams: tuple
    resize_wh: np.ndarray
    crop_ltrb: np.ndarray


def draw(rng, conf, seqlen, is_train, shuffle_cams, refcam_id):
    """Draw a sample's cameras and crops.

    Args:
        rng: numpy Generator of this sample; None for evaluation, which draws nothing.
        shuffle_cams: draw the reference camera from slots 1 … S-1 (training only) instead of taking refcam_id.
    Raises:
        ValueError: refcam_id is not a slot.
    """
    cams = list(conf.cams)
    if is_train and conf.ncams < len(cams):
        cams = [cams[i] for i in rng.choice(len(cams), conf.ncams, replace=False)]
    if is_train and shuffle_cams:
        refcam_id = int(rng.integers(1, len(cams))) if len(cams) > 1 else 0
    if not 0 <= refcam_id < len(cams):
        raise ValueError(f"refcam_id {refcam_id} is not one of the {len(cams)} camera slots")
    shape = (seqlen, len(cams))
    if is_train:
        resize_wh, crop_ltrb = _draw_crops(rng, conf, shape)
    else:
        height, width = conf.final_hw
        resize_wh = np.broadcast_to(np.array([width, height]), (*shape, 2)).copy()
        crop_ltrb = np.broadcast_to(np.array([0, 0, width, height]), (*shape, 4)).copy()
    slots = list(range(len(cams)))
    slots[0], slots[refcam_id] = slots[refcam_id], slots[0]
    return Draw(tuple(cams[s] for s in slots), resize_wh[:, slots], crop_ltrb[:, slots])


def _draw_crops(rng, conf, shape):
    """Random scale, then a crop around the middle, shifted; every truncation as in the lineage."""
    height, width = conf.final_hw
    scale = rng.uniform(*conf.resize_lim, size=shape)
    shift = rng.uniform(-conf.crop_offset, conf.crop_offset, size=(*shape, 2))
    new = np.stack([width * scale, height * scale], -1).astype(np.int64)
    left_top = ((new - np.array([width, height])) / 2).astype(np.int64) + shift.astype(np.int64)
    return new, np.concatenate([left_top, left_top + np.array([width, height])], -1)
