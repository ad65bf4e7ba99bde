"""A network with a memory: it plays scenes in every slot, and its memory is state of the run as its weights are."""

import dataclasses
import json
import shutil

import pytest
import torch

from tests.conftest import call_module
from train import checkpoint
from train.data.config import OrderConfig
from train.evaluation.robustness import evaluate_damaged
from train.jobs.training import train as train_run
from train.loop import Trainer
from train.model import Needs
from train.model.memory import METHODS, apart, has_memory, joined, load_memory, memory_of, share_of
from train.options import Options
from train.processes.distributed import World
from train.setup import make_loaders, make_network


class Recurrent(torch.nn.Module):
    """Maps out of a running mean of the images' brightness over the scene, and of how long it has been going on."""

    def __init__(self, options, grid):
        super().__init__()
        self.needs = Needs(lidar=False, radar=False)
        self.take, self.map = torch.nn.Linear(4, 4), torch.nn.Linear(4, grid.Z * grid.X)
        self.zx, self.memory = (1, grid.Z, grid.X), {}
        self.seen = []  # of every batch, where it began anew and how long each scene has been going on

    def reset(self, which):
        rows = len(which)
        if not self.memory:
            self.memory = {"mean": torch.zeros(rows, 4), "age": torch.zeros(rows, dtype=torch.int64)}
        for name, value in self.memory.items():
            value = torch.cat([value, value.new_zeros(rows, *value.shape[1:])])[:rows]
            self.memory[name] = torch.where(which.view(-1, *[1] * (value.dim() - 1)), 0, value)

    def stream_state(self):
        return self.memory

    def load_stream_state(self, state):
        self.memory = dict(state)

    def forward(self, batch, grid):
        look = torch.cat([batch.imgs[:, 0].mean((1, 3, 4)), batch.intrins[:, 0, 0, 0, :1] / 100], 1)
        mean = torch.tanh(self.take(look) + self.memory["mean"])
        self.memory["mean"] += mean.detach() / 2  # in place, as networks may
        self.memory["age"] += 1
        self.seen.append((self.training, batch.starts.tolist(), self.memory["age"].tolist()))
        return {"seg": self.map(mean).unflatten(1, self.zx)}


def options_of(shards, out, **more):
    options = Options(
        shards=(f"{shards}/train-*.tar",), order="streams", batch_size=2, grad_acc=1, max_iters=6, res_scale=0.25, nworkers=0,
        nworkers_val=0, val_freq=2, save_freq=1, keep_latest=9, log_freq=100, Z=24, Y=2, X=24, device="cpu", lr=0.01,
        use_scheduler=False, log_dir=str(out / "logs"), ckpt_dir=str(out), rand_flip=False, do_shuffle_cams=False,
    )  # fmt: skip
    return dataclasses.replace(options, **more)


def content_of(folder, step):
    return checkpoint.read(folder, step)


@pytest.fixture(scope="module")
def straight(small_shards, tmp_path_factory):
    """(folder of a run over six updates, what its network saw)."""
    out = tmp_path_factory.mktemp("straight")
    network, options = make_network(options_of(small_shards, out), Recurrent)
    path = Trainer(options, network, make_loaders(options, "cpu", needs=network.needs), name="run").run()
    return path.parent, network.seen


def test_the_memory_lasts_as_long_as_a_scene_and_validation_has_its_own(straight):
    folder, seen = straight
    # Three train scenes of three keyframes for two slots: two are played in an epoch. Validations after updates 1, 2, 4, 6 take
    # one batch each, and go on where the last one stood: its one scene has three keyframes.
    ages = {training: [own for t, _, own in seen if t is training] for training in (True, False)}
    assert ages[True] == [[1, 1], [2, 2], [3, 3], [1, 1], [2, 2], [3, 3]]
    assert ages[False] == [[1], [2], [3], [1]]
    assert [starts for t, starts, _ in seen if t] == [[True] * 2, [False] * 2, [False] * 2] * 2
    content = content_of(folder, 2)
    assert content["stream_state"]["age"].tolist() == [2, 2] and content["stream_state"]["mean"].shape == (2, 4)
    assert content["val_stream_state"]["age"].tolist() == [2]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_that_goes_on_in_mid_scene_ends_with_the_same_bits(small_shards, straight, tmp_path, step):
    folder, _ = straight
    shutil.copytree(folder, tmp_path / "run")
    resumed = tmp_path / "run" / f"model-{step:09d}.pth"
    options = options_of(
        small_shards, tmp_path, resume=str(resumed), model=content_of(folder, step)["options"]["model"]
    )
    path = train_run(options)
    assert path.parent == tmp_path / "run"
    want, got = (checkpoint.read(run, 6) for run in (folder, path.parent))
    for name, value in want["model_state_dict"].items():
        assert torch.equal(value, got["model_state_dict"][name]), name
    for part in ("stream_state", "val_stream_state"):
        assert all(torch.equal(value, got[part][name]) for name, value in want[part].items()) and want[part]
    assert str(want["pools"]["v"]) == str(got["pools"]["v"]) and want["loader"] == got["loader"]


def test_shuffled_samples_leave_nothing_behind(small_shards, tmp_path):
    network, options = make_network(options_of(small_shards, tmp_path, order="shuffled", max_iters=3), Recurrent)
    Trainer(options, network, make_loaders(options, "cpu", needs=network.needs), name="run").run()
    assert {tuple(age) for _, _, age in network.seen} == {(1, 1), (1,)} and all(all(s) for _, s, _ in network.seen)


def test_slots_move_with_their_scenes():
    rng = torch.Generator().manual_seed(0)
    whole = {"mean": torch.rand((4, 3), generator=rng), "age": torch.arange(4)}
    for size in (1, 2, 4):
        shares = [share_of(whole, OrderConfig(4, rank=rank, world_size=size)) for rank in range(size)]
        again = joined(shares)
        assert all(torch.equal(again[name], value) for name, value in whole.items()) and set(again) == set(whole)
    # Of a validation whose last slots have ended, the last ranks have nothing.
    shares = [share_of({"age": torch.arange(2)}, OrderConfig(4, rank=rank, world_size=2)) for rank in range(2)]
    assert shares[0]["age"].tolist() == [0, 1] and shares[1] == {} and joined(shares)["age"].tolist() == [0, 1]
    assert share_of({}, OrderConfig(4)) == {} == joined([{}, {}])


def test_a_memory_is_set_aside_and_given_back():
    grid = type("Grid", (), {"Z": 2, "X": 2})
    network, cpu = Recurrent(None, grid), torch.device("cpu")
    network.reset(torch.tensor([True, True]))
    network.memory["age"] += 3
    other = {}
    with apart(network, other, cpu):
        assert network.memory == {}
        network.reset(torch.tensor([True]))
        network.memory["age"] += 1
    assert network.memory["age"].tolist() == [3, 3] and other["age"].tolist() == [1]
    with pytest.raises(RuntimeError, match="lost"), apart(network, other, cpu):
        network.memory["age"] += 1
        raise RuntimeError("lost")
    assert network.memory["age"].tolist() == [3, 3] and other["age"].tolist() == [2]
    kept = memory_of(network)
    network.memory["age"] += 1
    assert kept["age"].tolist() == [3, 3]
    load_memory(network, kept, cpu)
    network.memory["age"] += 1
    assert kept["age"].tolist() == [3, 3]

    plain = torch.nn.Linear(1, 1)
    assert not has_memory(plain) and memory_of(plain) == {}
    plain.reset = lambda which: None
    with pytest.raises(
        ValueError, match="has reset and no stream_state, load_stream_state; .* all of " + ", ".join(METHODS)
    ):
        has_memory(plain)


@pytest.mark.slow
def test_streams_on_two_processes_are_those_of_one(small_shards, straight, tmp_path):
    """From the same start two processes, and one that goes on where they stopped in mid-scene, train what one does."""
    out = tmp_path / "two"
    options = options_of(small_shards, out, device_ids=(0, 1), max_iters=2, run_name="run")
    train_run(options, build=Recurrent)
    two = checkpoint.read(out / "run", 2)
    assert two["stream_state"]["age"].tolist() == [2, 2] and two["val_stream_state"]["age"].tolist() == [2]
    alone = dataclasses.replace(
        options, device_ids=(0,), max_iters=6, resume=str(out / "run"), model=two["options"]["model"]
    )
    path = train_run(alone)
    want, got = (checkpoint.read(folder, 6) for folder in (straight[0], path.parent))
    for part in ("model_state_dict", "stream_state"):
        for name, value in want[part].items():
            torch.testing.assert_close(got[part][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_evaluation_plays_scenes_too(small_shards, straight, tmp_path):
    folder, _ = straight
    text = call_module(
        "train.evaluate", folder, "--device", "cpu", "--pictures", 0, "--out", tmp_path, "--batch_size", 2
    ).stdout
    assert "3 samples" in text
    # Sample by sample, as a network without its memory is asked, the same weights give other figures.
    other = call_module(
        "train.evaluate", folder, "--device", "cpu", "--pictures", 0, "--out", tmp_path / "o", "--order", "shuffled"
    )
    curves = [json.loads((out / "eval.json").read_text())["figures"] for out in (tmp_path, tmp_path / "o")]
    assert curves[0] != curves[1] and "3 samples" in other.stdout


def test_every_change_of_robustness_has_a_memory_of_its_own(small_shards, tmp_path):
    """What is seen under one change leaves no trace in what is seen under another."""
    options = options_of(small_shards, tmp_path, batch_size=1, max_iters=1)
    network, options = make_network(options, Recurrent)
    _, loader, grid = make_loaders(options, "cpu")
    batches, world = list(loader), World(0, 1, torch.device("cpu"))

    def dark(batch):
        return dataclasses.replace(batch, imgs=batch.imgs * 0)

    changes = {"none": lambda batch: batch, "dark": dark}
    together = evaluate_damaged(network, batches, grid, world, changes)
    for name, change in changes.items():
        network.memory = {}
        [alone] = evaluate_damaged(network, batches, grid, world, {name: change}).values()
        assert len(batches) > 1 and alone.keys() == together[name].keys()
        assert all((alone[scene] == together[name][scene]).all() for scene in alone)
