"""Two evaluations, figure by figure: differences with paired intervals over the scenes that both have."""

from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from train.evaluation.figures import BEST_THRESHOLD, bounds, ratios, scene_draws


@dataclass(frozen=True)
class Difference:
    """b minus a of one figure over the common scenes; low and high: 95 % interval of the difference, NaN for few scenes."""

    group: str
    name: str
    label: str
    a: float
    b: float
    low: float
    high: float
    of_class: str = ""

    @property
    def difference(self):
        return self.b - self.a

    @property
    def is_clear(self):
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def differences(a, b, seed=0):
    """Differences of the figures that two eval.json objects share.

    The same scenes are drawn for both, so that what makes a scene hard cancels out. Metrics that networks bring
    have no intervals.

    Returns:
        (list of Difference, scenes in common).
    Raises:
        ValueError: no scene in common.
    """
    common = [scene for scene in a["scenes"] if scene in set(b["scenes"])]
    if not common:
        raise InputError(
            "the two evaluations have no scene in common; evaluate both on the same val shards, with --val_shards"
        )
    places = [[content["scenes"].index(scene) for scene in common] for content in (a, b)]
    draws = scene_draws(len(common), seed)
    others = {_identity(figure): figure for figure in b["figures"]}
    out = []
    for figure in a["figures"]:
        other = others.get(_identity(figure))
        if other is None:
            continue
        pair = [_ratios(f, place, draws) for f, place in zip((figure, other), places, strict=True)]
        (value_a, drawn_a), (value_b, drawn_b) = pair
        between = bounds(drawn_b - drawn_a) if len(common) > 1 else (np.nan, np.nan)
        out.append(
            Difference(
                figure["group"], figure["name"], figure["label"], value_a, value_b, *between, figure.get("class", "")
            )
        )
    return [*out, *_own_metrics(a, b)], common


def _own_metrics(a, b):
    """Differences of the metrics that networks bring, which are of all scenes together: where both have the same ones."""
    theirs = b.get("metrics", {}) if a["scenes"] == b["scenes"] else {}
    for name, score in a.get("metrics", {}).items():
        values = [np.nan if s["value"] is None else s["value"] for s in (score, theirs.get(name, {"value": None}))]
        if name in theirs:
            yield Difference("metrics", name, "the network's own", *values, np.nan, np.nan)


def _identity(figure):
    # The best threshold differs from run to run: its name is its value.
    name = "best" if figure["group"] == BEST_THRESHOLD else figure["name"]
    return figure["group"], name, figure["label"], figure.get("class", "")


def _ratios(figure, places, draws):
    above, below = (np.array(figure[name], np.float64)[places] for name in ("numerators", "denominators"))
    [value] = ratios(above, below, np.ones((1, len(places))))
    return float(value), ratios(above, below, draws)
