"""Short trainings on the device there is: samples/s, how much of the time they wait for data, most memory."""

import contextlib
import gc
import io
import os
import statistics
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.bench.measure import Row
from tests.conftest import REPOSITORY
from train.command import from_config
from train.options import Options
from train.run import train

WARM_UP = 3  # updates that are not counted
CORES = 8  # loader threads at most
SPEED, WAIT, MEMORY = "samples_per_s", "data_wait_percent", "memory_gb"
UNITS = {SPEED: ("samples/s", "1/s"), WAIT: ("waiting for data", "%"), MEMORY: ("peak memory", "GB")}
PLAIN = dict(batch_size=4, grad_acc=10, precision="fp32", model_args='{"unprojection": "plain"}')
# Of a device: name, counted updates, options, {figure: goal}. On CUDA all is as train.run has it by default (res101, 448x800,
# batch 8, grad_acc 5, bf16) but for what the options say; plain fp32 has half the batch, since the whole does not fit.
RUNS = {
    "cpu": [
        (
            "effb0 224x400, batch 2",
            15,
            dict(encoder_type="effb0", res_scale=1.0, batch_size=2, grad_acc=1, Z=100, X=100),
            {SPEED: "", WAIT: ""},
        )
    ],
    "cuda": [
        ("cameras", 25, dict(), {SPEED: ">= 75", WAIT: "<= 1", MEMORY: "<= 40"}),
        ("cameras, batch 16", 6, dict(batch_size=16), {SPEED: "", MEMORY: "<= 70"}),
        ("cameras, 24 GB preset", 6, "gpu-24gb.yaml", {SPEED: "", MEMORY: "<= 22"}),
        ("cameras, plain fp32", 4, PLAIN, {SPEED: "", MEMORY: ""}),
        ("cameras, metaradar", 8, dict(use_radar=True, use_metaradar=True), {SPEED: "", MEMORY: ""}),
        ("cameras, --compile", 8, dict(compile=True), {SPEED: "", MEMORY: ""}),
    ],
}


def rows(shards, out, device="cpu"):
    """Medians over the updates after the first few, as TensorBoard's file of each run has them."""
    table, speeds = [], {}
    for name, updates, chosen, goals in RUNS[device]:
        if isinstance(chosen, str):
            chosen = from_config({"config": str(REPOSITORY / "train" / "presets" / chosen)})
        measured = _run(Options(**{**_common(shards, Path(out) / name, updates, device), **chosen}))
        speeds[name] = measured[SPEED]
        for figure, goal in goals.items():
            what, unit = UNITS[figure]
            table.append(Row(f"train: {name}: {what}", measured[figure], unit, goal=goal))
    if "cameras, plain fp32" in speeds:
        ratio = speeds["cameras"] / speeds["cameras, plain fp32"]
        table.append(Row("train: cameras, times as fast as plain fp32", ratio, "x", goal=">= 3"))
    return table


def _common(shards, out, updates, device):
    return dict(
        exp_name="bench",
        shards=tuple(shards),
        do_val=False,
        no_pretrained=True,
        nworkers=min(CORES, os.cpu_count() or 1),
        max_iters=WARM_UP + updates,
        save_freq=10**6,
        log_dir=str(out / "logs"),
        ckpt_dir=str(out / "checkpoints"),
        device=device,
        device_ids=(0,) if device == "cuda" else (),
    )


def _run(options):
    """{figure: value} of one training."""
    if options.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    said = io.StringIO()  # its lines would stand in the table
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        train(options)
    [run] = Path(options.log_dir).glob("*/t")
    events = EventAccumulator(str(run))
    events.Reload()
    values = {figure: [event.value for event in events.Scalars(f"_/{figure}")] for figure in UNITS}
    return {figure: statistics.median(v[WARM_UP:]) if figure != MEMORY else max(v) for figure, v in values.items()}
