"""python -m train.export: the network of a run as a file for other runtimes, checked, with a program that runs it."""

import importlib.util
from pathlib import Path

import click

from common.errors import InputError
from common.spelling import EITHER, Command, spelled
from train.command import fail_in_one_line
from train.runs import CKPT_DIR, find_run

NEEDED = ("onnx", "onnxscript", "onnxruntime")


@click.command(cls=Command, context_settings={**EITHER, "max_content_width": 100})
@click.argument("run", required=False)
@click.option("--out", help="folder of the export  [RUN/export/FORM]")
@click.option("--format", "format_", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True)
@click.option(
    "--images",
    type=click.Choice(["stored", "network"]),
    default="stored",
    show_default=True,
    help="uint8 as the shards have them, or float of the network's size",
)
@click.option(
    "--points",
    type=click.Choice(["points", "voxels"]),
    default="points",
    show_default=True,
    help="lidar and radar as padded points with counts, or as voxels",
)
@click.option(
    "--calibration", default="", metavar="KEY", help="bake in this keyframe's; without it calibration is an input"
)
@click.option(
    "--samples",
    default="",
    help="val samples that IoU and differences are of: a number, or all  [10, or as many of them as take 80 s]",
)
@click.option(
    "--weights",
    type=click.Choice(["trained", "ema"]),
    default="trained",
    show_default=True,
    help="trained, or ema: their moving average, of a run with --ema",
)
@click.option("--val_shards", multiple=True, help="without it those of the run")
@click.option(
    "--bound",
    type=click.FloatRange(0, min_open=True),
    default=1e-4,
    show_default=True,
    help="largest difference of float32 outputs from PyTorch's; a file that differs by more is refused",
)
@click.option("--forms", help="export every form instead, and write their table to this .md")
@click.option(
    "--quick-check",
    nargs=2,
    metavar="FILE SHARDS",
    help="compare an exported file with what PyTorch said of ten samples; needs no torch",
)
@click.option("--ckpt_dir", default=CKPT_DIR, help="where a run is looked for by name")
def main(run, quick_check, **values):
    """Export the network of RUN, a run's folder or a checkpoint.

    The folder holds the model, card.json, README.md, run.py, which draws a map from a shard without torch, and
    reference.npz. Every file is checked: opset, operators, numbers beside PyTorch's, batches of 1, 2 and 3.
    """
    if quick_check:
        from train.exporting.quick_check import quick_check as check

        return fail_in_one_line(lambda: check(*quick_check))
    asked = fail_in_one_line(lambda: _looked_up(run, **values))
    from train.jobs import exporting  # loads torch, which takes seconds

    fail_in_one_line(lambda: exporting.export_run(**asked))


def _looked_up(run, ckpt_dir, samples, format_, precision, val_shards, **values):
    """The arguments of train.jobs.exporting.export_run, once what they name is known to be there. Raises ValueError."""
    if not run:
        raise InputError(f"give a run's folder or a checkpoint file: {spelled('train.export')} RUN")
    if samples not in ("", "all") and not (samples.isdigit() and int(samples)):
        raise InputError(f"--samples {samples}: it is a positive number or all")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and (format_ == "onnx" or values["forms"]):
        raise InputError(f"{', '.join(missing)} not installed: pip install 'bevshards[export]', or --format torch")
    if format_ == "torch" and precision != "fp32":
        raise InputError(f"--format torch is fp32; --precision {precision} is of --format onnx")
    if values["forms"] and Path(values["forms"]).suffix != ".md":
        raise InputError(f"--forms {values['forms']}: the table is a .md")
    run = find_run(run, ckpt_dir)
    count = int(samples) if samples.isdigit() else samples
    form = {name: values.pop(name) for name in ("images", "points", "calibration")}
    wanted = {"format_": format_, "precision": precision, "bound": values.pop("bound"), **form}
    return {"run": run, "wanted": wanted, "count": count, "shards": val_shards, **values}


if __name__ == "__main__":
    main(prog_name=spelled("train.export"))
