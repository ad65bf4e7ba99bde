"""The loop: what was trained is kept whatever ends it, and nothing of an update depends on what came before or beside it."""

import errno
import math
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import ShardError
from train import checkpoint
from train.errors import DataError
from train.evaluation.gallery import chosen_rows
from train.loop import Trainer, is_better
from train.model import Needs
from train.monitor.writers import Recorder
from train.options import Options
from train.run import train
from train.runs import new_folder
from train.setup import make_loaders, make_network


class Heights(torch.nn.Module):
    """Lidar alone. A forward pass changes what a checkpoint holds besides weights, and draws from every generator there is."""

    def __init__(self, options, grid):
        super().__init__()
        self.needs = Needs(cameras=False, lidar="points", radar=False, sweeps=1)
        self.norm = torch.nn.BatchNorm1d(1)
        self.mix = torch.nn.Linear(1, grid.X)
        self.passes = 0

    def forward(self, batch, grid):
        self.passes += self.training
        drawn = torch.rand(1).item() + np.random.rand() + random.random()
        level = self.norm(batch.lidar_data[:, 0, 2].mean(1, keepdim=True)) + drawn
        return {"seg": self.mix(level)[:, None, None].expand(-1, 1, grid.Z, grid.X)}

    def get_extra_state(self):
        return {"passes": self.passes}

    def set_extra_state(self, state):
        self.passes = state["passes"]


@pytest.fixture
def options(small_shards, tmp_path):
    return Options(
        shards=f"{small_shards}/train-*.tar", batch_size=2, grad_acc=2, max_iters=4, nworkers=0, nworkers_val=0, nsweeps=1,
        Z=8, Y=2, X=8, device="cpu", do_val=False, log_dir=tmp_path / "logs", ckpt_dir=tmp_path / "ckpt", deterministic=True,
    )  # fmt: skip


def changed(options, **values):
    return Options(**{**vars(options), **values})


def run(options, name, fail=None, build=Heights):
    """The Trainer of a run that has ended well; fail(loaders) is called before it."""
    network, options = make_network(options, build)
    loaders = make_loaders(options, "cpu", cameras=False)
    trainer = Trainer(options, network, loaders, name=name)
    if fail:
        fail(loaders)
    trainer.run()
    return trainer


def failing_after(reads, loader):
    """The loader's source fails once it has given so many keyframes."""
    plain, left = loader.reader.read, iter(range(reads))

    def read(number, members):
        if next(left, None) is None:
            raise ShardError("the store is gone")
        return plain(number, members)

    loader.reader.read = read


def same(a, b):
    left, right = (torch.utils._pytree.tree_flatten(content)[0] for content in (a, b))
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("reads", [8, 11], ids=["between updates", "in the middle of an update"])
def test_a_loader_s_error_saves_and_the_run_goes_on_to_the_same_bits(options, reads):
    """Eleven keyframes are two updates of two batches of two, and one batch and a half."""
    straight = run(options, "straight").folder
    with pytest.raises(DataError, match="the store is gone"):
        run(options, "broken", lambda loaders: failing_after(reads, loaders[0]))
    broken = checkpoint.find(f"{options.ckpt_dir}/broken")
    assert broken.name == "model-000000002.pth"
    content = checkpoint.read(broken)
    assert content["model_state_dict"]["_extra_state"] == {"passes": 4}
    again = changed(options, resume=str(broken.parent), model="tests.train.test_loop:Heights")
    train(again)
    same(*(
        {part: checkpoint.read(folder)[part] for part in ("model_state_dict", "optimizer_state_dict", "loader")}
        for folder in (straight, broken.parent)
    ))  # fmt: skip


def test_an_error_before_anything_was_trained_saves_nothing(options):
    with pytest.raises(DataError, match="the store is gone"):
        run(options, "broken", lambda loaders: failing_after(1, loaders[0]))
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.find(f"{options.ckpt_dir}/broken")


def test_the_first_validation_s_error_is_told_and_the_update_before_it_saved(options):
    before = threading.active_count()
    validating = changed(options, do_val=True, nworkers=1, nworkers_val=1)
    with pytest.raises(DataError, match="the store is gone"):
        run(validating, "broken", lambda loaders: failing_after(0, loaders[1]))
    assert threading.active_count() == before
    assert checkpoint.read(f"{options.ckpt_dir}/broken")["step"] == 1


@pytest.mark.parametrize("last", [False, True], ids=["of an update between", "of the last update"])
def test_a_validation_that_failed_is_made_when_the_run_goes_on(options, last):
    """Of its figures and of the best none is missing then, and the weights are those of a straight run."""
    validating = changed(options, do_val=True, val_freq=2, max_iters=2 if last else 4, keep_best="iou")
    straight = run(validating, "straight").folder
    with pytest.raises(DataError, match="the store is gone"):
        run(validating, "broken", lambda loaders: failing_after(2, loaders[1]))
    broken = Path(options.ckpt_dir, "broken")
    assert checkpoint.find(broken).name == "model-000000002.pth" and checkpoint.read(broken)["validation_due"]
    again = changed(validating, resume=str(broken), model="tests.train.test_loop:Heights")
    for _ in range(2):  # and once more changes nothing
        train(again)
    contents = [checkpoint.read(folder) for folder in (straight, broken)]
    parts = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "val_loader", "best")
    same(*({part: content[part] for part in parts} for content in contents))
    assert "validation_due" not in contents[1]
    assert [validations(options, name) for name in ("straight", "broken")] == [[1, 2] if last else [1, 2, 4]] * 2
    assert (broken / checkpoint.BEST).exists() == (straight / checkpoint.BEST).exists()


def validations(options, name):
    """Steps of the curve of validation's loss."""
    events = EventAccumulator(f"{options.log_dir}/{name}/v")
    events.Reload()
    return [event.step for event in events.Scalars("stats/total_loss")]


def test_a_run_does_not_delete_its_own_checkpoints_beside_later_ones(options, capsys):
    run(changed(options, max_iters=3, save_freq=1), "same")
    again = run(changed(options, max_iters=1), "same").folder
    assert sorted(p.name for p in again.glob("*.pth")) == [
        "abandoned-model-000000002.pth", "abandoned-model-000000003.pth", "model-000000001.pth",
    ]  # fmt: skip
    assert "was saved after step 0" in capsys.readouterr().err


def test_a_writer_removes_no_later_checkpoint(tmp_path):
    network = torch.nn.Linear(1, 1)
    for step in (100, 200, 1, 2, 3):
        checkpoint.save(tmp_path, step, network, keep_latest=2)
    assert [int(p.stem[6:]) for p in sorted(tmp_path.glob("*.pth"))] == [2, 3, 100, 200]


def test_no_clipping(options):
    wide, none = (run(changed(options, max_iters=2, grad_clip=c), f"clip {c:g}") for c in (1e9, 0))
    same(wide.network.state_dict(), none.network.state_dict())
    assert all(state["exp_avg"].abs().max() > 0 for state in none.optimizer.state.values())


def test_every_generator_is_seeded_for_every_update(options):
    first, second = (run(changed(options, max_iters=2, seed=2**64 - 1), f"run {n}") for n in range(2))
    same(first.network.state_dict(), second.network.state_dict())


def test_nan_is_never_the_best():
    for best in (None, math.nan, 0.5):
        assert not is_better(math.nan, best, True)
    assert is_better(0.1, math.nan, True) and is_better(9.0, None, False)


def test_the_gallery_orders_what_has_an_iou():
    """NaN compares with nothing, so that a sort that meets one is none."""
    counts = [(0, 0, 0), (9, 9, 9), (0, 0, 0), (1, 9, 9), (0, 0, 0), (5, 9, 9)]
    rows = [
        type("Row", (), {"key": f"{n}", "scene": "a", "counts": {"iou": np.array([c])}}) for n, c in enumerate(counts)
    ]
    assert [(kind, row.key) for kind, row, _ in chosen_rows(rows, "iou", 3)] == [
        ("worst", "3"), ("median", "5"), ("best", "1"),
    ]  # fmt: skip


def test_options_built_in_python_are_checked():
    for wrong, told in (
        (dict(precision="fp16"), "--precision fp16"),
        (dict(grad_acc=0), "--grad_acc 0"),
        (dict(batch_size=2.5), "--batch_size 2.5"),
        (dict(lr="fast"), "--lr 'fast'"),
        (dict(seed=2**64), "64 bits"),
        (dict(do_val="maybe"), "--do_val"),
    ):
        with pytest.raises(ValueError, match=told):
            Options(**wrong)
    made = Options(
        shards="a.tar", ignore_load=["head"], lr="1e-3", model_args={"width": 2}, bounds=[-1, 1, -1, 1, -1, 1]
    )
    assert made.shards == ("a.tar",) and made.ignore_load == ("head",) and made.lr == 1e-3
    assert made.model_args == {"width": 2} and made.bounds == (-1.0, 1.0, -1.0, 1.0, -1.0, 1.0)


def built(options, build, **more):
    return make_network(changed(options, **more), build)


class Named(Heights):
    """A loss whose only term is called and shaped as --model_args say."""

    def __init__(self, options, grid):
        super().__init__(options, grid)
        self.term = options.model_args

    def loss(self, outputs, batch, normaliser):
        total = outputs["seg"].square().mean()
        return total, {self.term["name"]: total.detach().expand(self.term.get("shape", ()))}


@pytest.mark.parametrize("name", ["total_loss", "time_per_batch", "iou"])
def test_a_term_with_a_name_of_the_trainer_s_is_refused(options, name):
    with pytest.raises(ValueError, match=name):
        run(changed(options, max_iters=1, model_args={"name": name}), name, build=Named)


def test_a_term_of_one_number_is_a_scalar(options):
    one = run(changed(options, max_iters=1, model_args={"name": "own", "shape": [1]}), "one", build=Named)
    assert one.pools["t"].last()["own"] == one.pools["t"].last()["total_loss"]
    with pytest.raises(ValueError, match=r"term own is \(2,\)"):
        run(changed(options, max_iters=1, model_args={"name": "own", "shape": [2]}), "two", build=Named)


def test_what_a_factory_may_not_give_is_said_in_words(options):
    class Open(Heights):
        def __init__(self, options, grid):
            torch.nn.Module.__init__(self)

        needs = property(lambda self: Needs(cameras=False, lidar=None, radar=False))

    def lazy(options, grid):
        network = Heights(options, grid)
        network.late = torch.nn.LazyLinear(2)
        return network

    for build, told in (
        (Open, "Open.needs leaves lidar or radar to the options, and cannot be set"),
        (lazy, "Heights.late.weight has no shape yet"),
        (lambda options: None, "takes .options.; a network's factory is build.options, grid."),
    ):
        with pytest.raises(ValueError, match=told):
            built(options, build)


def test_an_output_that_is_none_is_none(options):
    class Empty(Heights):
        def forward(self, batch, grid):
            return {"seg": None, "center": super().forward(batch, grid)["seg"].sigmoid()}

    assert "center_loss" in run(changed(options, max_iters=1), "none", build=Empty).pools["t"].last()


def test_weights_to_ignore_must_be_there(tmp_path):
    path = checkpoint.save(tmp_path, 1, torch.nn.Linear(2, 2))
    with pytest.raises(checkpoint.CheckpointError, match="--ignore_load heads: no weight"):
        checkpoint.load(path, torch.nn.Linear(2, 2), ignore_load=("bias", "heads"))


def test_a_colon_that_a_file_system_refuses_has_its_remedy(options, monkeypatch):
    def refused(self, **_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(ValueError, match="add --run_name dated"):
        new_folder(options)
    with pytest.raises(ValueError, match="give another --ckpt_dir"):
        new_folder(changed(options, run_name="dated"))


def test_an_evaluation_replaces_the_curves_of_its_step(tmp_path):
    for value, step in ((0.1, 5), (0.2, 9), (0.3, 5)):
        recorder = Recorder(tmp_path, "eval", replaces=f".step-{step}")
        recorder.add_scalar("iou", value, step)
        recorder.close()
    points = EventAccumulator(str(tmp_path)).Reload().Scalars("iou")
    assert sorted((e.step, round(e.value, 1)) for e in points) == [(5, 0.3), (9, 0.2)]


def test_no_pretrained_and_a_file_of_weights_contradict():
    with pytest.raises(ValueError, match="contradict"):
        Options(no_pretrained=True, backbone_weights="resnet.pth")
