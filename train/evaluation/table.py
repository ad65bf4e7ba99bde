"""Evaluations and comparisons as text of at most 79 columns."""

import math

from common.plain import one_line
from common.progress import counted
from train.classes import MEAN
from train.evaluation.figures import CALIBRATION, all_figures, headline_of, labels_of

NAME_COLUMNS = 30


def lines_of(evaluation, headline, figures=None, seed=0):
    """Lines of an evaluation's table: a block a group of figures, a column of IoU with its interval a label.

    headline: label whose figures come first and alone where labels would repeat one another.
    """
    figures = all_figures(evaluation, seed) if figures is None else figures
    labels = labels_of(evaluation.rows)
    out = []
    for label in [headline, *(name for name in labels if name != headline)]:
        mark = "  <- headline" if label == headline else ""
        out.append(f"{label:<{NAME_COLUMNS}} IoU {span(headline_of(figures, 'iou', label))}{mark}")
        for iou in (f for f in figures if (f.group, f.label) == ("iou", label) and f.of_class != MEAN):
            best = next(
                f for f in figures if (f.group, f.label, f.of_class) == ("iou at best threshold", label, iou.of_class)
            )
            if iou.of_class:
                name = fitted(iou.of_class, NAME_COLUMNS - 2)
                out.append(f"  {name:<{NAME_COLUMNS - 2}} IoU {span(iou)}")
            out.append(f"{'':<{NAME_COLUMNS}} {_cells(iou)}; {best.value:.4f} at {best.name}")
    own = [f for f in figures if f.label in (headline, "every box") and f.group.partition(" ")[1]]
    own = [f for f in own if f.of_class in ("", MEAN)]
    group = ""
    for figure in own:
        if figure.group in ("iou at best threshold", CALIBRATION) or figure.group.endswith("category and distance"):
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
