"""Fixtures: the real keyframe and the golden arrays where they lie beside the checkout."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.synth.folder import Folder

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"

torch.set_num_threads(2)


def run_module(*arguments, check=True, timeout=300):
    """Run `python -m ...` in the repository; the finished process with its text."""
    result = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and result.returncode:
        raise AssertionError(f"{arguments}: exit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


@pytest.fixture(scope="session")
def realframe():
    """nuScenes folder with real keyframes."""
    folder = SHARED / "realframe"
    if not folder.is_dir():
        pytest.skip("../shared/realframe is not there")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Function from a file name to its golden arrays, made with the public Simple-BEV code."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden is not there")

    def load(name):
        path = SHARED / "golden" / name
        return np.load(path) if path.suffix == ".npz" else path.read_text()

    return load


@pytest.fixture(scope="session")
def real_shards(realframe, tmp_path_factory):
    """Folder with train-000.tar and val-000.tar of the real keyframes."""
    out = tmp_path_factory.mktemp("real-shards")
    run_module("preprocess.run", "--version", "v1.0-mini", "--dataroot", realframe, "--out", out, "--workers", 1)
    return out


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """nuScenes folder of four small scenes of three keyframes with one sweep between; the last is a val scene."""
    folder = Folder(tmp_path_factory.mktemp("small-world"), "v1.0-mini", 5, image_hw=(90, 160))
    for number, name in enumerate(("scene-0061", "scene-0553", "scene-0655", "scene-0103")):
        folder.add_scene(number, name, 3, 1)
    folder.close()
    return folder.out


@pytest.fixture(scope="session")
def synth_world(tmp_path_factory):
    """nuScenes folder of the generated world: five train scenes and a val scene of four keyframes, two sweeps between."""
    out = tmp_path_factory.mktemp("world")
    run_module("preprocess.synth", "--out", out, "--version", "v1.0-mini", *"--scenes 6 --samples 4 --sweeps 2".split())
    return out


@pytest.fixture(scope="session")
def synth_shards(synth_world, tmp_path_factory):
    """Two train shards and one val shard of the generated world, three sweeps each."""
    out = tmp_path_factory.mktemp("synth-shards")
    options = "--sweeps 3 --train-shards 2 --val-shards 1 --workers 1".split()
    run_module("preprocess.run", "--version", "v1.0-mini", "--dataroot", synth_world, "--out", out, *options)
    return out
