"""What the benchmarks count without measuring, and the settings that they measure."""

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_the_default_experiment(path):
    """Only how it is cut into batches differs, not how many samples an update has."""
    options, default = Options(**from_config({"config": str(path)})), Options()
    options.validate()
    assert options.batch_size * options.grad_acc == default.batch_size * default.grad_acc
    others = {name for name in vars(default) if getattr(options, name) != getattr(default, name)}
    assert others <= {"batch_size", "grad_acc", "config"}
