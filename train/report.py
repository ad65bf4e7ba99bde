"""python -m train.report: runs and their evaluations -> one HTML page."""

import platform
import shlex
from datetime import datetime
from pathlib import Path

import click

from common.files import write_atomically
from common.spelling import EITHER, Command, spelled
from train.command import fail_in_one_line
from train.evaluation.files import evaluation_file, read_json
from train.pictures.page import Run, page

CURVES = ("stats", "pooled", "_")


@click.command(cls=Command, context_settings=EITHER)
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", default="report.html", show_default=True, help="the page")
@click.option("--log_dir", help="TensorBoard folder of the runs, where the run's options name another place")
def main(runs, out, log_dir):
    """Write one self-contained page about RUNS, folders or names of runs that train.evaluate has evaluated."""
    fail_in_one_line(lambda: write_report(runs, out, log_dir))
    several = " ".join(map(shlex.quote, runs[:2])) if len(runs) > 1 else f"{shlex.quote(runs[0])} ANOTHER_RUN"
    click.echo("look at: IoU by distance and by weather, then the worst samples; any browser opens the page", err=True)
    click.echo(f"next: {spelled('train.compare')} {several}", err=True)


def write_report(runs, out, log_dir=None):
    """Write the page of the folders of evaluated runs to `out` and say so."""
    read = [read_run(run, log_dir) for run in runs]
    made = f"Made {datetime.now():%Y-%m-%d %H:%M} by {spelled('train.report')}, Python {platform.python_version()}."
    text = page(read, made)
    write_atomically(out, text.encode())
    click.echo(f"page: {out} ({len(text.encode()) / 1e6:.1f} MB)")


def _caption(path):
    """What a picture of train.gallery shows, of its file name."""
    parts = path.stem.split("_", 4)  # number, kind, "IoU", value, key
    return f"{parts[1]}: {parts[4]}, IoU {parts[3]}" if len(parts) == 5 else path.stem


def read_run(folder, log_dir=None):
    """pictures.page.Run of a run, as evaluation_file knows it. Raises ValueError where it was never evaluated."""
    file = evaluation_file(folder)
    evaluation = read_json(file)
    folder = file.parent.parent if file.parent.name == "eval" else file.parent
    gallery = sorted(file.parent.glob("*.jpg"))
    pictures = tuple((_caption(path), path.read_bytes()) for path in gallery)
    config = folder / "config.yaml"
    logs = Path(log_dir or evaluation["about"].get("log_dir") or "logs_nuscenes") / folder.name
    return Run(
        folder.name,
        evaluation,
        read_curves(logs),
        pictures,
        config.read_text() if config.is_file() else "",
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
