"""Rows and scene sums -> named figures, each a ratio of sums with its bootstrap interval over scenes.

Scenes, not samples, are drawn again (Efron's percentile bootstrap, over clusters), since the samples of a scene are half
a second apart and far from independent. One seeded draw of scenes serves every figure.
"""

from dataclasses import dataclass

import numpy as np

from train.evaluation.counting import BINS, both_predicted_true, ring_names
from train.evaluation.samples import LENGTH_M, LIDAR_POINTS, VEHICLES_IN_VIEW, VISIBILITY, bucket

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """One ratio.

    group, name: what it says, such as "iou by light" and "night". label: what it was counted on. numerators, denominators:
    (scenes,) int64. value: ratio of their sums, NaN where the denominator is 0. low, high: 95 % interval; NaN for one scene.
    samples: that it rests on.
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

    @property
    def numerator(self):
        return int(self.numerators.sum())

    @property
    def denominator(self):
        return int(self.denominators.sum())


def scene_draws(scenes, seed=0, resamples=RESAMPLES):
    """(resamples, scenes) int64: how often each scene is drawn."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(scenes, np.full(scenes, 1 / scenes), resamples) if scenes else np.zeros((resamples, 0), int)


def interval(numerators, denominators, draws):
    """(low, high) of the ratio of sums over drawn scenes; NaN where there are fewer than two scenes with a denominator."""
    if np.count_nonzero(denominators) < 2:
        return np.nan, np.nan
    above, below = draws @ numerators, draws @ denominators
    ratios = above[below > 0] / below[below > 0]
    return tuple(np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())


class _Ratios:
    """Builds figures over a fixed list of scenes and one set of draws."""

    def __init__(self, evaluation, seed):
        self.scenes = {name: i for i, name in enumerate(evaluation.scenes)}
        self.draws = scene_draws(len(self.scenes), seed)
        self.figures = []

    def add(self, group, name, label, per_scene, samples):
        """per_scene: (scenes, 2) numerators and denominators."""
        above, below = np.asarray(per_scene, np.int64).reshape(-1, 2).T
        value = above.sum() / below.sum() if below.sum() else np.nan
        self.figures.append(
            Figure(group, name, label, above, below, float(value), *interval(above, below, self.draws), samples)
        )

    def over_rows(self, group, name, label, rows, ratio):
        """ratio: (R,3) counts of a row -> numerator, denominator."""
        sums = np.zeros((len(self.scenes), 2), np.int64)
        for row in rows:
            sums[self.scenes[row.scene]] += ratio(row.counts[label])
        self.add(group, name, label, sums, len(rows))


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
    ratios = _Ratios(evaluation, seed)
    labels = list(evaluation.rows[0].counts) if evaluation.rows else []
    for label in labels:
        ratios.over_rows("iou", "all", label, evaluation.rows, _iou)
        ratios.over_rows("precision", "all", label, evaluation.rows, _precision)
        ratios.over_rows("recall", "all", label, evaluation.rows, _recall)
        _best_threshold(evaluation, ratios, label)
    for label in labels:
        for ring, name in enumerate(ring_names()):
            ratios.over_rows("iou by distance", name, label, evaluation.rows, lambda c, ring=ring: _iou(c[ring]))
        _by_rows(evaluation.rows, ratios, label)
    _boxes(evaluation, ratios)
    return ratios.figures


def _by_rows(rows, ratios, label):
    parts = {
        "light": lambda row: row.light,
        "weather": lambda row: row.weather,
        "location": lambda row: row.location,
        "vehicles in view": lambda row: bucket(row.in_view, VEHICLES_IN_VIEW),
    }
    for part, of in parts.items():
        names = sorted({of(row) for row in rows}, key=lambda name: _place(part, name))
        for name in names:
            ratios.over_rows(f"iou by {part}", name, label, [row for row in rows if of(row) == name], _iou)


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


def _best_threshold(evaluation, ratios, label):
    """IoU at the threshold that serves this evaluation best, the convention of map papers: an upper bound, not the headline."""
    curve = threshold_curve(evaluation, label)
    best = max(curve, key=lambda row: row[3])
    per_scene = [_iou(both_predicted_true(sums.histograms[label], best[0])) for sums in evaluation.scenes.values()]
    ratios.add("iou at best threshold", f"{best[0]:.2f}", label, per_scene, len(evaluation.rows))


def _boxes(evaluation, ratios):
    places = dict.fromkeys(place for sums in evaluation.scenes.values() for place in sums.recall)
    for dimension, name in sorted(places, key=lambda place: (place[0], _place(*place))):
        per_scene = [sums.recall.get((dimension, name), (0, 0)) for sums in evaluation.scenes.values()]
        ratios.add(f"recall of boxes by {dimension}", name, "every box", per_scene, len(evaluation.rows))


def threshold_curve(evaluation, label):
    """(threshold, intersection, union, IoU) at every hundredth from 0.01 to 0.99, over all samples."""
    total = sum(sums.histograms[label] for sums in evaluation.scenes.values())
    out = []
    for step in range(1, BINS):
        both, either = (int(n) for n in _iou(both_predicted_true(total, step / BINS)))
        out.append((step / BINS, both, either, both / either if either else 0.0))
    return out


def calibration(evaluation, label, groups=10):
    """How far predicted probabilities are from the share of cells that are true.

    Returns:
        (rows of (lower end, upper end, cells, mean probability, share true), expected calibration error): the error is the
        mean distance of the two last, weighed by cells (Guo et al., 2017). Probabilities are those of the bins' middles.
    """
    total = sum(sums.histograms[label] for sums in evaluation.scenes.values()).sum(0)  # (2, P)
    cells = total.sum(0)
    middles = (np.arange(BINS) + 0.5) / BINS
    rows, error = [], 0.0
    for part in np.array_split(np.arange(BINS), groups):
        count = int(cells[part].sum())
        mean = float((cells[part] * middles[part]).sum() / count) if count else 0.0
        share = float(total[1, part].sum() / count) if count else 0.0
        rows.append((part[0] / BINS, (part[-1] + 1) / BINS, count, mean, share))
        error += count * abs(mean - share)
    return rows, error / cells.sum() if cells.sum() else 0.0
