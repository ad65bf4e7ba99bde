"""The moving average of the weights: against a plain loop, kept over a resume to the last bit, evaluated by choice."""

import dataclasses
import json

import pytest
import torch

from tests.conftest import call_module
from train import checkpoint
from train.ema import Ema
from train.options import Options
from train.run import train


class Small(torch.nn.Module):
    """The mean image as the grid's map, normalised by its batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 1, 3, padding=1), torch.nn.BatchNorm2d(3)

    def forward(self, batch, grid):
        images = torch.nn.functional.interpolate(batch.imgs[:, 0].mean(1), (grid.Z, grid.X))
        return {"seg": self.conv(self.norm(images))}


def build(options, grid):
    return Small()


def options_of(shards, out, **more):
    chosen = dict(shards=(f"{shards}/train-*.tar",), log_dir=str(out / "logs"), ckpt_dir=str(out), batch_size=2)
    chosen |= dict(grad_acc=1, max_iters=4, res_scale=0.25, nworkers=0, nworkers_val=0, nsweeps=1, Z=16, Y=1, X=16)
    return Options(
        **chosen,
        device="cpu",
        lr=0.1,
        use_scheduler=False,
        ema=0.5,
        save_freq=2,
        do_val=False,
        model=f"{__name__}:build",
        **more,
    )


def test_averages_are_those_of_a_plain_loop():
    network = Small()
    ema, want = Ema(network, 0.3), {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(1, 5):
        with torch.no_grad():
            for value in network.state_dict().values():
                value += step
        ema.update(network, step)
        decay = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, 4/13, then 0.3
        want = {name: decay * value + (1 - decay) * network.state_dict()[name] for name, value in want.items()}
    assert set(ema.state_dict()) == set(want) - {"norm.num_batches_tracked"}
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value, want[name])


def test_a_resumed_run_has_the_same_average_and_it_is_evaluated(small_shards, tmp_path):
    whole = train(options_of(small_shards, tmp_path, run_name="whole"))
    cut = train(dataclasses.replace(options_of(small_shards, tmp_path, run_name="cut"), max_iters=2)).parent
    with pytest.raises(ValueError, match="--ema 0.9: the run to resume has 0.5"):
        from train.jobs.training import read_options

        read_options({"resume": str(cut), "ema": 0.9})
    train(dataclasses.replace(options_of(small_shards, tmp_path), resume=str(cut), run_name="cut"))
    contents = [checkpoint.read(path) for path in (whole, cut)]
    for name, value in contents[0]["ema_state_dict"].items():
        assert torch.equal(value, contents[1]["ema_state_dict"][name]), name
        trained = contents[0]["model_state_dict"][name]
        assert not torch.equal(value, trained) and trained.isfinite().all()
    network = Small()
    checkpoint.load_weights(whole, contents[0], network, weights="ema")
    assert torch.equal(network.conv.weight, contents[0]["ema_state_dict"]["conv.weight"])
    assert network.norm.num_batches_tracked == 4

    losses = {}
    for weights in ("trained", "ema"):
        words = ["--device", "cpu", "--nworkers", 0, "--pictures", 0, "--weights", weights, "--out", tmp_path / weights]
        call_module("train.evaluate", whole.parent, *words)
        written = json.loads((tmp_path / weights / "eval.json").read_text())
        assert written["about"]["weights"] == weights
        losses[weights] = written["figures"]
    assert losses["trained"] != losses["ema"]


def test_without_an_average_the_choice_is_refused(tmp_path):
    network = Small()
    path = checkpoint.save(tmp_path, 1, network)
    with pytest.raises(ValueError, match="holds no moving average of the weights; train with --ema"):
        checkpoint.load_weights(path, checkpoint.read(path), network, weights="ema")
    with pytest.raises(ValueError, match="--ema 1.0: it is a decay below 1"):
        Options(ema=1.0)
