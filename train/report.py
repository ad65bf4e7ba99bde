"""python -m train.report: runs and their evaluations -> one HTML page."""

import platform
import shlex
from datetime import datetime
from pathlib import Path

import click

from common.files import write_atomically
from common.spelling import EITHER, Command, spelled
from train.classes import parts_of
from train.command import fail_in_one_line
from train.evaluation.files import THUMBNAILS, evaluation_file, read_csv, read_json, read_thumbnails
from train.pictures.page import Run, page

CURVES = ("stats", "pooled", "_")


@click.command(cls=Command, context_settings=EITHER)
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", default="report.html", show_default=True, help="the page")
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=9,
    show_default=True,
    help="large pictures of each run, of those that evaluate drew",
)
@click.option("--log_dir", help="TensorBoard folder of the runs, where the run's options name another place")
def main(runs, out, samples, log_dir):
    """Write one self-contained page about RUNS, folders or names of runs that train.evaluate has evaluated.

    It has thumbnails of every sample, to be filtered and clicked through, and needs no network.
    """
    fail_in_one_line(lambda: write_report(runs, out, log_dir, samples))
    several = " ".join(map(shlex.quote, runs[:2])) if len(runs) > 1 else f"{shlex.quote(runs[0])} ANOTHER_RUN"
    click.echo("look at: IoU by distance and by weather, then the worst samples; any browser opens the page", err=True)
    click.echo(f"next: {spelled('train.compare')} {several}", err=True)


def write_report(runs, out, log_dir=None, samples=9):
    """Write the page of the folders of evaluated runs to `out` and say so. samples: large pictures of each run."""
    read = [read_run(run, log_dir, samples) for run in runs]
    made = f"Made {datetime.now():%Y-%m-%d %H:%M} by {spelled('train.report')}, Python {platform.python_version()}."
    text = page(read, made)
    write_atomically(out, text.encode())
    click.echo(f"page: {out} ({len(text.encode()) / 1e6:.1f} MB)")


def _pictures(folder, most):
    """(caption, JPEG bytes, key) of at most so many pictures of train.evaluate: the first of each kind, then the second."""
    found = {}
    named = [(path.stem.split("_", 4), path) for path in folder.glob("[0-9][0-9]*_*_IoU_*_*.jpg")]
    for (_, kind, _, iou, key), path in sorted(named, key=lambda one: int(one[0][0])):
        found.setdefault(kind, []).append((path, f"{kind}: {key}, IoU {iou}", key))
    turns = [(turn, path) for own in found.values() for turn, (path, *_) in enumerate(own)]
    turns.sort(key=lambda one: one[0])
    chosen = {path for _, path in turns[:most]}
    return tuple(
        (caption, path.read_bytes(), key) for own in found.values() for path, caption, key in own if path in chosen
    )


def _samples(folder, label):
    """Run.samples of an evaluation's folder; label: whose IoU is meant, of several classes the mean of those that there are."""
    table, pictures = folder / "samples.csv", read_thumbnails(folder / THUMBNAILS)
    if not table.is_file():
        return ()
    rows = read_csv(table)
    columns = [name for name in (rows[0] if rows else ()) if name.endswith(" iou")]
    columns = [name for name in columns if parts_of(name.removesuffix(" iou"))[0] == label]
    out = []
    for row in rows:
        ious = [float(row[name]) for name in columns if row[name]]
        facts = {"place": row["location"], **{name: row[name] for name in ("key", "scene", "light", "weather")}}
        iou = round(sum(ious) / len(ious), 4) if ious else None
        out.append({**facts, "iou": iou, **pictures.get(row["key"], {})})
    return tuple(out)


def read_run(folder, log_dir=None, samples=9):
    """pictures.page.Run of a run, as evaluation_file knows it. Raises ValueError where it was never evaluated.

    samples: how many large pictures.
    """
    file = evaluation_file(folder)
    evaluation = read_json(file)
    folder = file.parent.parent if file.parent.name == "eval" else file.parent
    config = folder / "config.yaml"
    logs = Path(log_dir or evaluation["about"].get("log_dir") or "logs_nuscenes") / folder.name
    return Run(
        folder.name,
        evaluation,
        read_curves(logs),
        _pictures(file.parent, samples),
        config.read_text() if config.is_file() else "",
        _samples(file.parent, evaluation["about"].get("headline")),
    )


def read_curves(logs):
    """ "t/stats/iou" -> (steps, values) of a run's TensorBoard files; empty where there are none."""
    if not logs.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = {}
    for part in "tv":
        if not (logs / part).is_dir():
            continue
        events = EventAccumulator(str(logs / part), size_guidance={"scalars": 5000})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.partition("/")[0] in CURVES:
                found = events.Scalars(tag)
                out[f"{part}/{tag}"] = ([e.step for e in found], [e.value for e in found])
    return out


if __name__ == "__main__":
    main(prog_name=spelled("train.report"))
