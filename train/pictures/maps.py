"""BEV maps as pictures: truth, prediction, and where the two differ. Forward is up, whichever camera is the reference."""

import numpy as np

from train.pictures.bev import draw_ego, draw_rings, hatch
from train.pictures.palette import (
    FALSE,
    GROUND,
    HIT,
    MASKED,
    MISSED,
    OUTSIDE,
    PROBABILITY_RAMP,
    TRUTH,
    class_colours,
    dimmed,
    ramp,
)

NOTHING, IS_HIT, IS_FALSE, IS_MISSED, IS_MASKED = range(5)
ERROR_COLOURS = np.array([GROUND, HIT, FALSE, MISSED, MASKED], np.uint8)
_NOTHING_SHARE = 0.02  # a value this far up its ramp looks like the ground anyway
_FAINT_SHARE = 0.1  # the same of several classes, which would lie over one another as a haze
_MARGIN_M = 2.5  # the reference camera sits this far from the ego origin at most


def reach_of(maps):
    """Metres from the car to the far side of its BEV maps: a Ground of it cuts nothing off if the front is the reference."""
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
    # At the height of the frame's origin, so that a camera's tilt moves nothing.
    points = np.concatenate([xy, np.full((*xy.shape[:2], 1), maps.ego_T_ref[2, 3])], -1)
    in_ref = (points - maps.ego_T_ref[:3, 3]) @ np.linalg.inv(maps.ego_T_ref[:3, :3]).T
    low, high, cells = np.array(maps.low_xz_m), np.array(maps.high_xz_m), np.array(shape_zx[::-1])
    index = np.floor((in_ref[..., [0, 2]] - low) / (high - low) * cells).astype(int)
    inside = ((index >= 0) & (index < cells)).all(-1)
    index = index.clip(0, cells - 1)
    return index[..., 1], index[..., 0], inside


def laid_out(colours, shown, maps, ground):
    """(size, size, 3) uint8: rings and the car, and over them the colours (Z, X, 3) of the cells that are `shown` (Z, X)."""
    rows, columns, inside = cells_under(maps, shown.shape, ground)
    image = ground.empty()
    image[~inside] = OUTSIDE
    draw_rings(image, ground, labels=False)
    on = inside & shown[rows, columns]
    image[on] = colours[rows[on], columns[on]]
    draw_ego(image, ground)
    return image


def hatch_masked(image, maps, ground):
    """Hatch the ignored cells, which loss and IoU leave out, in place."""
    ignored = maps.ignored
    rows, columns, inside = cells_under(maps, ignored.shape, ground)
    hatch(image, inside & ignored[rows, columns])


def draw_truth(maps, ground):
    """(size, size, 3) uint8: true cells, and the masked area hatched, darker where it is true.

    Several classes have a colour each, those of fewer cells on top.
    """
    each, colours = list(maps.by_class()), _truth_colours(maps)
    drawn = np.zeros((*maps.ignored.shape, 3), np.uint8)
    for k in largest_first([truth for truth, _, _ in each]):
        truth, valid, _ = each[k]
        own = np.where(valid[..., None] > 0, np.uint8(colours[k]), np.uint8(dimmed(colours[k], 0.3)))
        drawn = np.where(truth[..., None] > 0.5, own, drawn)
    image = laid_out(drawn, maps.there, maps, ground)
    hatch_masked(image, maps, ground)
    return image


def largest_first(layers):
    """Numbers of maps (K, Z, X) in the order in which they are drawn over one another, so that small ones are seen."""
    return np.argsort([-np.sum(layer, dtype=float) for layer in layers], kind="stable")


def _truth_colours(maps):
    return class_colours(len(maps.class_names)) if maps.class_names else [TRUTH]


def draw_prediction(maps, ground):
    """(size, size, 3) uint8: probabilities as draw_values has them; of several classes each over those of more cells, and as
    opaque as it is likely."""
    if not maps.class_names:
        return draw_values(maps.prediction, maps, ground)
    drawn = np.broadcast_to(np.array(GROUND, float), (*maps.prediction.shape[1:], 3))
    for k in largest_first(maps.prediction):
        share = maps.prediction[k, ..., None]
        drawn = share * class_colours(len(maps.class_names))[k] + (1 - share) * drawn
    return laid_out(drawn.round().astype(np.uint8), maps.prediction.max(0) > _FAINT_SHARE, maps, ground)


def draw_values(values, maps, ground, table=PROBABILITY_RAMP, low=0.0, high=1.0):
    """(size, size, 3) uint8: a map (Z, X) of values between low and high in a ramp's colours; those near low are ground."""
    return laid_out(ramp(table, values, low, high), values > low + _NOTHING_SHARE * (high - low), maps, ground)


def draw_errors(maps, ground):
    """(size, size, 3) uint8: hit, false and missed cells, and the masked area hatched."""
    worst = worst_codes(maps)
    counted = (worst != NOTHING) & (worst != IS_MASKED)
    image = laid_out(ERROR_COLOURS[worst], counted, maps, ground)
    hatch_masked(image, maps, ground)
    return image


def worst_codes(maps):
    """(Z, X) error codes; of several classes the worst in each cell: missed, then false."""
    each = [error_codes(*one) for one in maps.by_class()]
    worst = np.max([np.where(codes == IS_MASKED, NOTHING, codes) for codes in each], 0)
    return np.where(np.all([codes == IS_MASKED for codes in each], 0), IS_MASKED, worst)


def mean_iou(maps):
    """IoU of one sample; of several classes the mean of those in which there is something, 0 where there is nothing in any."""
    each = [error_codes(*one) for one in maps.by_class()]
    found = [iou_of(codes) for codes in each if np.isin(codes, (IS_HIT, IS_FALSE, IS_MISSED)).any()]
    return sum(found) / len(found) if found else 0.0
