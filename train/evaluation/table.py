"""Evaluations and comparisons as text of at most 79 columns."""

import math

import numpy as np

from common.plain import one_line
from common.progress import counted
from train.classes import MEAN
from train.evaluation.figures import BEST_THRESHOLD, CALIBRATION, all_figures, headline_of, labels_of

NAME_COLUMNS = 30


def lines_of(evaluation, headline, figures=None, seed=0):
    """Lines of an evaluation's table: a block a group of figures, a column of IoU with its interval a label.

    headline: label whose figures come first and alone where labels would repeat one another.
    """
    figures = all_figures(evaluation, seed) if figures is None else figures
    labels = labels_of(evaluation.rows)
    labels = [headline, *(name for name in labels if name != headline)]
    is_one = headline_of(figures, "iou", headline).of_class != MEAN
    out = _one_class(figures, labels) if is_one else _by_class(figures, labels)
    own = [f for f in figures if f.label in (headline, "every box") and f.group.partition(" ")[1]]
    own = [f for f in own if f.of_class in ("", MEAN)]
    group = ""
    for figure in own:
        if figure.group in (BEST_THRESHOLD, CALIBRATION) or figure.group.endswith("category and distance"):
            continue
        if figure.group != group:
            group = figure.group
            out += ["", group.replace("iou", "IoU").replace("recall", "Recall")]
        name = fitted(figure.name, NAME_COLUMNS - 2)
        out.append(f"  {name:<{NAME_COLUMNS - 2}} {span(figure)}  {_share(figure)}")
    out.append("")
    for group, title in (("precision",) * 2, ("recall",) * 2, (CALIBRATION, "expected calibration error")):
        if figure := headline_of(figures, group, headline):
            out.append(f"{title.capitalize():<{NAME_COLUMNS}} {span(figure)}")
    return out


def _one_class(figures, labels):
    """Lines of the IoU of one class, label by label."""
    out = []
    for label in labels:
        iou, best = (headline_of(figures, group, label) for group in ("iou", BEST_THRESHOLD))
        mark = "  <- headline" if label == labels[0] else ""
        out.append(f"{label:<{NAME_COLUMNS}} IoU {span(iou)}{mark}")
        out.append(f"{'':<{NAME_COLUMNS}} {_cells(iou)}; {best.value:.4f} at {best.name}")
    return out


def _by_class(figures, labels):
    """A table of several classes, label by label: IoU at 0.5, and at the best threshold, which map papers report.

    Of labels after the first, classes that it counts just so, as it does what is of the map alone, are left out.
    """
    out = [f"{'IoU by class':<{NAME_COLUMNS}} {'at 0.5':<24} at its best threshold"]
    counted = {}
    for label in labels:
        out.append(label + ("  <- headline" if label == labels[0] else ""))
        for iou in (f for f in figures if (f.group, f.label) == ("iou", label)):
            if counted.setdefault(iou.of_class, iou) is not iou and _is_same(counted[iou.of_class], iou):
                continue
            best = next(f for f in figures if (f.group, f.label, f.of_class) == (BEST_THRESHOLD, label, iou.of_class))
            at = "" if iou.of_class == MEAN else f" at {best.name}"
            name = fitted(iou.of_class, NAME_COLUMNS - 2)
            out.append(f"  {name:<{NAME_COLUMNS - 2}} {span(iou)} {span(best).split()[0]}{at}")
    return out


def _is_same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("numerators", "denominators"))


def score_lines(scores):
    """Lines of the network's own metrics."""
    return [
        f"{fitted(name, NAME_COLUMNS):<{NAME_COLUMNS}} {score.value:.4f}  "
        f"({'higher' if score.higher_is_better else 'lower'} is better)"
        for name, score in scores.items()
    ]


def fitted(name, columns):
    """The name in so many columns: it loses its beginning, since what tells it from its neighbours is at the end."""
    name = one_line(name)
    return name if len(name) <= columns else f"...{name[3 - columns :]}"


def span(figure):
    """ "0.4321 [0.4100, 0.4550]"; without an interval where there is none."""
    if math.isnan(figure.value):
        return f"{'-':<24}"
    if math.isnan(figure.low):
        return f"{figure.value:<6.4f}{'':<18}"
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def _cells(figure):
    return f"{figure.numerator} of {figure.denominator} cells"


def _share(figure):
    if figure.group.startswith("recall"):
        return f"{figure.denominator} cells"
    return f"{figure.samples} samples"


def robustness_lines(damaged):
    """Lines of what train.evaluation.robustness gave."""
    out = ["", f"{'Under damage':<42} {'IoU':>6} {'change':>8}"]
    for row in damaged["rows"]:
        change = f"{row['change']:>+8.4f}{_interval(row, 'change_', '+.4f')}"
        out.append(f"  {fitted(row['name'], 40):<40} {row['iou']:>6.4f} {change}")
    for name, title in (("mRR", "Mean resilience rate (mRR)"), ("mCE", "Mean corruption error (mCE)")):
        if name in damaged:
            out.append(f"{title:<42} {damaged[name]:>6.1f} %{_interval(damaged, f'{name}_', '.1f')}")
    return out


def _interval(found, prefix, form):
    low, high = (found.get(f"{prefix}{end}") for end in ("low", "high"))
    return "" if low is None else f" [{low:{form}}, {high:{form}}]"


def comparison_lines(differences, scenes, names):
    """Lines of a comparison: the two values and the difference with its interval; * where that leaves out zero."""
    out = [
        f"A: {names[0]}",
        f"B: {names[1]}",
        f"{counted(len(scenes), 'scene')} in common; * the interval leaves out 0",
        "",
    ]
    out.append(f"{'':<{NAME_COLUMNS + 9}} {'A':>6} {'B':>6}  {'B - A':>7}")
    title = None
    for one in differences:
        if (one.group, one.label, one.of_class) != title:
            title = one.group, one.label, one.of_class
            out.append(f"{one.group} ({', '.join(filter(None, title[1:]))})"[:79])
        bounds = "" if math.isnan(one.low) else f" [{one.low:+.4f}, {one.high:+.4f}]{'*' if one.is_clear else ''}"
        values = (
            f"{_four(one.a)} {_four(one.b)} {one.difference:>+8.4f}" if _both(one) else f"{_four(one.a)} {_four(one.b)}"
        )
        out.append(f"  {fitted(one.name, NAME_COLUMNS):<{NAME_COLUMNS}} {values}{bounds}"[:79])
    return out


def _both(one):
    return not (math.isnan(one.a) or math.isnan(one.b))


def _four(value):
    return f"{'-':>6}" if math.isnan(value) else f"{value:6.4f}"


def scalars(figures):
    """TensorBoard tag -> value of the figures that are curves over checkpoints."""
    wanted = ("iou", "precision", "recall", "iou by distance", "iou by light", "iou by weather")
    out = {}
    for figure in figures:
        if figure.group in wanted and not math.isnan(figure.value):
            place = "/".join(filter(None, (figure.label, figure.of_class, figure.group, figure.name)))
            out[f"eval/{place}".replace(" ", "_")] = figure.value
    return out
