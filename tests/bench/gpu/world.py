"""Shards to train on: those given, or a generated world's with full-size JPEGs."""

import json
import shutil
import subprocess
import sys

from tests.bench.measure import REPOSITORY

VERSION = "v1.0-trainval"


def prepare(settings, rows):
    """Check the shards that were given, or make some; a row says how many keyframes they hold."""
    if not settings.shards:
        _generate(settings.made, *(((1, 1), 3) if settings.dry else ((6, 1), 12)))
    from train.data.sources import LocalSource

    source = LocalSource(settings.train_shards)
    rows.add("keyframes", len(source), "generated" if not settings.shards else "given")


def _generate(shards, scenes, samples):
    """Into the folder: (train, val) scenes of `samples` keyframes each; without nuscenes-devkit, by a split file."""
    if (shards / "train.manifest.json").exists():
        return
    names = [[f"scene-{split}{number:03d}" for number in range(count)] for split, count in enumerate(scenes)]
    splits, world = (shards.with_name(f"{shards.name}-{what}") for what in ("splits.json", "world"))
    splits.write_text(json.dumps(dict(zip(("train", "val"), names, strict=True))))
    shutil.rmtree(world, ignore_errors=True)  # of a run that was ended half-way
    common = ["--version", VERSION, "--split-file", splits]
    _run("preprocess.synth", "--out", world, *common, "--scenes", sum(scenes), "--samples", samples, "--sweeps", 2)
    _run("preprocess.run", "--dataroot", world, "--out", shards, *common, "--sweeps", 3, "--train-shards", 4)
    shutil.rmtree(world)


def _run(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=REPOSITORY, check=True)
