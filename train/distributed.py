"""One process a device: what torchrun set up, or processes that we start ourselves."""

import ctypes
import datetime
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass

import click
import torch
import torch.distributed as dist

TIMEOUT_S = 1800  # a rank that waits longer for the others gives up
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_S = 10.0  # after one process failed, the others get this long


class PeerFailed(RuntimeError):
    """Another rank failed, and says why itself."""


class PeersLost(RuntimeError):
    """The other ranks could not be met, or the connection to them broke; the message holds what the backend said."""


@dataclass(frozen=True)
class World:
    """This process's place: rank of size, and its device.

    control: process group of the CPU for what the ranks tell each other besides tensors; it never waits for a device.
    """

    rank: int
    size: int
    device: torch.device
    control: object = None

    @property
    def leads(self):
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def sum(self, tensor):
        """The tensor summed over all ranks; no gradient flows through it."""
        if self.size == 1:
            return tensor
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
        return tensor

    def follow_leader(self, tensors):
        """Overwrite the tensors with rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, value):
        """List of the ranks' values, any that can be serialised, in the order of ranks."""
        if self.size == 1:
            return [value]
        out = [None] * self.size
        dist.all_gather_object(out, value, self.control)
        return out

    def any(self, number):
        """The largest of the ranks' non-negative numbers: who saw a signal or failed tells the others."""
        if self.size == 1:
            return number
        tensor = torch.tensor([number])
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self.control)
        return int(tensor)

    def together(self, action):
        """What action() gives, on every rank. Where it fails on some, these raise their error and the others PeerFailed."""
        value, error = None, None
        try:
            value = action()
        except Exception as failure:  # whatever it is, the others must hear of it
            error = failure
        failed = self.any(int(error is not None))
        if error is not None:
            raise error
        if failed:
            raise PeerFailed
        return value


def by_torchrun():
    """Whether torchrun (or the like) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def say(text, once_per="run"):
    """One line on stderr: of rank 0 ("run"), of the first rank of each machine ("node"), or of any ("process")."""
    variable = {"run": "RANK", "node": "LOCAL_RANK", "process": None}[once_per]
    if variable is None or int(os.environ.get(variable, 0)) == 0:
        click.echo(text, err=True)


def pick_device(name, device_ids=()):
    """torch.device of the name; CUDA if there is one where the name is empty. Raises ValueError.

    Of several devices, that of this process's LOCAL_RANK.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if not name:
        name = "cuda" if torch.cuda.is_available() or device_ids else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type != "cuda":
        raise ValueError(f"--device {name}: it is cuda or cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = device_ids or ((local,) if device.index is None else (device.index,))
    if max(wanted) >= there or min(wanted) < 0:
        shown = ",".join(map(str, wanted))
        raise ValueError(f"--device_ids {shown}: this machine has {there} CUDA devices; name fewer, or --device cpu")
    return torch.device("cuda", wanted[local % len(wanted)])


def launch(target, options):
    """Run target(options, world) in a process a device: this one, torchrun's, or new ones.

    Returns:
        What target returned; None where new processes ran it. These end in one line, and so does this one.
    Raises:
        ValueError: devices that are not there, a batch size that they do not divide.
    """
    ours = not by_torchrun()
    size = len(options.device_ids) if ours else int(os.environ["WORLD_SIZE"])
    if not size:
        size = max(torch.cuda.device_count(), 1) if options.device in ("", "cuda") else 1
    options.validate(size)
    device = pick_device(options.device, options.device_ids)
    if options.sync_bn and device.type != "cuda":
        raise ValueError("--sync_bn needs CUDA devices; leave it out")
    if ours and size > 1:
        return spawn(_one_of_several, size, target, options)
    try:
        return target(options, _join(device, size))
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors, with the path of its source in the text.
        if size > 1 and (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise PeersLost(f"rank {os.environ['RANK']} has no connection to the others ({str(error)[:300]})") from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _one_of_several(target, options):
    from train.command import fail_in_one_line

    fail_in_one_line(lambda: launch(target, options))


def _join(device, size):
    """This process's World on `device`, after meeting the others where there are others."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not by_torchrun():
        return World(0, 1, device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=TIMEOUT_S)
    dist.init_process_group(backend, timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout) if backend != "gloo" else None
    return World(dist.get_rank(), size, device, control)


def spawn(target, size, *arguments):
    """Run target(*arguments) in `size` new processes that find each other; exits with the code of the first that fails.

    SIGTERM and SIGINT are passed on.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spawned, args=(r, size, port, target, arguments)) for r in range(size)]
    for process in processes:
        process.start()

    def pass_on(number, _frame):
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = _wait(processes)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    if code < 0:
        say(f"error: one of the {size} processes was ended by signal {-code}")
    if code:
        sys.exit(code if code > 0 else 128 - code)


def _wait(processes):
    """Exit code of the first process that failed, 0 if none did; the others are ended."""
    failed, deadline = 0, None
    while any(p.is_alive() for p in processes):
        time.sleep(0.05)
        failed = failed or next((p.exitcode for p in processes if p.exitcode), 0)
        deadline = deadline or (failed and time.monotonic() + GRACE_S)
        if deadline and time.monotonic() > deadline:
            for process in processes:
                process.kill()
    return failed or next((p.exitcode for p in processes if p.exitcode), 0)


def _end_with_parent():
    """Have the kernel send this process SIGTERM when the launcher is killed: it saves and ends instead of running on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _spawned(rank, size, port, target, arguments):
    _end_with_parent()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # As many threads as cores in each process would make them all wait for each other.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    target(*arguments)
