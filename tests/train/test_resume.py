"""A run that is killed goes on exactly; several processes are as good as one; options find their way."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.vox import VoxUtil
from tests.conftest import call_module, run_module
from tests.index_files import load_index
from tests.processes.client import Process, run
from tests.train.two_layers import TwoLayers
from train import checkpoint
from train.model.simple_bev import SimpleBev
from train.optim import fetch_optimizer
from train.options import Options
from train.processes.distributed import World
from train.processes.gradients import Averaged
from train.step import LossStep

SMALL = (
    "--model tests.train.two_layers:TwoLayers --nworkers 2 --batch_size 2 --grad_acc 2 --res_scale 0.25 --rand_flip "
    "--use_radar --use_lidar --nsweeps 1 --bounds -25,25,-5,5,-25,25 --val_freq 4 --device cpu --deterministic "
    "--Z 24 --Y 2 --X 24"
).split()


UNHURRIED = ["--model", "tests.train.two_layers:Unhurried"]
VOX_CENTRE = torch.tensor([[0.0, 1.0, 0.0]])


def arguments(shards, out, *more):
    where = ["--shards", f"{shards}/train-*.tar", "--log_dir", out / "logs", "--ckpt_dir", out / "ckpt"]
    return ["train.run", *where, *SMALL, *more]


def start(*words, **environment):
    """`python -m ...` in the repository, in a session of its own, with stderr to read."""
    return Process("-m", *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment})


def run_folder(out):
    [folder] = (out / "ckpt").iterdir()
    return folder


def wait_for(out, step, process, seconds=120):
    """Until a checkpoint of `step` or later is complete."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        found = sorted((out / "ckpt").glob("*/model-*.pth"))
        if found and int(found[-1].stem[6:]) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(process.stderr.read() if process.poll() is not None else "no checkpoint in time")


@pytest.fixture(scope="module")
def straight(synth_shards, made_once):
    """Folder, with one checkpoint per update, and TensorBoard curves of 8 updates without a break."""
    words = ["--max_iters", 8, "--save_freq", 1, "--keep_latest", 8]
    out = made_once("straight", lambda out: run_module(*arguments(synth_shards, out, *words)))
    return run_folder(out), curves(out)


def curves(out):
    """(step, value) of every scalar of a run that does not measure time or memory."""
    found = {}
    for where in "tv":
        [folder] = (out / "logs").glob(f"*/{where}")
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not re.search("time|wait|_per_s|memory", tag):
                found[where, tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def assert_same(a, b):
    for part in ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "loader", "val_loader"):
        left, right = (torch.utils._pytree.tree_flatten(content[part])[0] for content in (a, b))
        for x, y in zip(left, right, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, part


def test_killed_and_resumed_equals_straight(synth_shards, straight, tmp_path):
    process = start(*arguments(synth_shards, tmp_path, *UNHURRIED, "--max_iters", 8, "--save_freq", 3))
    wait_for(tmp_path, 3, process)
    process.kill()
    process.wait()
    folder = run_folder(tmp_path)
    assert checkpoint.load(folder, small_net()) < 8
    run_module("train.run", "--resume", folder, "--nworkers", 1, "--save_freq", 8)
    assert run_folder(tmp_path) == folder
    assert_same(checkpoint.read(folder, 8), checkpoint.read(straight[0]))
    assert curves(tmp_path) == straight[1]
    assert [step for step, _ in straight[1]["t", "pooled/iou"]] == list(range(1, 9))


def small_net():
    return TwoLayers(Options(use_radar=True, use_lidar=True), VoxUtil(24, 2, 24, VOX_CENTRE, Options.bounds))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_boundary(synth_shards, straight, tmp_path, number):
    """What it saves is what a run without the signal has there, from which a run goes on exactly."""
    process = start(*arguments(synth_shards, tmp_path, *UNHURRIED, "--max_iters", 8, "--save_freq", 2))
    wait_for(tmp_path, 2, process)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert "Traceback" not in process.stderr.read()
    saved = checkpoint.read(run_folder(tmp_path))
    assert 2 <= saved["step"] < 8
    assert_same(saved, checkpoint.read(straight[0], saved["step"]))


WRITE_FOREVER = """
import sys, torch
from train import checkpoint
model = torch.nn.Linear(300, 300)
writer = checkpoint.Writer(sys.argv[1], 1)
for step in range(1, 100000):
    with torch.no_grad():
        model.weight.fill_(step)
    writer.submit(step, checkpoint.snapshot(step, model))
"""


def test_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    process = Process("-c", WRITE_FOREVER, tmp_path)
    while not list(tmp_path.glob("model-*.pth")):
        time.sleep(0.05)
    for _ in range(5):
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        process.wait()
        model = torch.nn.Linear(300, 300)
        assert len(list(tmp_path.glob(".*.tmp"))) <= 1  # what earlier kills left is gone
        step = checkpoint.load(tmp_path, model)
        assert (model.weight == step).all() and 1 <= len(list(tmp_path.glob("model-*.pth"))) <= 2
        for path in tmp_path.glob("*.pth"):
            path.unlink()
        process = Process("-c", WRITE_FOREVER, tmp_path)
        while not list(tmp_path.glob("model-*.pth")):
            time.sleep(0.05)
    process.kill()
    process.wait()


def test_config_is_fed_back_and_wrong_ones_are_told(synth_shards, tmp_path):
    call_module(*arguments(synth_shards, tmp_path, "--max_iters", 1, "--seed", 5))
    config = run_folder(tmp_path) / "config.yaml"
    call_module("train.run", "--config", config, "--exp_name", "again", "--ckpt_dir", tmp_path / "second")
    [again] = (tmp_path / "second").iterdir()
    first, second = checkpoint.read(run_folder(tmp_path)), checkpoint.read(again)
    assert_same(first, second)
    assert second["options"]["seed"] == 5 and "again" in again.name
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"learning_rate": 1}))
    failed = call_module("train.run", "--config", wrong, check=False)
    assert failed.returncode == 1 and "learning_rate is not an option" in failed.stderr
    failed = call_module(*arguments(synth_shards, tmp_path, "--dset", "trainval"), check=False)
    assert failed.returncode == 1 and "v1.0-mini" in failed.stderr


def test_two_processes_and_another_world_size(synth_shards, tmp_path):
    run_module(*arguments(synth_shards, tmp_path, "--device_ids", "0,1", "--max_iters", 3, "--val_batches", "all"))
    folder = run_folder(tmp_path)
    two = checkpoint.read(folder)
    call_module("train.run", "--resume", folder, "--device_ids", "", "--max_iters", 4)
    four = checkpoint.read(folder)
    assert (two["step"], four["step"]) == (3, 4) and two["loader"] == {"epoch": 0, "position": 6}
    assert two["val_loader"] == {"epoch": 1, "position": 0}
    assert list((tmp_path / "logs").glob("*/v/events*"))


def test_resume_goes_further_and_refuses_another_experiment(synth_shards, real_shards, tmp_path):
    call_module(*arguments(synth_shards, tmp_path, "--max_iters", 1, "--do_val", "False"))
    folder = run_folder(tmp_path)
    resume = ["train.run", "--resume", folder]
    for more, told in (
        (["--lr", "1e-3"], "--lr 0.001: the run to resume has 0.0003"),
        (["--batch_size", "1"], "--batch_size 1"),
        (["--max_iters", "2", "--shards", f"{real_shards}/train-*.tar", "--dset", "mini"], "trained on 20 samples"),
    ):
        failed = call_module(*resume, *more, check=False)
        assert failed.returncode == 1 and told in failed.stderr
    assert "has its 1 updates" in call_module(*resume).stderr
    before = checkpoint.read(folder)
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(folder / "config.yaml", young)
    failed = call_module("train.run", "--resume", young, check=False)
    assert failed.returncode == 1 and f"begin it again with --config {young}/config.yaml" in failed.stderr
    call_module(*resume, "--max_iters", 2, "--lr", "3e-4", "--deterministic", "False")
    assert checkpoint.read(folder)["step"] == 2 and before["loader"] == {"epoch": 0, "position": 2}


def test_a_loss_that_is_not_finite_ends_the_run_with_its_samples(synth_shards, tmp_path):
    """Huge steps break the weights; the checkpoint of the last good update stays."""
    wild = [
        "--model",
        "simple_bev",
        "--encoder_type",
        "effb0",
        "--no_pretrained",
        "True",
        "--lr",
        "1e30",
        "--use_scheduler",
        "False",
        "--save_freq",
        1,
        "--max_iters",
        9,
    ]
    failed = run_module(*arguments(synth_shards, tmp_path, *wild), check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    [line] = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    step, names = re.search(r"is not finite at step (\d+); samples (.*); lower --lr", line).groups()
    known = {row["token"] for path in synth_shards.glob("train-*.tar") for row in tokens_of(path)}
    assert 1 <= len(names.split(", ")) <= 4 and set(names.split(", ")) <= known
    state = checkpoint.read(run_folder(tmp_path))
    assert state["step"] == int(step) - 1
    assert all(value.isfinite().all() for value in state["model_state_dict"].values())


def tokens_of(shard):
    """The sample facts of every record of a shard."""
    with tarfile.open(shard) as tar:
        texts = [tar.extractfile(m).read() for m in tar if m.name.endswith(".json")]
    return [facts for facts in map(json.loads, texts) if "token" in facts]


def test_torchrun_on_two_nodes(synth_shards, tmp_path):
    """Two torchruns that meet over the network, a process each: one run, one writer."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    meet = f"torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {port}".split()
    words = ["-m", *arguments(synth_shards, tmp_path, "--max_iters", 2, "--val_freq", 1)]
    nodes = [start(*meet, "--node-rank", rank, *words) for rank in range(2)]
    for node in nodes:
        assert node.wait(200) == 0, node.stderr.read()
    state = checkpoint.read(run_folder(tmp_path))
    assert state["step"] == 2 and state["loader"] == {"epoch": 0, "position": 4}
    assert len(list((tmp_path / "logs").glob("*/t/events*"))) == 1


@pytest.mark.parametrize("row", [4, 5], ids=["rank 0", "rank 1"])
def test_a_bad_sample_of_one_process_ends_both_in_one_line(synth_shards, tmp_path, row):
    bad = shutil.copytree(synth_shards, tmp_path / "bad")
    index = load_index(bad / "train-000.tar")
    with open(bad / "train-000.tar", "r+b") as tar:
        tar.seek(int(index.offsets[row, index.members.index("CAM_BACK.jpg")]))
        tar.write(bytes(1000))
    words = ["--device_ids", "0,1", "--shuffle", "False", "--max_iters", 9]
    failed = run_module(*arguments(bad, tmp_path, *words), check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr and "step 000001/9" in failed.stdout
    [line] = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert "train-000.tar" in line and index.keys[row] in line and "CAM_BACK.jpg" in line


def in_group(leader):
    """Processes of the session that `leader` began, zombies left out."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            count += int(group) == leader and state != "Z"
    return count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_stop_together(synth_shards, tmp_path, number):
    """Whether the launcher is asked to stop or killed: both save and end, none is left behind."""
    process = start(*arguments(synth_shards, tmp_path, "--device_ids", "0,1", "--max_iters", 900, "--save_freq", 3))
    wait_for(tmp_path, 3, process)
    process.send_signal(number)
    assert process.wait(60) == (143 if number == signal.SIGTERM else -9)
    deadline = time.monotonic() + 60
    while in_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not in_group(process.pid)
    assert 3 <= checkpoint.load(run_folder(tmp_path), small_net()) < 900


VOX = VoxUtil(16, 2, 16, VOX_CENTRE, (-16, 16, -4, 4, -16, 16))


def random_batches(dtype, count=12):
    """Batches of two samples whose masks differ much in size."""
    rng = torch.Generator().manual_seed(0)
    pix_T_cam = torch.eye(4)
    pix_T_cam[0, 0] = pix_T_cam[1, 1] = 30.0
    pix_T_cam[:2, 2] = 32.0
    out = []
    for number in range(count):
        noise = torch.rand((2, 1, 1, 16, 16), generator=rng, dtype=dtype)
        share = torch.tensor([0.1, 0.9], dtype=dtype).view(2, 1, 1, 1, 1)
        out.append(
            {
                "imgs": torch.rand((2, 1, 2, 3, 64, 64), generator=rng, dtype=dtype),
                "intrins": pix_T_cam.expand(2, 1, 2, 4, 4),
                "rots": torch.eye(3).expand(2, 1, 2, 3, 3),
                "trans": torch.zeros(2, 1, 2, 3),
                "ref_T_ego": torch.eye(4).expand(2, 1, 4, 4),
                "seg_bev": (noise < share).to(dtype),
                "valid_bev": (noise < 0.95).to(dtype),
                "center_bev": noise,
                "offset_bev": torch.randn((2, 1, 2, 16, 16), generator=rng, dtype=dtype),
                "indices": [2 * number, 2 * number + 1],
            }
        )
    return out


# Of the comparison of two processes with one: type, updates, what the two may differ by. Rounding grows by the update.
CASES = ((torch.float64, 12, 1e-6), (torch.float32, 1, 1e-5))


def train_all_on(rank, size, port, folder):
    """train_on for each of CASES, saved as its number."""
    torch.set_num_threads(1)
    world = None
    if size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
        dist.init_process_group("gloo")
        world = World(rank, size, torch.device("cpu"))
    folder.mkdir(exist_ok=True)
    for number, case in enumerate(CASES):
        train_on(rank, size, world, case, folder / f"{number}.pth")
    if size > 1:
        dist.destroy_process_group()


def train_on(rank, size, world, case, path):
    """Updates of one of CASES with flips and frozen batch norm; saves the first gradients and the weights."""
    dtype, updates, _ = case
    torch.manual_seed(0)
    net = SimpleBev(16, 2, 16, latent_dim=8, encoder_type="res50", rand_flip=True)
    if updates > 1:  # of many updates the optimizer's work on ten million weights would be most
        net.encoder = torch.nn.Conv2d(3, 8, 8, stride=8)
        net.encoder.multiple, net.encoder.strides = 8, (8,)
        for level in ("layer1", "layer2", "layer3"):
            setattr(net.decoder, level, getattr(net.decoder, level)[:1])
    net = net.to(dtype)
    step = LossStep(net, VOX, None, world).to(dtype)
    averaged = Averaged(step)
    step.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer, scheduler = fetch_optimizer(net.parameters(), 3e-4, 1e-7, Options().max_iters)
    first = None
    for whole in random_batches(dtype, updates):
        share = slice(rank, rank + 1) if size > 1 else slice(None)
        batch = SimpleNamespace(epoch=0, true_times=False, **{k: v[share] for k, v in whole.items()})
        optimizer.zero_grad()
        averaged.begin()
        averaged(batch)
        first = first or [p.grad.clone() for p in net.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
    if rank == 0:
        torch.save({"first": first, "weights": [p.detach() for p in net.parameters()]}, path)


def test_two_processes_have_the_gradients_of_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = f"""
import torch.multiprocessing
from pathlib import Path
from tests.train.test_resume import train_all_on
torch.multiprocessing.spawn(train_all_on, (2, {port}, Path({str(tmp_path / "two")!r})), nprocs=2)
"""
    run("-c", code, check=True)
    threads = torch.get_num_threads()
    train_all_on(0, 1, port, tmp_path / "one")
    torch.set_num_threads(threads)
    for number, (dtype, _, tolerance) in enumerate(CASES):
        one, two = (torch.load(tmp_path / processes / f"{number}.pth") for processes in ("one", "two"))
        for part in ("first", "weights"):
            a, b = (torch.cat([t.flatten() for t in state[part]]) for state in (one, two))
            assert (a - b).norm() <= tolerance * a.norm(), (dtype, part)
            if dtype == torch.float64:
                assert (a - b).abs().max() <= tolerance, part
