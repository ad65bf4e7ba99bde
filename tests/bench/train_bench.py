"""Short trainings: samples/s, how much of the time they wait for data, most memory."""

import contextlib
import io
import os
import statistics
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.bench.measure import Row
from train.jobs.training import train
from train.options import Options

WARM_UP = 3  # updates that are not counted
CORES = 8  # loader threads at most
SPEED, WAIT, MEMORY = "samples_per_s", "data_wait_percent", "memory_gb"
UPDATES = 15
NAME = "effb0 224x400, batch 2"
EXPERIMENT = dict(encoder_type="effb0", res_scale=1.0, batch_size=2, grad_acc=1, Z=100, X=100)


def rows(shards, out):
    """Of an experiment that two cores manage; tests.bench.gpu has a GPU's."""
    options = Options(
        exp_name="bench",
        shards=tuple(shards),
        do_val=False,
        no_pretrained=True,
        nworkers=min(CORES, os.cpu_count() or 1),
        max_iters=WARM_UP + UPDATES,
        save_freq=10**6,
        log_dir=str(Path(out) / "logs"),
        ckpt_dir=str(Path(out) / "checkpoints"),
        device="cpu",
        **EXPERIMENT,
    )
    figures = measured(options)
    units = {SPEED: ("samples/s", "1/s"), WAIT: ("waiting for data", "%")}
    return [Row(f"train: {NAME}: {what}", figures[figure], unit) for figure, (what, unit) in units.items()]


def measured(options):
    """{figure: value} of one training: the median speed of its updates after the first few, its share of waiting of all the
    time that these took, ends of epochs included, and the most memory. TensorBoard's file of the run has them.
    """
    said = io.StringIO()  # its lines would stand in a table
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        train(options)
    [run] = Path(options.log_dir).glob("*/t")
    events = EventAccumulator(str(run))
    events.Reload()
    speeds, waits, memory = (
        [event.value for event in events.Scalars(f"_/{figure}")] for figure in (SPEED, WAIT, MEMORY)
    )
    seconds = [1 / speed for speed in speeds[WARM_UP:]]
    waited = sum(share * time for share, time in zip(waits[WARM_UP:], seconds, strict=True))
    return {SPEED: statistics.median(speeds[WARM_UP:]), WAIT: waited / sum(seconds), MEMORY: max(memory)}
