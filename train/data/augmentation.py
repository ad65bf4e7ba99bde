"""What an experiment chooses about a sample: cameras, reference camera, and where each image is resized and cropped."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Augmentation:
    """One sample's draw. cams: S names, the reference camera first. resize_wh (T,S,2), crop_ltrb (T,S,4): int pixels."""

    cams: tuple
    resize_wh: np.ndarray
    crop_ltrb: np.ndarray


def drawn_cams(rng, conf):
    """Names of the cameras that a sample uses, in slot order: what draw_augmentation() draws first. Arguments as there."""
    if rng is None or conf.ncams >= len(conf.cams):
        return list(conf.cams)
    return [conf.cams[i] for i in rng.choice(len(conf.cams), conf.ncams, replace=False)]


def draw_augmentation(rng, conf, seqlen):
    """Augmentation a sample's cameras and crops.

    Args:
        rng: numpy Generator of this sample; None for evaluation, which draws nothing. conf: AugmentConfig.
    Raises:
        ValueError: the reference camera is not a slot.
    """
    cams, reference = drawn_cams(rng, conf), conf.refcam_id
    if rng is not None and conf.shuffle_cams:
        reference = int(rng.integers(1, len(cams))) if len(cams) > 1 else 0
    if not 0 <= reference < len(cams):
        raise ValueError(f"refcam_id {reference} is not one of the {len(cams)} camera slots")
    shape = (seqlen, len(cams))
    if rng is not None:
        resize_wh, crop_ltrb = _draw_crops(rng, conf, shape)
    else:
        height, width = conf.final_hw
        resize_wh = np.broadcast_to(np.array([width, height]), (*shape, 2)).copy()
        crop_ltrb = np.broadcast_to(np.array([0, 0, width, height]), (*shape, 4)).copy()
    slots = list(range(len(cams)))
    slots[0], slots[reference] = slots[reference], slots[0]
    return Augmentation(tuple(cams[s] for s in slots), resize_wh[:, slots], crop_ltrb[:, slots])


def _draw_crops(rng, conf, shape):
    """Random scale, then a crop around the middle, shifted; every truncation as in the lineage."""
    height, width = conf.final_hw
    scale = rng.uniform(*conf.resize_lim, size=shape)
    shift = rng.uniform(-conf.crop_offset, conf.crop_offset, size=(*shape, 2))
    new = np.stack([width * scale, height * scale], -1).astype(np.int64)
    left_top = ((new - np.array([width, height])) / 2).astype(np.int64) + shift.astype(np.int64)
    return new, np.concatenate([left_top, left_top + np.array([width, height])], -1)
