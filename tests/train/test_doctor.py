"""train.doctor: of this machine, of shards, of a run; what stops a command, and whether a batch fits."""

import os
import shutil

import pytest
import torch
import yaml

from tests.conftest import call_module
from tests.memory import peak_bytes
from train.data import Grid, make_vox_util
from train.jobs import device_check, examination, step_memory
from train.model.interface import build_network, complete, find_network
from train.options import Options, as_dict
from train.step import LossStep

SMALL = "--device cpu --encoder_type effb0 --batch_size 1 --res_scale 0.25 --latent_dim 16 --Z 16 --Y 2 --X 16".split()


def lines(result):
    """Name -> the texts of its lines, "!" before those that stop a command."""
    out = {}
    for line in result.stdout.splitlines():
        if line[:2] in ("  ", "! "):
            out.setdefault(line[2:13].strip(), []).append(line[:2].strip() + line[13:].strip())
    return out


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    """Function from words of the command line to (exit code, lines), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        result = call_module("train.doctor", *words, check=False)
        return result.returncode, lines(result)

    return call


def test_of_a_machine_alone_there_is_a_line_for_each_thing(doctor):
    code, told = doctor(*SMALL)
    assert code == 0
    assert set(told) >= {*("Python", "torch", "obstore", "disk", "memory", "files", "shards", "CUDA", "bf16", "batch")}
    assert told["torch"] == [torch.__version__.partition("+")[0]] or told["torch"] == [torch.__version__]
    assert "none named" in told["shards"][0] and "1 x 56 x 100, effb0: about " in told["batch"][0]


def test_of_shards_it_says_what_they_hold_and_reads_of_them(doctor, small_shards, tmp_path):
    code, told = doctor(small_shards, *SMALL)
    assert code == 0 and "9 samples of 3 scenes in 1 shard" in told["train"][0] and "6 cameras" in told["train"][0]
    assert "3 samples of 1 scene" in told["val"][0] and len(told["readable"]) == 2

    broken = tmp_path / "broken"
    shutil.copytree(small_shards, broken)
    with open(broken / "train-000.tar", "r+b") as tar:
        tar.seek(600)  # in the first member
        tar.write(b"\0\0\0\0")
    code, told = doctor(broken, *SMALL)
    assert code == 1 and "train-000.tar" in told["shards"][0] and "copy the shard anew" in told["shards"][0]
    os.truncate(broken / "train-000.tar", 2000)
    code, told = doctor(broken, *SMALL)
    assert code == 1 and "its index says" in told["shards"][0] and told["shards"][0].startswith("!")


def test_of_a_run_it_says_the_options_and_looks_at_its_shards(doctor, small_shards, tmp_path):
    run = tmp_path / "checkpoints" / "mine"
    run.mkdir(parents=True)
    (run / "model-000000007.pth").write_bytes(b"")
    options = Options(shards=(f"{small_shards}/train-*.tar",), batch_size=3, encoder_type="effb0", res_scale=0.25)
    (run / "config.yaml").write_text(yaml.safe_dump(as_dict(options)))
    for word in ("mine", run, run / "model-000000007.pth"):
        code, told = doctor(word, *SMALL[:2], "--model", "somebody:elses")
        assert code == 0 and "1 checkpoint, model-000000007.pth" in told["run"][0]
        assert "--batch_size 3" in told["options"][0] and "--seed" not in told["options"][0]
        assert "9 samples" in told["train"][0] and "not known" in told["batch"][0]


def test_what_stops_a_command_is_told_as_such(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    [*disks, _, _] = examination.places(Options(ckpt_dir=f"{tmp_path}/file/runs", log_dir=str(tmp_path)))
    assert [finding.stops for finding in disks] == [True, False] and "--ckpt_dir" in disks[0].remedy
    monkeypatch.setattr(examination, "version_of", lambda package: "not installed")
    assert {finding.name: finding.stops for finding in examination.versions()} == {
        **{"bevshards": False, "Python": False, "torch": True, "obstore": False}
    }
    named = Options(shards=("s3://nowhere/train-000.tar",))
    assert all(finding.stops for finding in examination.shards_of(named, named=True))


@pytest.mark.parametrize(("free_gb", "word"), ((64, "fits into"), (1.2, "may not fit"), (0.1, "does not fit")))
def test_a_batch_is_held_against_the_free_memory(monkeypatch, free_gb, word):
    monkeypatch.setattr(device_check, "memory_bytes", lambda: (free_gb * 1e9, 64e9))
    monkeypatch.setattr(device_check, "own_bytes", lambda: 1e9)
    monkeypatch.setattr(device_check, "training_bytes", lambda options: (int(1e9), int(1e8)))
    finding = device_check.batch(Options(device="cpu"))
    assert word in finding.text and finding.stops == (word == "does not fit")


def small_options(**more):
    small = {"encoder_type": "effb0", "batch_size": 1, "res_scale": 0.25, "latent_dim": 16, "Z": 64, "Y": 4, "X": 64}
    return Options(**{**small, **more})


def test_an_update_is_counted_as_torch_counts_a_real_one():
    """Which leaves out oneDNN's copies, the largest of which is a tenth here."""
    options = small_options(grad_acc=1)
    counted, _ = step_memory._used_bytes(options)

    def update():
        grid = make_vox_util(Grid.of(options))
        network = build_network(find_network(options.model), options, grid)
        network.needs, _ = complete(network.needs, options)
        held = [torch.empty_like(p) for p in network.parameters() for _ in range(2)]
        LossStep(network, grid).train()(step_memory._batch(options))[0].backward()
        del held

    real = peak_bytes(update)
    assert 0.98 * real <= counted <= 1.15 * real


def test_what_is_more_takes_more_and_what_is_not_known_is_not_guessed():
    one, saved = step_memory.training_bytes(small_options())
    assert step_memory.training_bytes(small_options(batch_size=2))[0] > 1.2 * one
    assert step_memory.training_bytes(small_options(use_lidar=True))[0] > one > saved > 0
    for other in (
        {"precision": "bf16"},
        {"compile": True},
        {"past": 1},
        {"model": "a:b"},
        {"device": "cpu", "device_ids": (0, 0)},
    ):
        assert step_memory.training_bytes(small_options(**other)) is None
