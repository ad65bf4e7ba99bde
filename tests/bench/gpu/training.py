"""Short trainings by train.run, each an experiment as users have it: samples/s, waiting for data, memory."""

import tempfile
from pathlib import Path

import torch

from tests.bench.gpu.rows import read
from tests.bench.gpu.runner import FILE
from tests.bench.measure import REPOSITORY
from tests.bench.train_bench import MEMORY, SPEED, WAIT, WARM_UP, measured
from train.command import from_config

# Of the cards on which goals were set: samples/s, as it is and with --compile.
SPEEDS = {"H200": (60, 70), "H100": (50, 58)}
UNITS = {SPEED: ("samples/s", "1/s"), WAIT: ("waiting for data, of all time", "%"), MEMORY: ("peak memory", "GB")}


def batch8(settings, rows):
    """The default experiment: res101, 448x800, bfloat16, six cameras."""
    goals = {SPEED: _speed_goal(settings, 0), WAIT: "<= 1", MEMORY: "<= 40"}
    short_training(settings, rows, "batch 8", 10, goals)


def batch16(settings, rows):
    short_training(settings, rows, "batch 16", 4, {MEMORY: "<= 70"}, batch_size=16)


def preset24(settings, rows):
    chosen = from_config({"config": str(REPOSITORY / "train" / "presets" / "gpu-24gb.yaml")})
    short_training(settings, rows, "24 GB preset", 4, {MEMORY: "<= 22"}, **chosen)


def metaradar(settings, rows):
    short_training(settings, rows, "camera and metaradar", 4, use_radar=True, use_metaradar=True)


def plain(settings, rows):
    """Every camera's whole volume sampled, in float32; half a batch, since a whole one does not fit."""
    chosen = dict(batch_size=4, grad_acc=10, precision="fp32", model_args='{"unprojection": "plain"}')
    slow = short_training(settings, rows, "plain unprojection, float32", 4, **chosen)[SPEED]
    fast = [row["value"] for row in read(Path(settings.out, FILE)) if row["name"] == f"batch 8: {UNITS[SPEED][0]}"]
    if fast:
        rows.add("batch 8, times as fast", fast[-1] / slow, "x", "" if settings.dry else ">= 3")


def compiled(settings, rows):
    short_training(settings, rows, "--compile", 10, {SPEED: _speed_goal(settings, 1)}, compile=True)


def short_training(settings, rows, name, updates, goals=None, **chosen):
    """Rows of a training of some updates; {figure: value}. chosen: Options beside the default experiment's."""
    with tempfile.TemporaryDirectory() as folder:
        options = dict(exp_name="bench", max_iters=WARM_UP + updates, save_freq=10**6)
        options |= dict(log_dir=f"{folder}/logs", ckpt_dir=f"{folder}/checkpoints") | chosen
        if settings.dry:
            options |= dict(model="tests.bench.gpu.small:build", max_iters=WARM_UP + 1, batch_size=2, grad_acc=1)
            options |= dict(model_args="")
        figures = measured(settings.options(**options))
    for figure, (what, unit) in UNITS.items():
        goal = "" if settings.dry else (goals or {}).get(figure, "")
        rows.add(f"{name}: {what}", figures[figure], unit, goal)
    return figures


def _speed_goal(settings, place):
    card = "" if settings.dry else torch.cuda.get_device_name()
    return next((f">= {speeds[place]}" for name, speeds in SPEEDS.items() if name in card), "")
