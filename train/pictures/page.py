"""The report: evaluations and curves of runs -> one HTML file that needs nothing else. Needs matplotlib and jinja2."""

import base64
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import InputError
from common.plain import one_line, plain
from train.classes import MEAN, key_of, parts_of
from train.pictures import charts

MOST_BYTES = 20_000_000  # of a page
MOST_NAME = 300  # characters of a name
_MARKUP_BYTES = 200  # at most, around a picture besides its caption, and around their section


@dataclass(frozen=True)
class Run:
    """What the page shows of one run.

    name: of the run. evaluation: the object of eval.json. curves: TensorBoard tag, such as "t/stats/iou", -> (steps, values).
    pictures: (caption, JPEG bytes, key) of the worst, median and best samples. config: the run's options as text.
    samples: dict of key, scene, place, light, weather, iou (None where there is none) and what thumbnails there are, "errors"
    and "cameras" (WebP bytes), for each.
    """

    name: str
    evaluation: dict
    curves: dict = field(default_factory=dict)
    pictures: tuple = ()
    config: str = ""
    samples: tuple = ()


@dataclass
class Section:
    """A part of the page: charts are SVG; tables have head and rows, pictures caption and source; samples are the script's."""

    id: str
    title: str
    text: str = ""
    charts: list = field(default_factory=list)
    tables: list = field(default_factory=list)
    pictures: list = field(default_factory=list)
    samples: list = field(default_factory=list)
    preformatted: str = ""

    @property
    def choices(self):
        """Name of a filter -> values that the samples have."""
        names = ("run", "scene", "place", "light", "weather")
        return {name: sorted({sample[name] for sample in self.samples if sample[name]}) for name in names}


def page(runs, made):
    """HTML text of the report.

    Args:
        runs: list of Run, compared side by side. made: a line that says when and with what.
    Raises:
        ValueError: matplotlib or jinja2 are not installed, or there are more runs than fit into MOST_BYTES.
    """
    try:
        from jinja2 import Environment
    except ImportError:
        raise InputError("train.report needs matplotlib and jinja2") from None
    template = Environment(autoescape=True).from_string(Path(__file__).with_name("page.html").read_text())
    runs = [replace(run, name=one_line(run.name, MOST_NAME), evaluation=_plain(run.evaluation)) for run in runs]
    label = _headline_label(runs[0])
    samples = Section("samples", "Samples")
    sections = [_accuracy(runs, label), _conditions(runs, label), _boxes(runs), _training(runs), samples]
    sections += [_robustness(runs), _provenance(runs)]
    title = ", ".join(run.name for run in runs)
    cards = [_card(run, label) for run in runs]

    def rendered():
        shown = [s for s in sections if s.charts or s.tables or s.pictures or s.samples or s.preformatted]
        return template.render(title=title, made=made, sections=shown, headline=cards)

    # Pictures take what everything else leaves, thumbnails what they leave.
    samples.samples, errors, cameras = _listed(runs)
    needed = len(rendered().encode())
    if needed > MOST_BYTES:
        raise InputError(
            f"a page of {len(runs)} runs has {needed / 1e6:.1f} MB without any picture; give fewer at once"
        )
    room = MOST_BYTES - needed - _add_pictures(samples, runs, MOST_BYTES - needed)
    for kind, pictures in (("errors", errors), ("cameras", cameras)):
        room -= _add_thumbnails(samples, kind, pictures, room)
    return rendered()


def _listed(runs):
    """(samples as the page's script has them, WebP bytes of the errors of each, of the cameras); None for no picture."""
    out, pictures = [], []
    for run in runs:
        for sample in run.samples:
            facts = {
                name: one_line(sample[name] or "", MOST_NAME) for name in ("key", "scene", "place", "light", "weather")
            }
            shown = {"errors": "", "cameras": "", "large": None}
            out.append({"run": run.name if len(runs) > 1 else "", **facts, "iou": sample["iou"], **shown})
            pictures.append((sample.get("errors"), sample.get("cameras")))
    return out, *([pair[n] for pair in pictures] for n in (0, 1))


def _add_thumbnails(section, kind, pictures, room):
    """Add thumbnails of the samples, the worst ones' first, as far as `room` goes; the bytes that they take."""
    taken, left = 0, 0
    order = sorted(
        range(len(pictures)), key=lambda n: (section.samples[n]["iou"] is None, section.samples[n]["iou"] or 0.0)
    )
    for n in (n for n in order if pictures[n]):
        text = base64.b64encode(pictures[n]).decode()
        if taken + len(text) > room - _MARKUP_BYTES:
            left += 1
            continue
        taken += len(text)
        section.samples[n][kind] = text
    if left:
        section.text += f" There is no room for the {kind} of {left} samples."
    return taken


def _plain(value):
    """An evaluation whose names, which come from data, are fit to be shown."""
    if isinstance(value, str):
        return one_line(value, MOST_NAME)
    if isinstance(value, dict):
        return {_plain(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _headline_label(run):
    return run.evaluation["about"].get("headline") or parts_of(next(iter(run.evaluation["thresholds"]), ""))[0]


def _figures(run, group, label=None, classes=("", MEAN)):
    """Figures of a group; of several classes their mean, or those of the classes named."""
    found = [f for f in run.evaluation["figures"] if f["group"] == group and label in (None, f["label"])]
    return [f for f in found if f.get("class", "") in classes]


def _keys(run):
    """What the table of a run has rows for: its labels, of several classes their mean and then each.

    Classes that a later label counts just as an earlier one, as it does what is of the map alone, are left out there.
    """
    keys, out, counted = list(run.evaluation["thresholds"]), [], []
    for label in dict.fromkeys(parts_of(key)[0] for key in keys):
        own = [key for key in keys if parts_of(key)[0] == label]
        out += [key_of(label, MEAN)] if len(own) > 1 else []
        for key in own:
            curve = parts_of(key)[1], run.evaluation["thresholds"][key]
            if len(own) == 1 or curve not in counted:
                out.append(key)
            counted.append(curve)
    return out


def _class_bars(runs, label):
    """Bars of the classes' IoU, run beside run, where there are several."""
    found = [_figures(run, "iou", label, _classes(run, label)) for run in runs]
    names = list(dict.fromkeys(f["class"] for own in found for f in own))
    if not names:
        return []
    rows = {}
    for run, own in zip(runs, found, strict=True):
        spans = {f["class"]: _span(f) for f in own}
        rows[run.name] = [spans.get(name, (math.nan,) * 3) for name in names]
    return [charts.bars(rows, names, "IoU by class, at 0.5", "IoU")]


def _classes(run, label):
    """Names of the classes of a label, where there are several."""
    each = [of_class for name, of_class in map(parts_of, run.evaluation["thresholds"]) if name == label]
    return [of_class for of_class in each if of_class]


def _span(figure):
    return tuple(math.nan if figure[name] is None else figure[name] for name in ("value", "low", "high"))


def _text(figure):
    value, low, high = _span(figure)
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if math.isnan(low) else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _card(run, label):
    iou = next(iter(_figures(run, "iou", label)), None)
    about = run.evaluation["about"]
    if iou is None:
        own = next(iter(_scores(run).items()), None)
        if own is None:
            return {"run": run.name, "value": "-", "text": "nothing was evaluated"}
        return {"run": run.name, "value": " ".join(own), "text": f"step {about.get('step', '?')}"}
    value, low, high = _span(iou)
    bounds = "" if math.isnan(low) else f"95 % interval {low:.4f} to {high:.4f} over scenes; "
    text = f"{bounds}protocol {label}, {iou['samples']} samples, step {about.get('step', '?')}"
    return {"run": run.name, "value": f"IoU {value:.4f}", "text": text}


def _accuracy(runs, label):
    section = Section(
        "accuracy", "Accuracy", "Intersections and unions are summed over all samples before they are divided."
    )
    rows = []
    for run in runs:
        for name in _keys(run):
            label_, of_class = parts_of(name)
            groups = ("iou", "iou at best threshold", "precision", "recall", "calibration error")
            found = [next(iter(_figures(run, g, label_, (of_class,))), None) for g in groups]
            cells = [_text(f) if f else "-" for f in found]
            cells[1] += f" at {found[1]['name']}" if found[1] and of_class != MEAN else ""
            rows.append([f"{run.name}: {name}" if len(runs) > 1 else name, *cells])
    head = ["", "IoU at 0.5", "IoU at the best threshold", "precision", "recall", "calibration error"]
    if rows:
        section.tables.append({"head": head, "rows": rows})
    names = list(dict.fromkeys(name for run in runs for name in _scores(run)))
    if names:
        rows = [[name, *(_scores(run).get(name, "-") for run in runs)] for name in names]
        section.tables.append({"head": ["the network's own", *(run.name for run in runs)], "rows": rows})
    section.charts += _class_bars(runs, label)
    if curve := _threshold_curves(runs, label):
        section.charts.append(charts.threshold_chart(curve, "IoU by threshold"))
    section.charts += _bars(runs, "iou by distance", label, "IoU by distance from the reference camera")
    for run in runs:
        scenes = _scene_ious(run, label)
        if scenes:
            title = "IoU by scene" + (f": {run.name}" if len(runs) > 1 else "")
            section.charts.append(charts.sorted_scenes(scenes, title))
    return section


def _threshold_curves(runs, label):
    """Name -> (threshold, IoU)s: of one run's one class under every label, else of the label that the page is about."""
    out = {}
    for run in runs:
        for key, rows in run.evaluation["thresholds"].items():
            own, of_class = parts_of(key)
            if own == label or (len(runs) == 1 and not of_class):
                name = of_class or key
                out[f"{run.name}: {name}" if len(runs) > 1 else name] = [(row["threshold"], row["iou"]) for row in rows]
    return out


def _scene_ious(run, label):
    out = {}
    for iou in _figures(run, "iou", label):
        for scene, above, below in zip(run.evaluation["scenes"], iou["numerators"], iou["denominators"], strict=True):
            pairs = zip(above, below, strict=True) if isinstance(below, list) else [(above, below)]
            each = [a / b for a, b in pairs if b]
            if each:
                out[scene] = sum(each) / len(each)
    return out


def _scores(run):
    """Name -> text of the metrics that a network brought."""
    return {
        name: "-" if score["value"] is None else f"{score['value']:.4f}"
        for name, score in run.evaluation.get("metrics", {}).items()
    }


def _bars(runs, group, label, title, xlabel="IoU"):
    names = list(dict.fromkeys(f["name"] for run in runs for f in _figures(run, group, label)))
    if not names:
        return []
    rows = {}
    for run in runs:
        found = {f["name"]: _span(f) for f in _figures(run, group, label)}
        rows[run.name] = [found.get(name, (math.nan,) * 3) for name in names]
    return [charts.bars(rows, names, title, xlabel)]


def _conditions(runs, label):
    section = Section("conditions", "Place, light and weather")
    for part in ("light", "weather", "location", "vehicles in view"):
        section.charts += _bars(runs, f"iou by {part}", label, f"IoU by {part}")
    for run in runs:
        figures = {}
        for figure in _figures(run, "iou by location, light and weather", label):
            location, light, weather = figure["name"].rsplit(", ", 2)
            figures[location, f"{light}, {weather}"] = (*_span(figure), figure["samples"])
        places = [list(dict.fromkeys(key[i] for key in sorted(figures))) for i in (0, 1)]
        if figures:
            title = "IoU (samples) by place, light and weather" + (f": {run.name}" if len(runs) > 1 else "")
            section.charts.append(charts.heat_table(figures, *places, title))
    return section


def _boxes(runs):
    section = Section("boxes", "Recall of boxes", "Share of each box's cells that were predicted.")
    for part in ("category", "visibility", "size", "lidar points"):
        group = f"recall of boxes by {part}"
        section.charts += _bars(runs, group, None, f"Recall by {part}", "share of cells")
    for run in runs:
        figures = {}
        for figure in _figures(run, "recall of boxes by category and distance"):
            category, _, ring = figure["name"].rpartition(", ")
            figures[category, ring] = (*_span(figure), figure["denominator"])
        if figures:
            order = {"0": 0, "2": 1, "3": 2, "b": 3}
            rings = sorted({ring for _, ring in figures}, key=lambda ring: order.get(ring[0], 4))
            title = "Recall (cells) by category and distance" + (f": {run.name}" if len(runs) > 1 else "")
            section.charts.append(charts.heat_table(figures, sorted({c for c, _ in figures}), rings, title))
    return section


def _training(runs):
    section = Section("training", "Training")
    wanted = (
        ("IoU, pooled", "IoU", ("t/pooled/iou", "v/stats/iou"), False),
        ("Loss", "loss", ("t/pooled/total_loss", "v/stats/total_loss"), False),
        ("Learning rate", "rate", ("t/_/current_lr",), False),
        ("Waiting for data", "percent", ("t/_/data_wait_percent",), False),
        ("Speed", "samples per second", ("t/_/samples_per_s",), False),
    )
    for title, unit, tags, log in wanted:
        series = {}
        for run in runs:
            for tag in tags:
                if tag in run.curves:
                    part = {"t": "train", "v": "val"}[tag[0]]
                    series[part if len(runs) == 1 else f"{run.name} {part}"] = run.curves[tag]
        if series:
            section.charts.append(charts.curves(series, title, unit, log))
    section.charts += [charts.curves(series, title, unit) for title, unit, series in _own_curves(runs)]
    return section


def _own_curves(runs):
    """(title, unit, series) of what validation says class by class, and of each metric that a network brought."""
    start = "v/stats/iou_"
    each = {}
    for run in runs:
        for tag in (tag for tag in run.curves if tag.startswith(start)):
            name = tag.removeprefix(start)
            each[name if len(runs) == 1 else f"{run.name} {name}"] = run.curves[tag]
    if each:
        yield "IoU of the classes, validation", "IoU", each
    for name in dict.fromkeys(name for run in runs for name in _scores(run)):
        series = {run.name: run.curves[f"v/stats/{name}"] for run in runs if f"v/stats/{name}" in run.curves}
        if series:
            yield f"{name}, validation", name, series


def _add_pictures(section, runs, room):
    """Those pictures of the runs that fit into `room` bytes, each with its sample; the bytes that they take."""
    before, left = room, 0
    room -= 2 * _MARKUP_BYTES
    for run in runs:
        for caption, jpeg, key in run.pictures:
            source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
            caption = one_line(caption if len(runs) == 1 else f"{run.name}: {caption}", 2 * MOST_NAME)
            # A caption is there twice, and a letter of it takes up to six bytes as HTML writes it.
            needed = len(source) + 12 * len(caption) + _MARKUP_BYTES
            if needed > room:
                left += 1
                continue
            room -= needed
            for sample in section.samples:
                if (sample["key"], sample["run"]) == (key, run.name if len(runs) > 1 else ""):
                    sample["large"] = len(section.pictures)
            section.pictures.append({"caption": caption, "source": source})
    if left:
        section.text = f"{left} more pictures lie beside the evaluations; they would make this page too large."
    return before - room


def _robustness(runs):
    section = Section(
        "robustness", "Robustness", "IoU under damage, on the headline's labels; resilience as in RoboBEV."
    )
    rows = [
        [
            f"{run.name}: {row['name']}" if len(runs) > 1 else row["name"],
            f"{row['iou']:.4f}{_interval(row, '', '.4f')}",
            f"{row['change']:+.4f}{_interval(row, 'change_', '+.4f')}",
        ]
        for run in runs
        for row in run.evaluation.get("robustness", {}).get("rows", [])
    ]
    if rows:
        section.tables.append({"head": ["", "IoU", "change"], "rows": rows})
    for run in runs:
        found = run.evaluation.get("robustness", {})
        for name in ("mRR", "mCE"):
            if name in found:
                section.text += f" {run.name}: {name} {found[name]:.1f} %{_interval(found, f'{name}_', '.1f')}."
    return section


def _interval(found, prefix, form):
    """Text of an interval of a robustness table; of a single scene there is none."""
    low, high = (found.get(f"{prefix}{end}") for end in ("low", "high"))
    return "" if low is None else f" [{low:{form}}, {high:{form}}]"


def _provenance(runs):
    section = Section("provenance", "Configuration and provenance")
    names = list(dict.fromkeys(name for run in runs for name in run.evaluation["about"] if name != "options"))
    rows = [[name, *(_short(run.evaluation["about"].get(name)) for run in runs)] for name in names]
    section.tables.append({"head": ["", *(run.name for run in runs)], "rows": rows})
    section.preformatted = "\n\n".join(f"# {run.name}\n{plain(run.config)}" for run in runs if run.config)
    return section


def _short(value):
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
