"""One process a device: what torchrun set up, or processes that we start ourselves."""

import datetime
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

TIMEOUT_S = 1800  # a rank that waits longer for the others gives up
GRACE_S = 10.0  # after one process failed, the others get this long


@dataclass(frozen=True)
class World:
    """This process's place: rank of size, and its device."""

    rank: int
    size: int
    device: torch.device

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

    def mean(self, tensor):
        """The mean over all ranks; no gradient flows through it."""
        return self.sum(tensor) / self.size

    def any(self, number):
        """The largest of the ranks' non-negative numbers: who saw a signal tells the others."""
        if self.size == 1:
            return number
        tensor = torch.tensor([number], device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)


def by_torchrun():
    """Whether torchrun (or the like) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size(options):
    """Processes that a run of these options has, over all nodes."""
    return int(os.environ["WORLD_SIZE"]) if by_torchrun() else max(len(options.device_ids), 1)


def join(device, size):
    """This process's World on `device`, after meeting the others where size > 1."""
    if size == 1 and not by_torchrun():
        return World(0, 1, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=TIMEOUT_S))
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave():
    """Undo join."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def _spawned(rank, size, port, target, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    target(*arguments)
