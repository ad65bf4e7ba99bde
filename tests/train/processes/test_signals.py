"""Whoever asks a run to end, however often and whatever it is doing: what it was writing is written, and it ends so."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes.client import REPOSITORY, Process, run
from tests.train.test_resume import arguments, in_group, run_folder, small_net, start, wait_for
from train import checkpoint
from train.processes import distributed

# train.run with a disk so slow that a checkpoint takes some seconds, and a launcher that is quick to kill.
SLOW = """
import io, os, sys, time, torch
from pathlib import Path
from train.processes import distributed

def slow(value, file, plain=torch.save):
    if not isinstance(file, io.BytesIO):
        Path(os.environ["BEGUN"]).touch()
        time.sleep(float(os.environ["SECONDS"]))
    plain(value, file)

torch.save, distributed.GRACE_S = slow, 1.0
if __name__ == "__main__":
    from train.run import main
    main()
"""


def start_slow(tmp_path, seconds, words):
    script, begun = tmp_path / "slow.py", tmp_path / "begun"
    script.write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": REPOSITORY, "BEGUN": str(begun), "SECONDS": str(seconds)}
    return begun, Process(script, *words[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def as_at_a_terminal():
    """A runner in the background hands down that SIGINT is ignored, one under nohup that SIGHUP is."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.poll() and process.stderr.read()
        time.sleep(0.02)


def ended(process, seconds=90):
    """Its exit code and lines on stderr; none of its processes is left."""
    code = process.wait(seconds)
    text = process.stderr.read()
    assert "Traceback" not in text, text
    wait_until(lambda: not in_group(process.pid), SimplePoll())
    return code, [line for line in text.splitlines() if line.startswith(("stopped", "error"))]


class SimplePoll:
    def poll(self):
        return None


@pytest.mark.parametrize("devices", ["", "0,1"], ids=["one process", "two processes"])
def test_signals_during_a_slow_save_lose_nothing(synth_shards, tmp_path, devices):
    """The save takes longer than the launcher's patience; more signals of all kinds arrive while it is written."""
    words = arguments(synth_shards, tmp_path, "--max_iters", 900, "--save_freq", 2, "--do_val", "False")
    begun, process = start_slow(tmp_path, 4, [*words, "--device_ids", devices])
    wait_until(begun.exists, process)
    begun.unlink()
    process.send_signal(signal.SIGTERM)
    wait_until(begun.exists, process)  # the save that the signal asks for
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        time.sleep(0.3)
        process.send_signal(number)
    assert ended(process) == (143, ["stopped by SIGTERM; a checkpoint was saved"])
    folder = run_folder(tmp_path)
    assert 2 < checkpoint.load(folder, small_net()) < 900 and not list(folder.glob(".*"))


@pytest.mark.parametrize("number,devices", [(signal.SIGUSR1, "0,1"), (signal.SIGUSR2, ""), (signal.SIGHUP, "")])
def test_schedulers_signals_save(synth_shards, tmp_path, number, devices):
    words = arguments(synth_shards, tmp_path, "--max_iters", 900, "--save_freq", 2, "--do_val", "False")
    process = start(*words, "--device_ids", devices)
    wait_for(tmp_path, 2, process)
    process.send_signal(number)
    assert ended(process) == (128 + number, [f"stopped by {number.name}; a checkpoint was saved"])


def test_a_rank_that_fails_ends_one_that_hangs_but_not_one_that_saves(tmp_path):
    """Of three processes one fails, one hangs, and one takes longer than the launcher's patience to save."""
    script = tmp_path / "three.py"
    script.write_text(
        """
import os, sys, time
from pathlib import Path
from train.processes import distributed
distributed.GRACE_S = 0.5

def one(folder):
    rank = os.environ["RANK"]
    if rank == "0":
        distributed.saving(True)
        time.sleep(3)
        Path(folder, "saved").touch()
        distributed.saving(False)
        time.sleep(60)
    if rank == "2":
        time.sleep(60)
    time.sleep(1)
    sys.exit(7)

if __name__ == "__main__":
    distributed.spawn(one, 3, sys.argv[1])
"""
    )
    began = time.monotonic()
    result = run(script, tmp_path, env={**os.environ, "PYTHONPATH": REPOSITORY}, timeout=60)
    assert result.returncode == 7 and (tmp_path / "saved").exists() and time.monotonic() - began < 40
    assert distributed.GRACE_S == 10.0


def test_asked_to_end_while_importing(tmp_path):
    """Torch takes seconds to import; nothing of it may show."""
    (tmp_path / "model-000000001.pth").touch()  # of what is not there the command says so before it imports torch
    process = subprocess.Popen(
        [sys.executable, "-m", "train.evaluate", tmp_path],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=as_at_a_terminal,
    )
    wait_until(lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text(), process)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, ["stopped by SIGINT"])


@pytest.mark.parametrize("number,devices", [(signal.SIGTERM, ""), (signal.SIGINT, "0,1")])
def test_asked_to_end_while_starting(synth_shards, tmp_path, number, devices):
    """Nothing is there to save: one line, and the signal's exit code. A second one changes nothing."""
    script = tmp_path / "starting.py"
    script.write_text(
        """
import os, time
import train.setup

def endless(*_, **__):
    os.write(1, b"ready\\n")
    time.sleep(1000)

train.setup.make_network = endless
if __name__ == "__main__":
    from train import run
    from train.jobs import training
    training.make_network = endless
    run.main()
"""
    )
    words = arguments(synth_shards, tmp_path, "--max_iters", 900, "--device_ids", devices)
    environment = {**os.environ, "PYTHONPATH": REPOSITORY}
    process = Process(script, *words[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    for _ in devices.split(","):
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for _ in range(2):
        os.killpg(process.pid, number)  # as a terminal sends Ctrl-C: to launcher and processes alike
        time.sleep(0.05)
    assert ended(process) == (128 + number, [f"stopped by {number.name}"])


def start_two(*words):
    """Two processes that find each other by the variables that torchrun, or Slurm's script, gives them."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [start(*words, RANK=f"{rank}", LOCAL_RANK=f"{rank}", **meet) for rank in range(2)]


def test_a_process_that_hangs_is_given_up(synth_shards, tmp_path):
    """As a node does whose power fails: nothing is closed, nothing comes. It is noticed long before the first time-out."""
    words = arguments(synth_shards, tmp_path, "--max_iters", 900, "--save_freq", 2, "--do_val", "False")
    first, second = start_two(*words, "--timeout_min", 0.25)
    try:
        wait_for(tmp_path, 2, first)
        second.send_signal(signal.SIGSTOP)
        code, said = ended(first)
        assert code == 1 and len(said) == 1 and "no connection to the others" in said[0]
    finally:
        second.kill()
        second.wait()


CHAIN = re.search(r"^run=.*?^fi$", (REPOSITORY / "train" / "slurm.md").read_text(), re.DOTALL | re.MULTILINE)[0]


def test_the_chain_of_jobs_of_slurm_md(synth_shards, tmp_path):
    """Its choice of arguments, its variables, Slurm's signal to each process: begun, ended early, begun again, gone on."""
    words = arguments(
        synth_shards, tmp_path, "--max_iters", 900, "--save_freq", 2, "--do_val", "False", "--timeout_min", 1
    )[1:]
    listed = re.sub("^run=.*", f"run=({shlex.join(map(str, words))} --run_name $name)", CHAIN, count=1)
    script = listed.replace("checkpoints/", "ckpt/") + '\nprintf "%s\\n" "${run[@]}"'

    def job(signalled):
        chosen = subprocess.run(["bash", "-c", f"name=chain\n{script}"], cwd=tmp_path, capture_output=True, text=True)
        chosen = [re.sub("^ckpt/", f"{tmp_path}/ckpt/", word) for word in chosen.stdout.split()]
        tasks = start_two("train.run", *chosen)
        wait_until(signalled, tasks[0])
        for task in tasks:
            task.send_signal(signal.SIGTERM)
        codes, said = zip(*map(ended, tasks), strict=True)
        assert codes == (143, 143) and len(sum(said, [])) == 1, said
        return chosen

    folder = tmp_path / "ckpt" / "chain"
    assert "--run_name" in job(lambda: list(folder.glob("model-*")))
    step = checkpoint.find(folder).name
    for path in folder.glob("*.pth"):
        path.unlink()
    assert job(lambda: list(folder.glob("model-*")))[0] == "--config"
    assert job(lambda: checkpoint.find(folder).name > step)[0] == "--resume"
    assert [path.name for path in (tmp_path / "ckpt").iterdir()] == ["chain"]
