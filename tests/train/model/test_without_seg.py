"""A network without a map: its own loss, metrics and what it collects, trained, kept, evaluated and shown by the interface."""

import json
import math
import re
import statistics
from dataclasses import dataclass

import pytest
import torch
from click.testing import CliRunner

from tests.conftest import call_module
from train import checkpoint, show
from train.evaluation.files import read_json
from train.metrics import Score, Sums, merged, metrics_of, read
from train.model import Needs
from train.options import Options
from train.run import train


class MeanError(Sums):
    """Mean absolute error of the number of boxes: a metric whose state is sums."""

    def count(self, outputs, batch):
        error = (outputs["boxes"] - batch.num_boxes[:, 0]).abs()
        return torch.stack([error.sum(), error.new_full((), float(len(error)))])

    def figures(self):
        error, samples = self.counts.tolist()
        return {"mean_error": Score(error / samples, higher_is_better=False)}


class Within:
    """Median error, and the share of samples that are right within 3 boxes: a metric that keeps every value."""

    def __init__(self):
        self.errors = []

    def update(self, outputs, batch):
        self.errors += (outputs["boxes"] - batch.num_boxes[:, 0]).abs().tolist()

    def merge(self, other):
        self.errors += other.errors

    def figures(self):
        right = [error <= 3 for error in self.errors]
        return {
            "median_error": Score(statistics.median(self.errors), False),
            "within_3": sum(right) / len(right) if right else math.nan,
        }


@dataclass(frozen=True)
class Own:
    start: float = 1.0


class Counter(torch.nn.Module):
    """Says how many boxes there are: as many as it has learned that there mostly are."""

    def __init__(self, options, grid):
        super().__init__()
        self.needs = Needs(cameras=False, lidar=False, radar=False)
        self.number = torch.nn.Parameter(torch.tensor(options.model_args.start))

    options_class = Own

    def forward(self, batch, grid):
        return {"boxes": self.number.expand(len(batch.scenes))}

    def loss(self, outputs, batch, normaliser, grid):
        error = (outputs["boxes"] - batch.num_boxes[:, 0]).square().mean()
        return error, {"squared_error": error, "cells": float(grid.Z * grid.X)}

    def metrics(self):
        return [MeanError(), Within()]

    def collect(self, outputs, batch, grid):
        cells = [f"{grid.Z}x{grid.X}"] * len(batch.scenes)
        return {"counts": [{"boxes": n, "grid": c} for n, c in zip(outputs["boxes"], cells, strict=True)]}


def options(shards, folder, **changed):
    chosen = {
        **dict(
            shards=(f"{shards}/train-*.tar",), log_dir=str(folder / "logs"), ckpt_dir=str(folder), run_name="counter"
        ),
        **dict(batch_size=2, grad_acc=1, max_iters=3, val_freq=2, val_batches="all", lr=0.5, use_scheduler=False),
        **dict(res_scale=0.25, nworkers=0, nworkers_val=0, nsweeps=1, Z=24, Y=2, X=24, device="cpu", save_freq=2),
        **dict(keep_best="median_error", model_args='{"start": 2.5}'),
    }
    return Options(**(chosen | changed))


def test_a_network_without_a_map(small_shards, tmp_path):
    path = train(options(small_shards, tmp_path), build=Counter)
    content = checkpoint.read(path)
    last, _ = content["pools"]["v"][-1]
    assert {"mean_error", "median_error", "within_3", "squared_error", "total_loss"} <= set(last) and "iou" not in last
    best = checkpoint.read(path.parent / "model-best.pth")
    assert best["best_by"] == {"figure": "median_error", "higher_is_better": False}
    assert best["best"] == min(figures["median_error"] for figures, _ in content["pools"]["v"])

    shown = call_module("train.evaluate", path.parent, "--device", "cpu", "--nworkers", 0)
    assert re.search(r"step 3; \d+ samples; the network gives no seg, so there is no IoU", shown.stdout)
    assert re.search(r"mean_error +\d+\.\d{4}  \(lower is better\)", shown.stdout)
    evaluation = read_json(path.parent)
    assert evaluation["about"]["headline"] == "" and evaluation["figures"] == [] and evaluation["thresholds"] == {}
    collected = json.loads((path.parent / "eval" / "counts.json").read_text())
    number = collected["samples"][0]["value"]["boxes"]
    assert len(collected["samples"]) == evaluation["samples"] and collected["samples"][0]["value"]["grid"] == "24x24"
    assert number == pytest.approx(content["model_state_dict"]["number"].item())
    assert [s["key"] for s in collected["samples"]] == sorted({s["key"] for s in collected["samples"]})
    scores = evaluation["metrics"]
    assert (
        scores["within_3"]["higher_is_better"] and scores["median_error"]["value"] <= scores["mean_error"]["value"] + 9
    )
    assert (path.parent / "eval" / "samples.csv").is_file()
    refused = call_module(
        "train.evaluate", path.parent, "--device", "cpu", "--nworkers", 0, "--robustness", check=False
    )
    assert refused.returncode == 1 and "the network gives no seg; leave it out" in refused.stderr

    picture = tmp_path / "shown.png"
    words = [small_shards, 0, "--run", path.parent, "--out", picture, "--device", "cpu"]
    drawn = CliRunner().invoke(show.main, list(map(str, words)))
    assert drawn.exit_code == 0 and picture.is_file(), drawn.output
    page = tmp_path / "report.html"
    call_module("train.report", path.parent, "--out", page)
    assert "median_error" in page.read_text() and "the network&#39;s own" in page.read_text()
    assert "within_3, validation" in page.read_text()


@pytest.mark.slow
def test_two_processes_count_and_keep_what_one_does_and_resume(small_shards, tmp_path):
    """The metrics are those of all samples; a run of two processes that goes on ends where an uninterrupted one does."""
    runs = {}
    for name, changed in (
        ("one", {}),
        ("two", {"device_ids": (0, 1)}),
        ("cut", {"device_ids": (0, 1), "max_iters": 2}),
    ):
        train(options(small_shards, tmp_path, run_name=name, **changed), build=Counter)
        runs[name] = tmp_path / name
    train(
        Options(**{**checkpoint.read(runs["cut"])["options"], "resume": str(runs["cut"]), "max_iters": 3, "config": ""})
    )
    contents = {name: checkpoint.read(folder) for name, folder in runs.items()}
    for name in ("mean_error", "median_error", "within_3"):
        one, two = (contents[run]["pools"]["v"][-1][0][name] for run in ("one", "two"))
        assert one == pytest.approx(two, rel=1e-5), name
    weights = [contents[run]["model_state_dict"]["number"] for run in ("two", "cut")]
    assert torch.equal(*weights) and contents["cut"]["step"] == 3


def test_metrics_that_are_none_are_told():
    network = torch.nn.Module()
    network.metrics = "iou"
    with pytest.raises(ValueError, match="Module.metrics is 'iou'; it is a list of metrics, or a method that gives"):
        metrics_of(network)
    network.metrics = lambda: [Within(), object()]
    with pytest.raises(ValueError, match="hold a object, which has no update and no merge and no figures"):
        metrics_of(network)
    network.metrics = [Within()]
    assert metrics_of(network)[0] is not network.metrics[0]
    network.metrics = lambda: [MeanError(), MeanError()]
    one, other = metrics_of(network)
    one.counts = other.counts = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="two metrics give mean_error"):
        read([one, other])
    [whole] = merged([[], [one], [other]])
    assert whole.counts.tolist() == [2.0, 4.0]


def test_help_shows_what_a_network_takes():
    shown = call_module("train.run", "--model", f"{__name__}:Counter", "--help")
    assert re.search(rf"Network {re.escape(__name__)}:Counter, in --model_args:\s+start NUMBER +\[1.0\]", shown.stdout)
    plain = call_module("train.run", "--model=simple_bev", "--help").stdout
    assert "unprojection fused|plain" in plain
    wrong = call_module("train.run", "--model", "absent:build", "--help", check=False)
    assert wrong.returncode == 1 and "there is no module absent" in wrong.stderr
