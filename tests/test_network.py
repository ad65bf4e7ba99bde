"""A network in a file outside the checkout: trained, resumed, evaluated; and what the interface refuses."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from common.vox import VoxUtil
from tests.conftest import REPOSITORY
from train import checkpoint

PAGE = (REPOSITORY / "train" / "model" / "README.md").read_text()
EXAMPLE, NOTEBOOK = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
UNUSED = """

class Spare(SmallNet):
    def __init__(self, grid, width):
        super().__init__(grid, width)
        self.spare = nn.Linear(3, 3)  # no loss reaches it


def spare(options, grid):
    return Spare(grid, **options.model_args)
"""
SMALL = (
    "--no_pretrained --nworkers 0 --nworkers_val 0 --batch_size 2 --grad_acc 2 --res_scale 0.25 --nsweeps 1 --device cpu "
    "--deterministic --Z 24 --Y 2 --X 24 --bounds -25,25,-5,5,-25,25 --val_freq 2"
).split()
GRID = VoxUtil(24, 2, 24, torch.tensor([[0.0, 1.0, 0.0]]), (-25, 25, -5, 5, -25, 25))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder outside the checkout with the page's network in a file."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mynet.py").write_text(EXAMPLE + UNUSED)
    return folder


def run_outside(folder, *words, check=True):
    result = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def test_a_network_outside_the_checkout(synth_shards, outside):
    """One process, two, resumed, evaluated: by --model alone."""
    model = ["--model", "mynet:spare", "--model_args", '{"width": 8}']
    shards = ["--shards", f"{synth_shards}/train-*.tar"]
    train = ["train.run", *shards, *model, *SMALL, "--log_dir", outside / "logs"]
    options = ["--save_freq", 2, "--keep_latest", 9, "--keep_best", "total_loss", "--val_batches", "all"]
    result = run_outside(outside, *train, *options, "--max_iters", 4, "--ckpt_dir", outside / "one")
    assert "trains without them" in result.stderr and result.stdout.count("; iou_t 0.") == 4
    [one] = (outside / "one").iterdir()
    best = checkpoint.read(one / "model-best.pth")
    assert 0 < best["best"] < 30 and best["step"] in (1, 2, 4)

    interrupted = shutil.copytree(one, outside / "interrupted" / one.name)
    (interrupted / "model-000000004.pth").unlink()
    run_outside(outside, "train.run", "--resume", interrupted)
    whole, resumed = checkpoint.read(one), checkpoint.read(interrupted)
    assert resumed["step"] == 4 and resumed["options"]["model"] == "mynet:spare"
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(value, resumed["model_state_dict"][name]), name

    run_outside(outside, *train, "--max_iters", 2, "--ckpt_dir", outside / "two", "--device_ids", "0,1")
    [two] = (outside / "two").iterdir()
    single, double = (checkpoint.read(folder, 2)["model_state_dict"] for folder in (one, two))
    for name, value in single.items():
        torch.testing.assert_close(double[name], value, rtol=1e-4, atol=1e-6)

    evaluate = ["train.evaluate", "--init_dir", one, "--shards", f"{synth_shards}/val-*.tar", "--device", "cpu"]
    assert re.search(r"step 4; 4 samples; IoU 0\.\d{4}", run_outside(outside, *evaluate).stdout)
    failed = run_outside(outside, *evaluate, "--model", "simple_bev", check=False)
    assert failed.returncode == 1 and "checkpoint of the network mynet:spare, not of simple_bev" in failed.stderr
    assert "Traceback" not in failed.stderr
