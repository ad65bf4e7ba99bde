"""What an experiment chooses about a sample: cameras, reference camera, where each image is resized and cropped, and what
training does besides: to the grid, to colours, and by leaving cameras out.
"""

from dataclasses import dataclass, replace

import numpy as np

from common.errors import InputError
from train.data.bev_augmentation import draw_bev, draws_bev
from train.data.colours import draw_colours
from train.data.order import BEV_STREAM, COLOUR_STREAM, DROP_STREAM

UNSEEN_PX = -1e6  # the principal point of a camera that is left out: nothing in the grid falls into its image


@dataclass(frozen=True)
class Augmentation:
    """How one sample is augmented. cams: S names, the reference camera first. resize_wh (T,S,2), crop_ltrb (T,S,4): int
    pixels, of images that are squeezed; see `placed` for others. moved_T_ref (4,4): of the grid, see bev_augmentation; None
    where it stays. dropped (S,) bool: cameras left out, or None. colours (T,S,3,4): see colours; None where they stay.
    """

    cams: tuple
    resize_wh: np.ndarray
    crop_ltrb: np.ndarray
    moved_T_ref: np.ndarray | None = None
    dropped: np.ndarray | None = None
    colours: np.ndarray | None = None


def drawn_cams(rng, conf):
    """Names of the cameras that a sample uses, in slot order: what draw_augmentation() draws first. Arguments as there."""
    if rng is None or conf.ncams >= len(conf.cams):
        return list(conf.cams)
    return [conf.cams[i] for i in rng.choice(len(conf.cams), conf.ncams, replace=False)]


def draw_augmentation(rng, conf, seqlen, past=0):
    """Augmentation a sample's cameras and crops.

    Args:
        rng: numpy Generator of this sample; None for evaluation, which draws nothing. conf: AugmentConfig. seqlen: keyframes.
        past: keyframes before the present, drawn one by one after it: however many there are, the present is drawn alike.
    Raises:
        ValueError: the reference camera is not a slot.
    """
    cams, reference = drawn_cams(rng, conf), conf.refcam_id
    if rng is not None and conf.shuffle_cams:
        reference = int(rng.integers(1, len(cams))) if len(cams) > 1 else 0
    if not 0 <= reference < len(cams):
        raise InputError(f"refcam_id {reference} is not one of the {len(cams)} camera slots")
    shape = (seqlen + past, len(cams))
    if rng is not None:
        parts = [_draw_crops(rng, conf, (count, len(cams))) for count in (seqlen, *[1] * past)]
        resize_wh, crop_ltrb = map(np.concatenate, zip(*parts, strict=True))
    else:
        height, width = conf.final_hw
        resize_wh = np.broadcast_to(np.array([width, height]), (*shape, 2)).copy()
        crop_ltrb = np.broadcast_to(np.array([0, 0, width, height]), (*shape, 4)).copy()
    slots = list(range(len(cams)))
    slots[0], slots[reference] = slots[reference], slots[0]
    return Augmentation(tuple(cams[s] for s in slots), resize_wh[:, slots], crop_ltrb[:, slots])


def augmented(drawn, conf, rng_of):
    """An Augmentation with what training does besides; each of it has random numbers of its own.

    conf: AugmentConfig. rng_of: stream of random numbers -> numpy Generator of this sample.
    """
    shape, more = drawn.resize_wh.shape[:2], {}
    if draws_bev(conf):
        more["moved_T_ref"] = draw_bev(rng_of(BEV_STREAM), conf)
    if conf.photometric:
        more["colours"] = draw_colours(rng_of(COLOUR_STREAM), conf.photometric, shape)
    if conf.drop_cameras:
        more["dropped"] = _drop(rng_of(DROP_STREAM), conf.drop_cameras, shape[1])
    return replace(drawn, **more)


def colours_of(drawn):
    """(T,S,3,4) of an Augmentation, in which cameras that are left out are black; None where all colours stay."""
    if drawn.dropped is None:
        return drawn.colours
    shape = drawn.resize_wh.shape[:2]
    colours = (
        np.broadcast_to(np.eye(3, 4, dtype=np.float32), (*shape, 3, 4)) if drawn.colours is None else drawn.colours
    )
    return colours * ~drawn.dropped[:, None, None]


def _drop(rng, share, cameras):
    """(cameras,) bool: each with that probability, but never all."""
    draws = rng.random(cameras)
    dropped = draws < share
    dropped[draws.argmax()] = False
    return dropped


def _draw_crops(rng, conf, shape):
    """Random scale, then a crop around the middle, shifted; every truncation as in Simple-BEV."""
    height, width = conf.final_hw
    scale = rng.uniform(*conf.resize_lim, size=shape)
    shift = rng.uniform(-conf.crop_offset, conf.crop_offset, size=(*shape, 2))
    new = np.stack([width * scale, height * scale], -1).astype(np.int64)
    left_top = _middle(new, np.array([width, height])) + shift.astype(np.int64)
    return new, np.concatenate([left_top, left_top + np.array([width, height])], -1)


def placed(resize_wh, crop_ltrb, sizes_hw, conf):
    """What an Augmentation has drawn for some images, as it is done to images of these sizes.

    With conf.crop an image keeps its shape: drawn alike, it is resized so that it would just cover final_hw, times the drawn
    scale, and the drawn shift goes from its middle, or its bottom.

    Args:
        resize_wh, crop_ltrb: (S,2) and (S,4) of an Augmentation. sizes_hw: (S,2) stored sizes. conf: AugmentConfig.
    Returns:
        resize_wh (S,2), crop_ltrb (S,4), int64.
    """
    if not conf.crop:
        return resize_wh, crop_ltrb
    final_wh = np.array(conf.final_hw[::-1])
    sizes_wh = np.asarray(sizes_hw)[:, ::-1]
    cover = (final_wh / sizes_wh).max(1, keepdims=True)
    new = np.rint(sizes_wh * cover * (resize_wh[:, :1] / final_wh[0])).astype(np.int64)
    shift = crop_ltrb[:, :2] - _middle(resize_wh, final_wh)
    left_top = _middle(new, final_wh)
    if conf.crop == "bottom":
        left_top[:, 1] = new[:, 1] - final_wh[1]
    left_top = left_top + shift
    return new, np.concatenate([left_top, left_top + final_wh], 1)


def _middle(size_wh, final_wh):
    """The left upper corner of the middle of an image."""
    return ((size_wh - final_wh) / 2).astype(np.int64)
