"""Checkpoints on disks that are full, folders that cannot be written, files that are damaged; runs that go back."""

import errno
import os
import shutil
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import call_module, run_module
from tests.processes.client import run
from tests.train.model.test_network import Points
from tests.train.test_resume import arguments, run_folder
from train import checkpoint
from train.jobs.evaluation_options import read_options
from train.jobs.training import check_samples
from train.loop import Trainer
from train.model import Segnet
from train.monitor import writers
from train.optim import fetch_optimizer, load_moments
from train.options import Options, of_today
from train.samples import network_of
from train.setup import make_loaders, make_network

QUICK = ["--do_val", "False", "--save_freq", 1]
HEAVY = ["--model", "tests.train.two_layers:Heavy"]


@contextmanager
def small_disk(folder, kilobytes):
    """A file system of so many kilobytes, mounted on the folder; the test is skipped where that is not allowed."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def errors(result):
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("floats", [1, 100, 100_000], ids=lambda n: f"tensors of {n}")
def test_full_disk_names_path_and_reason_and_keeps_the_newest(tmp_path, floats):
    def net(count):
        return torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(floats)) for _ in range(count)])

    with small_disk(tmp_path / "disk", 700) as disk:
        checkpoint.save(disk, 1, net(1))
        with pytest.raises(checkpoint.CheckpointError) as caught:
            checkpoint.save(disk, 2, net(max(3, 400_000 // floats // 2) if floats > 1 else 6000))
        text = str(caught.value)
        assert f"{disk}/model-000000002.pth" in text and "No space left" in text and "model-000000001.pth" in text
        assert [p.name for p in disk.iterdir()] == ["model-000000001.pth"]
        assert checkpoint.load(disk, net(1)) == 1


def test_a_run_on_a_full_disk_ends_in_one_line(synth_shards, tmp_path):
    """Two processes, one line; the run ends at the next update, not at the next checkpoint."""
    with small_disk(tmp_path / "ckpt", 60_000):
        words = [*QUICK, *HEAVY, "--keep_latest", 100, "--max_iters", 400, "--device_ids", "0,1"]
        result = run_module(*arguments(synth_shards, tmp_path, *words), check=False)
        [line] = errors(result)
        folder = run_folder(tmp_path)
        newest = checkpoint.find(folder)
        step = int(newest.stem[6:])
        assert f"model-{step + 1:09d}.pth: cannot be written (No space left on device)" in line and str(newest) in line
        assert f"step {step + 4:06d}" not in result.stdout
        assert checkpoint.read(newest)["step"] == step and not list(folder.glob(".*.tmp"))


def test_a_limit_on_the_size_of_files_is_told_like_a_full_disk(synth_shards, tmp_path):
    """As a quota tells it: with an error of its own kind. What TensorBoard gets of an update stays under this limit."""
    words = arguments(synth_shards, tmp_path, *QUICK, *HEAVY, "--max_iters", 3)
    result = run_module(*words, check=False, file_bytes=2_000_000)
    [line] = errors(result)
    assert f"model-000000001.pth: cannot be written ({os.strerror(errno.EFBIG)})" in line


def test_a_folder_that_cannot_be_made_is_told_by_one_process(synth_shards, tmp_path):
    (tmp_path / "ckpt").write_text("a file in the folder's place")
    result = run_module(*arguments(synth_shards, tmp_path, *QUICK, "--device_ids", "0,1"), check=False)
    [line] = errors(result)
    assert f"{tmp_path}/ckpt" in line and "give another --ckpt_dir" in line


def test_curves_on_a_full_disk_end_the_run_after_a_checkpoint(synth_shards, tmp_path, monkeypatch, capfd):
    options = Options(
        shards=(f"{synth_shards}/train-*.tar",), batch_size=2, grad_acc=1, max_iters=900, res_scale=0.25, nworkers=0, Z=24,
        Y=2, X=24, device="cpu", log_dir=str(tmp_path / "logs"), ckpt_dir=str(tmp_path), nworkers_val=0, do_val=False,
    )  # fmt: skip
    monkeypatch.setattr(writers, "FLUSH_S", 0.01)
    network, options = make_network(options, Points)
    loaders = make_loaders(options, "cpu", cameras=False)
    with small_disk(tmp_path / "logs", 40) as disk:
        with pytest.raises(ValueError, match=rf"{disk}/debug/t: cannot be written \(No space left .*; give another"):
            Trainer(options, network, loaders).run()
    assert 1 <= checkpoint.read(tmp_path / "debug")["step"] < 900
    (tmp_path / "logs").rmdir()
    (tmp_path / "logs").write_text("a file in the folder's place")
    with pytest.raises(ValueError, match=f"{tmp_path}/logs/debug/t: cannot be written .*; give another --log_dir"):
        Trainer(options, network, loaders).run()
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_refuses_fsync_is_told_once(tmp_path, capsys):
    """As CIFS does: the folder is opened, and its fsync gives EINVAL."""
    script = """
import errno, os, stat, sys, torch
from train import checkpoint

def fsync(descriptor, plain=os.fsync):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    plain(descriptor)

os.fsync = fsync
writer = checkpoint.Writer(sys.argv[1], 1, tell=print)
for step in (1, 2, 3):
    writer.submit(step, checkpoint.snapshot(step, torch.nn.Linear(2, 2)))
writer.close()
"""
    out = run("-c", script, tmp_path, check=True).stdout
    assert len(out.splitlines()) == 1 and str(tmp_path) in out
    assert checkpoint.load(tmp_path, torch.nn.Linear(2, 2)) == 3


@pytest.fixture(scope="module")
def run_of_three(synth_shards, tmp_path_factory):
    """Folder of a run with checkpoints of the steps 1, 2 and 3."""
    out = tmp_path_factory.mktemp("three")
    call_module(*arguments(synth_shards, out, *QUICK, *HEAVY, "--max_iters", 3, "--keep_latest", 9))
    return run_folder(out)


def test_going_back_sets_the_newer_ones_aside(run_of_three, tmp_path):
    folder = shutil.copytree(run_of_three, tmp_path / "run")
    before = checkpoint.read(folder, 3)
    result = call_module("train.run", "--resume", folder / "model-000000001.pth")
    for step in (2, 3):
        assert f"abandoned-model-{step:09d}.pth was saved after step 1" in result.stderr
    names = sorted(p.name for p in folder.glob("*.pth"))
    assert names == [f"abandoned-model-{n:09d}.pth" for n in (2, 3)] + [f"model-{n:09d}.pth" for n in (1, 2, 3)]
    again = checkpoint.read(folder)["model_state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in before["model_state_dict"].items())


def test_set_aside_never_overwrites_and_knows_files_of_other_names(tmp_path):
    model = torch.nn.Linear(2, 2)
    for round in range(2):
        for step in (1, 2):
            checkpoint.save(tmp_path, step, model, keep_latest=9)
        checkpoint.write(tmp_path, 2, checkpoint.snapshot(2, model), 9, "model-best.pth")
        assert len(checkpoint.set_aside(tmp_path, 1)) == 2, round
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("abandoned-model-000000002.1.pth", "abandoned-model-000000002.pth", "abandoned-model-best.1.pth"),
        *("abandoned-model-best.pth", "model-000000001.pth"),
    ]


def test_the_best_one_is_gone_on_from_where_there_is_no_other(tmp_path):
    """As a run leaves it that ended between its first validation and its first checkpoint."""
    model = torch.nn.Linear(2, 2)
    best = checkpoint.write(tmp_path, 1, checkpoint.snapshot(1, model), 2, checkpoint.BEST)
    assert checkpoint.find(tmp_path) == best and checkpoint.load(tmp_path, model) == 1
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint model-000000001.pth"):
        checkpoint.find(tmp_path, 1)
    newest = checkpoint.save(tmp_path, 4, model)
    assert checkpoint.find(tmp_path) == newest
    newest.write_bytes(b"cut")
    with pytest.raises(checkpoint.CheckpointError, match=f"the newest sound one: give {best}"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("harm", ["cut", "one byte"])
def test_a_damaged_newest_is_named_with_the_sound_one_before(run_of_three, tmp_path, harm):
    folder = shutil.copytree(run_of_three, tmp_path / "run")
    newest, sound = folder / "model-000000003.pth", folder / "model-000000002.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 255
    newest.write_bytes(data[:-1000] if harm == "cut" else data)
    with pytest.raises(checkpoint.CheckpointError, match="model-000000003.pth: not a readable checkpoint"):
        checkpoint.read(folder)
    for words, command in (
        (["train.run", "--resume", folder], f"python -m train.run --resume {sound}"),
        (["train.evaluate", folder], f"python -m train.evaluate {sound}"),
    ):
        [line] = errors(call_module(*words, check=False))
        assert str(newest) in line and line.endswith(command)
    if harm == "cut":
        call_module("train.run", "--resume", sound, "--max_iters", 3)
        assert checkpoint.read(folder)["step"] == 3 and (folder / "abandoned-model-000000003.pth").exists()


def test_one_that_does_not_fit_names_three_tensors(tmp_path):
    small = Segnet(8, 2, 8, latent_dim=16, encoder_type="res50")
    path = checkpoint.save(tmp_path, 1, small)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.load(path, Segnet(8, 2, 8, latent_dim=16, encoder_type="effb0"))
    text = str(caught.value)
    assert len(text) < 600 and text.count("missing") == 3 and "more; another --encoder_type, or other sensors?" in text
    with pytest.raises(checkpoint.CheckpointError, match=r"; another --model or --model_args\?$"):
        checkpoint.load(path, torch.nn.Linear(2, 2))


def test_options_of_other_versions_are_left_out(run_of_three, tmp_path, capsys):
    folder = shutil.copytree(run_of_three, tmp_path / "run")
    content = checkpoint.read(folder)
    content["options"] |= {"colour_of_the_bar": "green"}
    torch.save(content, folder / "model-000000003.pth")
    told = "colour_of_the_bar is no option of this version"
    evaluated, shown = read_options({"init_dir": str(folder)}), network_of(folder, "cpu").options
    said = capsys.readouterr().err
    assert said.count(told) == 2 and evaluated.Z == shown.Z == content["options"]["Z"], said
    result = call_module("train.run", "--resume", folder, "--max_iters", 4)
    assert told in result.stderr and checkpoint.read(folder)["step"] == 4
    with pytest.raises(ValueError, match="is not an option"):
        of_today({"colour_of_the_bar": "green"}, strict=True)
    with pytest.raises(ValueError, match="--min_visibility 2 belongs to --protocol min_visibility"):
        Options(**of_today({"protocol": "simple_bev", "min_visibility": 2}, strict=True)[0]).validate()


def test_access_to_stores_is_nowhere_to_be_found(synth_shards, tmp_path):
    secret = '{"secret_access_key": "hush"}'
    result = run_module(*arguments(synth_shards, tmp_path, *QUICK, "--max_iters", 1, "--store_options", secret))
    folder = run_folder(tmp_path)
    assert "store_options" not in (folder / "config.yaml").read_text() + str(checkpoint.read(folder)["options"])
    assert "hush" not in result.stdout + result.stderr + repr(Options(store_options=secret))


def test_a_checkpoint_brings_no_commands_along(run_of_three, tmp_path):
    folder = shutil.copytree(run_of_three, tmp_path / "run")
    content = checkpoint.read(folder)
    flag = tmp_path / "ran"
    for name, value in (("shards", [f"pipe:touch {flag}"]), ("val_shards", [f" PIPE:touch {flag}"])):
        torch.save({**content, "options": {**content["options"], name: value}}, folder / "model-000000003.pth")
        [line] = errors(call_module("train.run", "--resume", folder, "--max_iters", 4, check=False))
        assert "may not say which commands to run" in line and f"--{name}" in line and not flag.exists()
        with pytest.raises(ValueError, match="may not say which commands to run; .* name it: --val_shards"):
            read_options({"init_dir": str(folder)})
        assert not flag.exists()
    content["options"] |= {"shards": [], "data_dir": f"pipe:touch {flag} #"}
    torch.save(content, folder / "model-000000003.pth")
    [line] = errors(call_module("train.run", "--resume", folder, "--max_iters", 4, check=False))
    assert "--data_dir" in line and not flag.exists()


@pytest.mark.parametrize("digests", [("a", "b"), ("a", "a")])
def test_another_sample_list_is_refused_by_its_digest(digests):
    saved, here = digests
    content = {"samples": 4, "samples_sha256": saved}
    loader = SimpleNamespace(reader=SimpleNamespace(samples_sha256=here), windows=[0] * 4)
    if saved == here:
        check_samples("run", content, loader, "")
    else:
        with pytest.raises(ValueError, match="run was trained on other samples"):
            check_samples("run", content, loader, "")


def test_a_folder_without_checkpoints_begins_again_by_its_config(synth_shards, tmp_path):
    """What train/slurm.md's script does for a run that ended before its first checkpoint."""
    call_module(*arguments(synth_shards, tmp_path, *QUICK, "--max_iters", 1))
    folder = run_folder(tmp_path)
    (folder / "model-000000001.pth").unlink()
    result = call_module("train.run", "--resume", folder, check=False)
    [line] = errors(result)
    assert line.endswith(f"--config {folder}/config.yaml")
    call_module("train.run", "--config", folder, "--run_name", "again")
    assert checkpoint.read(tmp_path / "ckpt" / "again")["step"] == 1


def test_moments_saved_by_a_plain_optimizer_go_on_in_a_fused_one():
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 3)
        optimizer, _ = fetch_optimizer(net.parameters(), 1e-2, 0.1, 10)
        for step in range(4):
            if step == 2:
                state = optimizer.state_dict()
                optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-8, fused=fused)
                load_moments(optimizer, state)
                optimizer.param_groups[0]["lr"] = state["param_groups"][0]["lr"]
            optimizer.zero_grad()
            net(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        assert optimizer.param_groups[0]["fused"] == fused
        results.append(net.weight.detach())
    torch.testing.assert_close(results[0], results[1])
