"""BEV maps as pictures: truth, prediction, and where the two differ. Forward is up, whichever camera is the reference."""

import numpy as np

from train.pictures.bev import Ground, draw_ego, draw_rings, hatch
from train.pictures.palette import (
    FALSE,
    GROUND,
    HIT,
    MASKED,
    MISSED,
    OUTSIDE,
    PROBABILITY_RAMP,
    TRUTH,
    ramp,
)
from train.pictures.text import tag

NOTHING, IS_HIT, IS_FALSE, IS_MISSED, IS_MASKED = range(5)
ERROR_COLOURS = np.array([GROUND, HIT, FALSE, MISSED, MASKED], np.uint8)
_MARGIN_M = 2.5  # the reference camera sits this far from the ego origin at most


def reach_of(maps):
    """Metres from the car to the far side of its BEV maps, for a Ground that cuts nothing off when the front is the reference."""
    return max(map(abs, (*maps.low_xz_m, *maps.high_xz_m))) + _MARGIN_M


def error_codes(truth, valid, prediction):
    """(Z, X) uint8 NOTHING, IS_HIT, IS_FALSE, IS_MISSED or IS_MASKED of maps (Z, X); predicted is what is over 0.5."""
    true, predicted = np.asarray(truth) > 0.5, np.asarray(prediction) > 0.5
    codes = np.where(true, np.where(predicted, IS_HIT, IS_MISSED), np.where(predicted, IS_FALSE, NOTHING))
    return np.where(np.asarray(valid) > 0, codes, IS_MASKED).astype(np.uint8)


def iou_of(codes):
    """Hits over hits, false and missed cells; 0 where there is none of them."""
    hit, false, missed = ((codes == code).sum() for code in (IS_HIT, IS_FALSE, IS_MISSED))
    return float(hit / (hit + false + missed)) if hit + false + missed else 0.0


def cells_under(maps, shape_zx, ground):
    """The cell of maps (Z, X) under every pixel of a Ground: (rows, columns, inside), each (size, size)."""
    xy = ground.of_pixels()
    # At the camera's own height, so that its tilt moves nothing.
    points = np.concatenate([xy, np.full((*xy.shape[:2], 1), maps.ego_T_cam0[2, 3])], -1)
    in_cam0 = (points - maps.ego_T_cam0[:3, 3]) @ maps.ego_T_cam0[:3, :3]
    low, high, cells = np.array(maps.low_xz_m), np.array(maps.high_xz_m), np.array(shape_zx[::-1])
    index = np.floor((in_cam0[..., [0, 2]] - low) / (high - low) * cells).astype(int)
    inside = ((index >= 0) & (index < cells)).all(-1)
    index = index.clip(0, cells - 1)
    return index[..., 1], index[..., 0], inside


def laid_out(colours, maps, ground):
    """(size, size, 3) uint8: cell colours (Z, X, 3) laid on the ground, without lines."""
    rows, columns, inside = cells_under(maps, colours.shape[:2], ground)
    return np.where(inside[..., None], colours[rows, columns], np.array(OUTSIDE, np.uint8))


def masked_pixels(maps, ground):
    """(size, size) bool: the pixels over cells that loss and IoU look away from."""
    rows, columns, inside = cells_under(maps, maps.valid.shape, ground)
    return inside & (maps.valid[rows, columns] == 0)


def _finished(image, ground):
    draw_rings(image, ground, labels=False)
    draw_ego(image, ground)
    return image


def draw_truth(maps, ground):
    """(size, size, 3) uint8: true cells, and the masked area hatched."""
    colours = np.where(maps.truth[..., None] > 0.5, np.array(TRUTH, np.uint8), np.array(GROUND, np.uint8))
    image = laid_out(colours, maps, ground)
    masked = masked_pixels(maps, ground)
    image[masked] = image[masked] // 3
    hatch(image, masked)
    return _finished(image, ground)


def draw_values(values, maps, ground, table=PROBABILITY_RAMP, low=0.0, high=1.0):
    """(size, size, 3) uint8: a map (Z, X) of values between low and high in the colours of a ramp."""
    return _finished(laid_out(ramp(table, values, low, high), maps, ground), ground)


def draw_errors(maps, ground):
    """(size, size, 3) uint8: hit, false and missed cells, the masked area hatched, and the IoU of this sample."""
    codes = error_codes(maps.truth, maps.valid, maps.prediction)
    colours = ERROR_COLOURS[np.where(codes == IS_MASKED, NOTHING, codes)]
    image = laid_out(colours, maps, ground)
    hatch(image, masked_pixels(maps, ground))
    image = _finished(image, ground)
    tag(image, f"IoU {iou_of(codes):.3f}", (4, 4), 8 if ground.size_px < 300 else 10)
    return image


def ground_for(maps, size_px):
    """The Ground of that size that shows the maps whole."""
    return Ground(size_px, reach_of(maps))
