"""Charts of the report as SVG text: curves of a training, figures with intervals, and tables as colours. Needs matplotlib.

Text stays text, so that it can be searched and takes the page's font; a chart is some ten kilobytes.
"""

import html
import io
import math
import re
import warnings

import numpy as np

from common.errors import InputError
from common.plain import one_line

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's, told apart by everyone
CHART_INCHES = (6.4, 3.2)
MOST_NAME = 40  # characters of a name in a chart
# Colours that follow the page's, light or dark.
INK, GRID = "#010203", "#040506"
_OF_PAGE = {INK: "currentColor", GRID: "var(--grid)"}
MOST_POINTS = 400  # of a curve; longer ones are thinned by means


def _figure(inches=CHART_INCHES):
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("train.report needs matplotlib and jinja2") from None
    figure = Figure(inches, layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure, title):
    import matplotlib
    from matplotlib.text import Text

    out = io.StringIO()
    # A fixed salt and no date: the same figures give the same page. Names may hold $, which is no formula: of texts that are
    # there and of those that are made while it draws.
    settings = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10, "font.family": "sans-serif"}
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        if text.get_color() == "black":
            text.set_color(INK)
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(color=INK, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_edgecolor(INK)
    with matplotlib.rc_context({**settings, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's own font has it, or not
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    for colour, own in _OF_PAGE.items():
        text = text.replace(colour, own)
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _plain(axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def thinned(steps, values, most=MOST_POINTS):
    """At most `most` points of a curve: means of neighbouring ones."""
    if len(steps) <= most:
        return np.asarray(steps, float), np.asarray(values, float)
    parts = np.array_split(np.arange(len(steps)), most)
    return tuple(np.array([np.mean(np.asarray(a)[part]) for part in parts]) for a in (steps, values))


def curves(series, title, ylabel, log=False):
    """Curves over updates. series: name -> (steps, values)."""
    figure = _figure()
    axes = figure.subplots()
    for (name, (steps, values)), colour in zip(series.items(), _cycle(), strict=False):
        axes.plot(*thinned(steps, values), color=colour, linewidth=1.4, label=_label(name))
    axes.set(xlabel="update", ylabel=ylabel, title=one_line(title, 2 * MOST_NAME), yscale="log" if log else "linear")
    _plain(axes)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _svg(figure, title)


def _label(name):
    """A name as a chart has room for it; a legend would leave out one that begins with an underscore."""
    name = one_line(name, MOST_NAME)
    return f" {name}" if name.startswith("_") else name


def _cycle():
    while True:
        yield from COLOURS


def bars(groups, names, title, xlabel):
    """Horizontal bars with intervals. groups: run -> list of (value, low, high) in the order of names; NaN leaves a gap."""
    figure = _figure((CHART_INCHES[0], 0.9 + 0.36 * max(len(names), 2) * max(len(groups), 1) ** 0.5))
    axes = figure.subplots()
    height = 0.8 / max(len(groups), 1)
    for g, ((run, rows), colour) in enumerate(zip(groups.items(), _cycle(), strict=False)):
        places = np.arange(len(names)) + (g - (len(groups) - 1) / 2) * height
        values = np.array([row[0] for row in rows], float)
        axes.barh(places, np.nan_to_num(values), height * 0.92, color=colour, alpha=0.85, label=_label(run))
        for place, (value, low, high) in zip(places, rows, strict=True):
            if not math.isnan(value):
                axes.text(
                    np.nanmax([value, high]),
                    place,
                    f"  {value:.3f}",
                    va="center",
                    fontsize=min(9, 26 * height),
                    color=INK,
                )
            if not any(map(math.isnan, (value, low, high))):
                axes.plot([low, high], [place, place], color=INK, linewidth=1.2)
    axes.set(
        yticks=np.arange(len(names)),
        yticklabels=list(map(_label, names)),
        xlabel=xlabel,
        title=one_line(title, 2 * MOST_NAME),
        xlim=(0, 1.14 * axes.get_xlim()[1]),  # with room for the numbers
    )
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if len(groups) > 1:
        axes.legend(frameon=False)
    return _svg(figure, title)


def threshold_chart(series, title):
    """IoU over the threshold. series: name -> list of (threshold, IoU); the best of each is marked, and 0.5."""
    figure = _figure()
    axes = figure.subplots()
    axes.axvline(0.5, color="#888888", linewidth=0.8, linestyle="--")
    for (name, points), colour in zip(series.items(), _cycle(), strict=False):
        thresholds, values = zip(*points, strict=True)
        axes.plot(thresholds, values, color=colour, linewidth=1.6, label=_label(name))
        best = int(np.argmax(values))
        axes.plot(thresholds[best], values[best], "o", color=colour, markersize=5)
    axes.set(
        xlabel="threshold of the predicted probability",
        ylabel="IoU",
        title=one_line(title, 2 * MOST_NAME),
        xlim=(0, 1),
        ylim=(0, None),
    )
    _plain(axes)
    beside = (
        {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(series) > 3 else {}
    )  # so many curves leave no room
    axes.legend(frameon=False, **beside)
    return _svg(figure, title)


def sorted_scenes(values, title):
    """IoU of every scene, worst first. values: scene -> IoU."""
    figure = _figure()
    axes = figure.subplots()
    order = sorted(values, key=values.get)
    axes.bar(range(len(order)), [values[name] for name in order], color=COLOURS[0], width=0.9)
    axes.set(ylabel="IoU", title=one_line(title, 2 * MOST_NAME), xlabel="scene, worst first", ylim=(0, None))
    if len(order) <= 30:
        axes.set_xticks(range(len(order)), list(map(_label, order)), rotation=90, fontsize=8)
        for place, name in enumerate(order):
            axes.text(place, values[name], f" {values[name]:.3f}", ha="center", va="bottom", rotation=90, fontsize=7)
        axes.set_ylim(0, 1.25 * max(values.values()) or 1.0)
    else:
        axes.set_xticks([])
    _plain(axes)
    return _svg(figure, title)


def heat_table(figures, rows, columns, title):
    """A table as colours, with intervals and counts in its cells; dark is high.

    figures: (row, column) -> (value, low, high, count); a cell is empty where there is none or its value is NaN.
    """
    figure = _figure((CHART_INCHES[0], 0.8 + 0.48 * len(rows)))
    axes = figure.subplots()
    nothing = (math.nan, math.nan, math.nan, 0)
    grid = np.array([[figures.get((row, column), nothing)[0] for column in columns] for row in rows], float)
    highest = max(np.nanmax(grid, initial=0.0), 1e-6)
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            value, low, high, count = figures.get((row, column), nothing)
            if not math.isnan(value):
                span = "" if math.isnan(low) else f"\n[{low:.2f}, {high:.2f}]"
                text = f"{value:.2f}  ({count}){span}"
                axes.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if grid[y, x] > highest / 2 else "#222",
                )
    axes.set(xticks=range(len(columns)), yticks=range(len(rows)), title=one_line(title, 2 * MOST_NAME))
    axes.set_xticklabels(list(map(_label, columns)))
    axes.set_yticklabels(list(map(_label, rows)))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return _svg(figure, title)
