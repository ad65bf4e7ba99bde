"""Loss, schedule, checkpoints, names and the two commands."""

import shutil
from datetime import datetime

import numpy as np
import pytest
import torch
import webdataset

from common.shard_index import ShardError, build_index, dump_index
from common.shard_set import expand_ranges
from tests.conftest import call_module, preprocess, run_module, split_file
from tests.index_files import index_path, load_index
from train import checkpoint
from train.command import join_words
from train.loss import SimpleLoss, balanced_mse_loss
from train.optim import fetch_optimizer
from train.run import model_name


def test_learning_rate_equals_simple_bev(golden):
    want = golden("schedule.npz")["lr"]
    optimizer, scheduler = fetch_optimizer([torch.nn.Parameter(torch.zeros(1))], 3e-4, 1e-7, 1000)
    ours = []
    for _ in want:
        ours.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    if abs(ours[0] - want[0]) > 1e-12:  # the array may start after the first step
        ours = [*ours[1:], optimizer.param_groups[0]["lr"]]
    np.testing.assert_allclose(ours, want, atol=1e-9)


def test_model_name():
    now = datetime(2026, 1, 2, 17, 45, 58)
    assert model_name(1, 5, 3e-4, True, "rgb03", now) == "1x5_3e-4s_rgb03_17:45:58"
    assert model_name(8, 1, 1e-3, False, "a", now) == "8_1e-3_a_17:45:58"


def test_losses_against_plain_sums():
    rng = torch.Generator().manual_seed(0)
    logits, noise = torch.randn(2, 1, 5, 7, generator=rng), torch.rand(2, 1, 5, 7, generator=rng)
    target, valid = (noise > 0.7).float(), (noise < 0.9).float()
    p = logits.sigmoid()
    each = -(2.13 * target * p.log() + (1 - target) * (1 - p).log())
    want = each[valid > 0].mean()
    torch.testing.assert_close(SimpleLoss(2.13)(logits, target, valid), want, rtol=1e-4, atol=1e-5)
    high, low = noise > 0.5, noise < 0.5
    want = 0.5 * (((p - noise) ** 2)[high].mean() + ((p - noise) ** 2)[low].mean())
    torch.testing.assert_close(balanced_mse_loss(p, noise), want, rtol=1e-4, atol=1e-6)


def test_checkpoint_round_trip_keeps_the_newest(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer, scheduler = fetch_optimizer(model.parameters(), 1e-3, 0.0, 10)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, model, optimizer, scheduler, keep_latest=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-000000002.pth", "model-000000003.pth"]
    other = torch.nn.Linear(3, 2)
    assert checkpoint.load(tmp_path, other) == 3
    assert torch.equal(other.weight, model.weight)
    with pytest.raises(checkpoint.CheckpointError, match="missing|has"):
        checkpoint.load(tmp_path, torch.nn.Linear(4, 2))
    (tmp_path / "model-000000004.pth").write_bytes(b"cut")
    with pytest.raises(checkpoint.CheckpointError, match="model-000000004"):
        checkpoint.load(tmp_path, other)


def test_simple_bev_prefix_and_ignored_names(tmp_path):
    model = torch.nn.Linear(3, 2)
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"model_state_dict": state}, tmp_path / "model-000000007.pth")
    other = torch.nn.Linear(3, 2)
    before = other.bias.clone()
    assert checkpoint.load(tmp_path, other, ignore_load=("bias",)) == 7
    assert torch.equal(other.weight, model.weight) and torch.equal(other.bias, before)


def test_shell_words_and_ranges():
    words = ["--shards", "a.tar", "b.tar", "--lr", "1"]
    assert join_words(words) == ["--shards", "a.tar", "--shards", "b.tar", "--lr", "1"]
    words = ["--compile", "RUN", "--use-lidar", "no", "--deterministic", "--out", "a"]
    assert join_words(words, alone=True) == [
        "--compile=true",
        "RUN",
        "--use-lidar",
        "no",
        "--deterministic",
        "--out",
        "a",
    ]
    assert join_words(words) == words
    assert expand_ranges("t-<08..11>.tar") == ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]


def test_jpegs_equal_the_source_and_webdataset_reads_them(real_shards, realframe):
    samples = list(webdataset.WebDataset(f"{real_shards}/val-000.tar", shardshuffle=False))
    assert len(samples) == 3
    sources = {p.read_bytes() for p in realframe.glob("samples/CAM_*/*.jpg")}
    images = [v for sample in samples for k, v in sample.items() if k.endswith("jpg")]
    assert len(images) == 18 and set(images) <= sources


def test_index_is_rebuilt_from_the_tar_and_a_flipped_byte_is_found(real_shards, tmp_path):
    tar = real_shards / "val-000.tar"
    assert dump_index(build_index(tar)) == index_path(tar).read_bytes()
    copy = tmp_path / tar.name
    copy.write_bytes(tar.read_bytes())
    raw = bytearray(index_path(tar).read_bytes())
    raw[len(raw) // 2] ^= 1
    index_path(copy).write_bytes(raw)
    with pytest.raises(ShardError):
        load_index(copy, verify=True)


def test_shards_do_not_depend_on_the_worker_count(real_shards, realframe, tmp_path):
    preprocess(realframe, tmp_path, "--workers", 2)
    for name in ("train-000.tar", "val-000.tar", "train-000.idx.json"):
        assert (tmp_path / name).read_bytes() == (real_shards / name).read_bytes()


@pytest.mark.slow
def test_train_then_evaluate(real_shards, tmp_path):
    small = "--encoder_type res50 --no_pretrained --nworkers 2 --batch_size 1 --grad_acc 1 --res_scale 0.25"
    small = [*small.split(), *"--Z 40 --Y 4 --X 40 --use_lidar".split()]
    folders = ["--log_dir", tmp_path / "logs", "--ckpt_dir", tmp_path / "ckpt"]
    run = run_module("train.run", "--shards", f"{real_shards}/train-<000..099>.tar", *small, *folders, "--max_iters", 4)
    assert "step 000004/4" in run.stdout
    [folder] = (tmp_path / "ckpt").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "model-000000004.pth"]
    assert {p.name for p in (tmp_path / "logs" / folder.name).iterdir()} == {"t", "v"}
    result = call_module(
        "train.evaluate", "--shards", f"{real_shards}/val-*.tar", "--init_dir", folder, "--batch-size", 1
    )
    assert "3 samples; IoU 0." in result.stdout


def fails(*arguments):
    result = call_module(*arguments, check=False)
    assert result.returncode not in (0, 2) and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_wrong_training_input_is_one_line(tmp_path, real_shards):
    assert "no shard matches" in fails("train.run", "--shards", f"{tmp_path}/x-<000..099>.tar")
    shards = ["--shards", f"{real_shards}/train-*.tar", "--no_pretrained"]
    assert "batch_size 0" in fails("train.run", *shards, "--batch_size", 0)
    assert "batch_size 3" in fails("train.run", *shards, "--batch_size", 3, "--device_ids=[0,1]")
    if not torch.cuda.is_available():
        assert "0 CUDA devices" in fails("train.run", *shards, "--batch_size", 4, "--device_ids", "0,1")
    (tmp_path / "train-000.tar").symlink_to(real_shards / "train-000.tar")
    (tmp_path / "train-000.idx.json").symlink_to(real_shards / "train-000.idx.json")
    assert "--val_shards" in fails("train.run", "--shards", f"{tmp_path}/train-000.tar", "--no_pretrained")


def test_wrong_nuscenes_input_is_one_line(tmp_path, realframe):
    base = ["preprocess.run", "--out", tmp_path / "out", "--version"]
    assert "no such folder" in fails(*base, "v1.0-mini", "--dataroot", tmp_path / "absent")
    assert "v1.0-mini" in fails(*base, "v1.0-trainval", "--dataroot", realframe)
    root = tmp_path / "copy"
    root.mkdir()
    for part in realframe.iterdir():
        if part.name != "samples":
            (root / part.name).symlink_to(part)
    shutil.copytree(realframe / "samples", root / "samples")
    victim = sorted(root.glob("samples/CAM_FRONT/*.jpg"))[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    words = [*base, "v1.0-mini", "--dataroot", root, "--workers", 1, *split_file(tmp_path, root)]
    assert victim.name in fails(*words)
    victim.unlink()
    assert victim.name in fails(*words)
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_one_sweep_needs_no_sweeps_folder(tmp_path, realframe):
    root = tmp_path / "copy"
    root.mkdir()
    for part in realframe.iterdir():
        if part.name != "sweeps":
            (root / part.name).symlink_to(part)
    preprocess(root, tmp_path / "o", "--sweeps", 1)
    assert len(list((tmp_path / "o").glob("*.idx.json"))) == 2
