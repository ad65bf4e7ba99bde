"""eval.json, the CSV of samples, and reading them again. shards' digests, checkpoint and options stand in `about`."""

import csv
import io
import json
import math
import re
import zipfile
from pathlib import Path

from common.errors import InputError
from common.files import new_file, write_atomically
from common.plain import plain
from common.spelling import spelled
from train.evaluation.bins import ring_names
from train.evaluation.figures import LEVEL, RESAMPLES, all_figures, calibration, keys_of, threshold_curve
from train.runs import find_run

SCHEMA = 2
MAX_BYTES = 256 << 20
THUMBNAILS = "thumbnails.zip"
_FORMULA = re.compile(r"'*[=+\-@\t\n]")  # with quotes before it, so that taking one away always gives what was
_FORMULA_MADE_INERT = re.compile(r"^'('*[=+\-@\t\n])")


def as_json(evaluation, figures=None, seed=0, robustness=None):
    """The object that eval.json holds: plain values; NaN is null.

    robustness: a table of the same under damage. `metrics` are those that the network brings. Of several classes each figure
    has the class, or is their mean. Each figure has numerator and denominator, and both scene by scene, so
    that two evaluations can be compared in pairs; numerators of the calibration error are one list per scene, a bin each.
    """
    figures = all_figures(evaluation, seed) if figures is None else figures
    keys = keys_of(evaluation.rows)
    return {
        "schema": SCHEMA,
        "about": evaluation.about,
        "samples": len(evaluation.rows),
        "scenes": list(evaluation.scenes),
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "over": "scenes"},
        "figures": [_figure(figure) for figure in figures],
        "thresholds": {
            label: [dict(zip(("threshold", "intersection", "union", "iou"), row, strict=True)) for row in rows]
            for label, rows in ((key, threshold_curve(evaluation, key)) for key in keys)
        },
        "calibration": {key: _calibration(evaluation, key) for key in keys},
        **({"metrics": _scores(evaluation.scores)} if evaluation.scores else {}),
        **({"robustness": robustness} if robustness else {}),
    }


def _scores(scores):
    """Figures of the network's own metrics."""
    return {
        name: {"value": _number(score.value), "higher_is_better": score.higher_is_better}
        for name, score in scores.items()
    }


def _figure(figure):
    return {
        "group": figure.group,
        "name": figure.name,
        "label": figure.label,
        **({"class": figure.of_class} if figure.of_class else {}),
        "value": _number(figure.value),
        "low": _number(figure.low),
        "high": _number(figure.high),
        "numerator": figure.numerator,
        "denominator": figure.denominator,
        "numerators": figure.numerators.tolist(),
        "denominators": figure.denominators.tolist(),
        "samples": figure.samples,
    }


def _calibration(evaluation, label):
    """Bins of probability; their expected error is one of the figures."""
    names = ("from", "to", "cells", "sum_of_probabilities", "true_cells")
    rows = calibration(sum(sums.histograms[label] for sums in evaluation.scenes.values()))
    return [dict(zip(names, row, strict=True)) for row in rows]


def _number(value):
    return float(value) if math.isfinite(value) else None


def write_json(path, evaluation, figures=None, seed=0, robustness=None):
    """Write eval.json atomically; its path. robustness: what train.evaluation.robustness gave."""
    text = json.dumps(as_json(evaluation, figures, seed, robustness), indent=1, allow_nan=False)
    write_atomically(path, text.encode() + b"\n")
    return Path(path)


def write_collected(folder, evaluation):
    """Write what a network collected per sample, each name to folder/NAME.json; the paths.

    A file has `about` as eval.json has it, and `samples`: key, token, scene, timestamp_us and value of each, in order of keys.

    Raises ValueError for a name that is no file's, or a value that JSON does not know.
    """
    paths = []
    for name, values in evaluation.collected.items():
        samples = [
            {"key": r.key, "token": r.token, "scene": r.scene, "timestamp_us": r.timestamp_us, "value": values[r.key]}
            for r in evaluation.rows
            if r.key in values
        ]
        try:
            text = json.dumps({"about": evaluation.about, "samples": samples}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"collect: {name} holds what JSON does not know ({error}); NaN is None there") from None
        write_atomically(Path(folder) / f"{name}.json", text.encode() + b"\n")
        paths.append(Path(folder) / f"{name}.json")
    return paths


def write_thumbnails(path, thumbnails):
    """Write the thumbnails of all samples, of `thumbnails_of`, into one file."""
    with new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key in sorted(thumbnails):
            for kind, data in thumbnails[key].items():
                archive.writestr(zipfile.ZipInfo(f"{key}/{kind}.webp"), data)


def read_thumbnails(path):
    """What write_thumbnails wrote; {} where there is no file. Raises ValueError for anything else."""
    if not path.is_file():
        return {}
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise InputError(f"{path}: more than {MAX_BYTES} bytes of pictures; evaluate again")
            for info in archive.infolist():
                key, _, name = info.filename.rpartition("/")
                out.setdefault(key, {})[name.removesuffix(".webp")] = archive.read(info)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not the pictures of an evaluation ({error}); evaluate again") from None
    return out


def evaluation_file(path):
    """The eval.json that a path means: itself, in a run's or an evaluation's folder, or of a run as find_run knows it.

    Raises ValueError.
    """
    path = Path(path)
    if found := _evaluation_in(path):
        return found
    run = Path(find_run(str(path)))
    if found := _evaluation_in(run.parent if run.is_file() else run):
        return found
    raise InputError(f"{run}: holds no evaluation; {spelled('train.evaluate')} {run} makes it")


def _evaluation_in(path):
    places = (path / "eval" / "eval.json", path / "eval.json", *[path] * (path.suffix != ".pth"))
    return next((place for place in places if place.is_file()), None)


def read_json(path):
    """What write_json wrote, of any path that evaluation_file knows. Raises ValueError for anything else."""
    path = evaluation_file(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"more than {MAX_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not an eval.json ({error}); {spelled('train.evaluate')} RUN writes one") from None
    if not isinstance(content, dict) or "figures" not in content:
        raise InputError(f"{path}: not an eval.json; {spelled('train.evaluate')} RUN writes one")
    if content.get("schema") != SCHEMA:
        raise InputError(f"{path}: schema {content.get('schema')}, this version reads {SCHEMA}; evaluate again")
    return content


def write_csv(path, evaluation):
    """One row per sample: who and where it is, counts for each label and ring, boxes by visibility, losses.

    Texts from the data and names are made plain; what a spreadsheet would take for a formula has a ' before it: see read_csv.
    """
    labels = keys_of(evaluation.rows)
    losses = list(evaluation.rows[0].losses) if evaluation.rows else []
    head = ["key", "token", "scene", "timestamp_us", "location", "light", "weather", "boxes"]
    head += [f"boxes of visibility {v}" for v in range(5)]
    parts = ("intersection", "union", "iou")
    head += [f"{label} {part}" for label in labels for part in parts]
    head += [f"{label} {ring} {part}" for label in labels for ring in ring_names() for part in parts[:2]]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_inert, head + [f"loss {name}" for name in losses]))
    for row in evaluation.rows:
        writer.writerow(_csv_row(row, labels, losses))
    write_atomically(path, out.getvalue().encode())
    return Path(path)


def read_csv(path):
    """Rows of what write_csv wrote: dict from column to text, without the ' that keeps it from being a formula."""
    with open(path, newline="", encoding="utf-8") as file:
        head, *rows = [[_FORMULA_MADE_INERT.sub(r"\1", cell) for cell in row] for row in csv.reader(file)] or [[]]
    return [dict(zip(head, row, strict=True)) for row in rows]


def _inert(text):
    """A text of which no spreadsheet makes a formula: https://owasp.org/www-community/attacks/CSV_Injection."""
    text = plain(text)
    return f"'{text}" if _FORMULA.match(text) else text


def _csv_row(row, labels, losses):
    seen = [sum(kinds.get(v, 0) for kinds in row.boxes.values()) for v in range(5)]
    who, where = map(_inert, (row.key, row.token, row.scene)), map(_inert, (row.location, row.light, row.weather))
    values = [*who, row.timestamp_us, *where, sum(seen), *seen]
    rings = []
    for label in labels:
        counts = row.counts[label]
        both, predicted, truth = counts.sum(0).tolist()
        either = predicted + truth - both
        values += [both, either, f"{both / either:.6f}" if either else ""]
        for both, predicted, truth in counts.tolist():
            rings += [both, predicted + truth - both]
    return values + rings + [f"{row.losses[name]:.6g}" for name in losses]
