"""Rows and scene sums -> named figures, each a ratio of sums with its bootstrap interval over scenes.

Scenes, not samples, are drawn again (Efron's percentile bootstrap, over clusters), since the samples of a scene are half
a second apart and far from independent. One seeded draw of scenes serves every figure.
"""

from dataclasses import dataclass

import numpy as np

from train.classes import MEAN, key_of, parts_of
from train.evaluation.bins import BINS, both_predicted_true, ring_names
from train.evaluation.samples import LENGTH_M, LIDAR_POINTS, VEHICLES_IN_VIEW, VISIBILITY, bucket

RESAMPLES = 1000
LEVEL = 0.95
CALIBRATION, CALIBRATION_BINS = "calibration error", 10
CONDITIONS = "location, light and weather"
BEST_THRESHOLD, EACH_ITS_OWN = "iou at best threshold", "each its own"


@dataclass(frozen=True)
class Figure:
    """One ratio.

    group, name: what it says, such as "iou by light" and "night". label: what it was counted on. numerators, denominators:
    (scenes,); both may be (scenes, parts), see `ratios`. value: ratio of their sums, NaN where the denominator is 0.
    low, high: 95 % interval; NaN for one scene. samples: that it rests on. of_class: of several classes, or MEAN; "" of one.
    """

    group: str
    name: str
    label: str
    numerators: np.ndarray
    denominators: np.ndarray
    value: float
    low: float
    high: float
    samples: int
    of_class: str = ""

    @property
    def numerator(self):
        return np.abs(self.numerators.sum(0)).sum().item()

    @property
    def denominator(self):
        return int(self.denominators.sum())


def scene_draws(scenes, seed=0, resamples=RESAMPLES):
    """(resamples, scenes) int64: how often each scene is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(scenes, np.full(scenes, 1 / scenes), resamples) if scenes else np.zeros((resamples, 0), int)


def ratios(numerators, denominators, draws):
    """(draws,) float64: the ratio of sums over the scenes of each draw, NaN where the denominator is 0.

    numerators: (scenes,), or (scenes, parts) where the absolute sums of the parts are added, as in a calibration error. Where
    denominators are (scenes, parts) too, the mean of the parts' ratios, of those whose denominator is not 0.
    """
    above, below = draws @ numerators, draws @ denominators
    if below.ndim == 2:
        each = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
        there = (below > 0).sum(1)
        return np.divide(each.sum(1), there, out=np.full(len(draws), np.nan), where=there > 0)
    above = np.abs(above.reshape(len(draws), -1)).sum(1)
    return np.divide(above, below, out=np.full(len(draws), np.nan), where=below > 0)


def bounds(drawn):
    """(low, high): the 95 % interval of what was drawn; NaN where nothing is finite."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return np.nan, np.nan
    return tuple(np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())


def interval(numerators, denominators, draws):
    """(low, high) of the ratio of sums over drawn scenes; NaN where there are fewer than two scenes with a denominator."""
    if np.count_nonzero(denominators.reshape(len(denominators), -1).any(1)) < 2:
        return np.nan, np.nan
    return bounds(ratios(numerators, denominators, draws))


class _Figures:
    """Builds figures over a fixed list of scenes and one set of draws."""

    def __init__(self, evaluation, seed):
        self.scenes = {name: i for i, name in enumerate(evaluation.scenes)}
        self.draws = scene_draws(len(self.scenes), seed)
        self.figures = []

    def add(self, group, name, key, above, below, samples):
        """above, below: numerators and denominators of the scenes. key: of bins.key_of."""
        [value] = ratios(above, below, np.ones((1, len(below)), int))
        label, of_class = parts_of(key)
        bounds_ = interval(above, below, self.draws)
        self.figures.append(Figure(group, name, label, above, below, float(value), *bounds_, samples, of_class))

    def over_rows(self, group, name, key, rows, ratio):
        """ratio: (R,3) counts of a row -> numerator, denominator. Of the mean of classes: of each of them."""
        label, of_class = parts_of(key)
        keys = keys_of(rows, label) if of_class == MEAN else [key]
        sums = np.zeros((len(self.scenes), 2, len(keys)), np.int64)
        for row in rows:
            for place, own in enumerate(keys):
                sums[self.scenes[row.scene], :, place] += ratio(row.counts[own])
        above, below = sums.transpose(1, 0, 2) if of_class == MEAN else sums[..., 0].T
        self.add(group, name, key, above, below, len(rows))


def keys_of(rows, label=None):
    """Keys of the counts of an evaluation's rows, of one label or of all."""
    return [key for key in (rows[0].counts if rows else ()) if label in (None, parts_of(key)[0])]


def labels_of(rows):
    """Names of the labels of an evaluation's rows."""
    return list(dict.fromkeys(parts_of(key)[0] for key in keys_of(rows)))


def headline_of(figures, group, label):
    """The figure of a group and label that speaks for all classes: of one class its own, of several their mean; or None."""
    found = [figure for figure in figures if (figure.group, figure.label) == (group, label)]
    return next((figure for figure in found if figure.of_class in ("", MEAN)), None)


def _iou(counts):
    both, predicted, truth = counts.reshape(-1, 3).sum(0)
    return both, predicted + truth - both


def _precision(counts):
    both, predicted, _ = counts.reshape(-1, 3).sum(0)
    return both, predicted


def _recall(counts):
    both, _, truth = counts.reshape(-1, 3).sum(0)
    return both, truth


def all_figures(evaluation, seed=0):
    """Every figure of an Evaluation: of all cells first, then by ring, light, weather, place and vehicles; recall of boxes."""
    out = _Figures(evaluation, seed)
    keys = _shown_keys(evaluation.rows)
    for key in keys:
        out.over_rows("iou", "all", key, evaluation.rows, _iou)
        out.over_rows("precision", "all", key, evaluation.rows, _precision)
        out.over_rows("recall", "all", key, evaluation.rows, _recall)
        _best_threshold(evaluation, out, key)
        if parts_of(key)[1] == MEAN:
            continue
        gaps, cells = _gaps(evaluation, key)
        out.add(CALIBRATION, "all", key, gaps, cells, len(evaluation.rows))
    for label in keys:
        for ring, name in enumerate(ring_names()):
            out.over_rows("iou by distance", name, label, evaluation.rows, lambda c, ring=ring: _iou(c[ring]))
        _by_rows(evaluation.rows, out, label)
    _boxes(evaluation, out)
    return out.figures


def _shown_keys(rows):
    """Keys of the figures: of several classes, the mean of each label's classes goes before them."""
    out = []
    for label in labels_of(rows):
        own = keys_of(rows, label)
        out += [key_of(label, MEAN), *own] if len(own) > 1 else own
    return out


def _by_rows(rows, out, label):
    parts = {
        "light": lambda row: row.light,
        "weather": lambda row: row.weather,
        "data set": lambda row: row.dataset,
        "location": lambda row: row.location,
        "vehicles in view": lambda row: bucket(row.in_view, VEHICLES_IN_VIEW),
        CONDITIONS: lambda row: f"{row.location}, {row.light}, {row.weather}",
    }
    if len({row.dataset for row in rows}) < 2:
        del parts["data set"]  # of the one set everything is said elsewhere
    for part, of in parts.items():
        names = sorted({of(row) for row in rows}, key=lambda name: _place(part, name))
        for name in names:
            out.over_rows(f"iou by {part}", name, label, [row for row in rows if of(row) == name], _iou)


# Dimensions whose buckets have an order of their own; names of others are sorted as text.
_ORDERED = {
    "vehicles in view": [name for _, name in VEHICLES_IN_VIEW],
    "lidar points": [name for _, name in LIDAR_POINTS],
    "size": [name for _, name in LENGTH_M],
    "visibility": list(VISIBILITY.values()),
}


def _place(dimension, name):
    names = _ORDERED.get(dimension, ())
    return names.index(name) if name in names else len(names), name


def _best_threshold(evaluation, out, key):
    """IoU at the threshold that serves this evaluation best, the convention of map papers: an upper bound, not the headline.

    Of the mean of classes: the mean of each one's at its own best threshold.
    """
    label, of_class = parts_of(key)
    keys = keys_of(evaluation.rows, label) if of_class == MEAN else [key]
    best = [max(threshold_curve(evaluation, own), key=lambda row: row[3])[0] for own in keys]
    per_scene = [
        [_iou(both_predicted_true(sums.histograms[own], threshold)) for own, threshold in zip(keys, best, strict=True)]
        for sums in evaluation.scenes.values()
    ]
    above, below = np.array(per_scene).transpose(2, 0, 1)
    name = f"{best[0]:.2f}"
    if of_class == MEAN:
        name = EACH_ITS_OWN
    else:
        above, below = above[:, 0], below[:, 0]
    out.add(BEST_THRESHOLD, name, key, above, below, len(evaluation.rows))


def _boxes(evaluation, out):
    places = dict.fromkeys(place for sums in evaluation.scenes.values() for place in sums.recall)
    for dimension, name in sorted(places, key=lambda place: (place[0], _place(*place))):
        per_scene = [sums.recall.get((dimension, name), (0, 0)) for sums in evaluation.scenes.values()]
        out.add(f"recall of boxes by {dimension}", name, "every box", *np.array(per_scene).T, len(evaluation.rows))


def threshold_curve(evaluation, label):
    """(threshold, intersection, union, IoU) at every hundredth from 0.01 to 0.99, over all samples."""
    total = sum(sums.histograms[label] for sums in evaluation.scenes.values())
    out = []
    for step in range(1, BINS):
        both, either = (int(n) for n in _iou(both_predicted_true(total, step / BINS)))
        out.append((step / BINS, both, either, both / either if either else 0.0))
    return out


def calibration(histogram):
    """How far predicted probabilities are from the share of cells that are true.

    Args:
        histogram: (R,2,P) of one label, see `train.evaluation.counting`.
    Returns:
        CALIBRATION_BINS rows of (lower end, upper end, cells, sum of their probabilities, cells that are true). The
        probabilities are those of the histogram bins' middles.
    """
    total = histogram.sum(0)
    rows = []
    for part in np.array_split(np.arange(BINS), CALIBRATION_BINS):
        cells = total[:, part].sum(0)
        # In whole numbers up to the last division, so that the sum does not depend on the order.
        probability = int((cells * (2 * part + 1)).sum()) / (2 * BINS)
        rows.append((part[0] / BINS, (part[-1] + 1) / BINS, int(cells.sum()), probability, int(total[1, part].sum())))
    return rows


def _gaps(evaluation, label):
    """Numerators (scenes, CALIBRATION_BINS) and denominators (scenes,) of the expected calibration error (Guo et al., 2017).

    The error is the mean distance of a bin's mean probability from its share of true cells, weighed by cells: the sum of
    probabilities less the true cells, of each bin over all scenes, without its sign, over all cells.
    """
    rows = [calibration(sums.histograms[label]) for sums in evaluation.scenes.values()]
    _, _, cells, probability, true = np.array(rows).transpose(2, 0, 1)
    return probability - true, cells.sum(1).astype(np.int64)
