"""What the benchmarks count without measuring, and the settings that they measure."""

import time
from pathlib import Path

import pytest
import torch

from tests.bench import step_bench
from train.command import from_config
from train.options import Options

PRESETS = sorted((Path(step_bench.REPOSITORY) / "train" / "presets").glob("*.yaml"))


def test_the_operations_of_a_sample_are_those_of_the_layers():
    """A training step of the benchmark's network takes 4.1 TFLOP per sample, three times its forward pass."""
    at_size = {
        size: sum(f for f, _ in step_bench.counts("fused bf16", "res101", size)) for size in ((448, 800), (224, 400))
    }
    assert 4.0e12 < at_size[448, 800] < 4.3e12
    # What lies behind the camera mean does not depend on the images; the encoder's share grows with their pixels.
    encoder = (at_size[448, 800] - at_size[224, 400]) / 3
    assert 0.85e12 < encoder < at_size[224, 400]


def test_every_way_of_a_step_runs_and_is_the_same_network():
    """Its prediction for the same inputs, in float32 to rounding."""
    said = {}
    for way in step_bench.WAYS:
        step = step_bench.Step(way, "effb0", (64, 112), zyx=(16, 2, 16))
        step.clock = time.perf_counter
        with torch.no_grad():
            said[way] = step.net.eval()(*step.inputs, step.vox)[-3]
        assert len(step.run(time.perf_counter)) == len(step_bench.PARTS)
    first, *others = [maps for way, maps in said.items() if "bf16" not in way]
    for maps in others:
        torch.testing.assert_close(maps, first, rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_the_default_experiment(path):
    """Only how it is cut into batches differs, not how many samples an update has."""
    options, default = Options(**from_config({"config": str(path)})), Options()
    options.validate()
    assert options.batch_size * options.grad_acc == default.batch_size * default.grad_acc
    others = {name for name in vars(default) if getattr(options, name) != getattr(default, name)}
    assert others <= {"batch_size", "grad_acc", "config"}
