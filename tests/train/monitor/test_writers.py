"""Weights & Biases as an option: what it is told, by a stand-in for its package that keeps the calls."""

import sys

import numpy as np
import pytest

from train.monitor.writers import Recorder, open_wandb

PACKAGE = """
class Error(Exception):
    pass

class Image:
    def __init__(self, pixels):
        self.pixels = pixels

class Run:
    def __init__(self, **given):
        self.given, self.logged, self.step, self.axes = given, [], given["config"].get("resumed_at", 0), {}

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def finish(self):
        pass

    def log(self, values, step):
        if step >= self.step:  # what the package does
            self.step = step
            self.logged.append((step, values))

def init(**given):
    if given["mode"] == "online":
        raise Error("no API key configured")
    return Run(**given)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield
    sys.modules.pop("wandb", None)


def test_a_resumed_run_goes_on_in_the_same_run(wandb, tmp_path):
    name = "8x5_3e-4s_debug_17:45:58"
    first, again = (open_wandb("offline", name, tmp_path / "logs", {"lr": lr}) for lr in (1.0, 2.0))
    assert (
        first.run.given["id"] == again.run.given["id"] == "8x5_3e-4s_debug_17-45-58"
        and again.run.given["resume"] == "allow"
    )
    assert (
        first.run.given["name"] == name
        and first.run.given["dir"] == str(tmp_path / "logs")
        and again.run.given["config"] == {"lr": 2.0}
    )
    ids = {open_wandb("offline", f"{'long' * 30} {end}/\\#?%", tmp_path, {}).run.given["id"] for end in "ab"}
    assert len(ids) == 2 and all(len(one) <= 64 and not set(one) & set("/\\#?%: ") for one in ids)


def test_scalars_and_pictures_go_to_both(wandb, tmp_path):
    board = open_wandb("offline", "run", tmp_path / "logs", {})
    recorder = Recorder(tmp_path / "logs" / "t", "t", board=board)
    recorder.add_scalar("stats/iou", 0.5, 3)
    recorder.add_image("inputs/cameras", np.full((4, 6, 3), 7, np.uint8), 3)
    recorder.close()
    (step, scalars), (_, pictures) = board.run.logged
    assert (step, scalars) == (3, {"t/stats/iou": 0.5, "update": 3}) and (
        pictures["t/inputs/cameras"].pixels == 7
    ).all()


def test_what_is_missing_is_said(wandb, tmp_path, monkeypatch):
    assert open_wandb("", "run", tmp_path, {}) is None
    with pytest.raises(ValueError, match="no API key configured; log in with `wandb login`"):
        open_wandb("online", "run", tmp_path, {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"bevshards\[wandb\]"):
        open_wandb("offline", "run", tmp_path, {})


def test_a_run_that_has_gone_back_loses_nothing(wandb, tmp_path):
    """It had come to step 2000 and goes on after 1000: the package drops steps that are not ahead of its own."""
    board = open_wandb("offline", "run", tmp_path / "logs", {"resumed_at": 2001}, first_step=1001)
    for step in (1001, 1002):
        board.log({"t/stats/iou": 0.5}, step)
    assert [values["update"] for _, values in board.run.logged] == [1001, 1002] and board.run.axes == {"*": "update"}


@pytest.mark.parametrize("killed", [False, True])
def test_offline_a_run_that_has_gone_back_loses_nothing_either(wandb, tmp_path, killed):
    """No server says how far it came, and each part of it has a counter that begins at 0 until both are sent to one place."""
    first = open_wandb("offline", "run", tmp_path, {}, first_step=1)
    for step in range(1, 251):
        first.log({"t/stats/iou": 0.5}, step)
    if not killed:
        first.finish()
    again = open_wandb("offline", "run", tmp_path, {}, first_step=101)
    again.log({"t/stats/iou": 0.5}, 101)
    assert again.run.logged[0][0] > first.run.logged[-1][0] and again.run.logged[0][1]["update"] == 101
    other = open_wandb("offline", "another", tmp_path, {}, first_step=7)
    other.log({"t/stats/iou": 0.5}, 7)
    assert other.run.logged[0][0] == 7
    if not killed:
        assert again.run.logged[0][0] == 251
