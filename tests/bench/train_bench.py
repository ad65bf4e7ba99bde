"""A short training on the device there is: samples/s, and how much of the time it waits for data."""

import contextlib
import io
import os
import statistics
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.bench.measure import Row
from train.options import Options
from train.run import train

WARM_UP = 3  # updates that are not counted
# What fits the device: name, updates, options.
RUNS = {
    "cpu": ("effb0 224x400, batch 2", 15, dict(encoder_type="effb0", res_scale=1.0, batch_size=2, Z=100, X=100)),
    "cuda": ("res101 448x800, batch 8", 40, dict(batch_size=8, use_radar=True, use_metaradar=True)),
}


def rows(shards, out, device="cpu"):
    """Medians over the updates after the first, as TensorBoard's file of the run has them; no goal is set."""
    name, updates, chosen = RUNS[device]
    options = Options(
        exp_name="bench",
        shards=tuple(shards),
        do_val=False,
        no_pretrained=True,
        grad_acc=1,
        nworkers=min(12, os.cpu_count() or 1),
        max_iters=WARM_UP + updates,
        save_freq=10**6,
        log_dir=str(Path(out) / "logs"),
        ckpt_dir=str(Path(out) / "checkpoints"),
        device=device,
        device_ids=(0,) if device == "cuda" else (),
        **chosen,
    )
    said = io.StringIO()  # its lines would stand in the table
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        train(options)
    [run] = (Path(out) / "logs").glob("*/t")
    events = EventAccumulator(str(run))
    events.Reload()

    def median(tag):
        return statistics.median(event.value for event in events.Scalars(f"_/{tag}")[WARM_UP:])

    return [
        Row(f"train: {name}", median("samples_per_s"), "1/s"),
        Row("train: waiting for data", median("data_wait_percent"), "%"),
    ]
