"""One process per device: what torchrun set up, or processes that we start ourselves."""

import ctypes
import datetime
import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass

import torch
import torch.distributed as dist

from common.errors import InputError
from train.errors import NotFinite, PeerFailed, PeersLost, Stopped
from train.processes import ranks, signals
from train.processes.first_error import FirstError
from train.processes.ranks import by_torchrun, cores, say

FIRST_TIMEOUT_MIN = 10.0  # that a rank waits for the others until they have made their first step: kernels are built
WAIT_S = 0.1  # between two times that the ranks ask each other
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_S = 10.0  # after one process failed, or its save ended, another gets this long

_saving = None  # of this process: the launcher's flags, and this one's place among them


@dataclass(frozen=True)
class World:
    """This process's place: rank of size, and its device.

    control: process group of the CPU for what the ranks tell each other besides tensors; it never waits for a device.
    timeout_min: that a rank waits for the others, once they have made their first step.
    """

    rank: int
    size: int
    device: torch.device
    control: object = None
    timeout_min: float = FIRST_TIMEOUT_MIN

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
        """Overwrite the tensors, and their shapes where these differ, with rank 0's."""
        if self.size == 1:
            return
        tensors = [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors]
        shapes = self.gather([tuple(tensor.shape) for tensor in tensors])[0]
        for tensor, shape in zip(tensors, shapes, strict=True):
            if tuple(tensor.shape) != shape:  # a bank of features, say, that has grown otherwise
                tensor.data = tensor.new_empty(shape)
            sent = tensor.contiguous()
            dist.broadcast(sent, 0)
            if sent is not tensor:
                tensor.copy_(sent)

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
        """What action() gives, on every rank. Where it fails on some, these raise their error and the others PeerFailed.

        Of ranks that fail with the same words, the first one alone raises them.
        """
        value, error = None, None
        try:
            value = action()
        except Exception as failure:  # whatever it is, the others must hear of it
            error = failure
        if not self.any(int(error is not None)):
            return value
        texts = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is None or texts.index(texts[self.rank]) < self.rank:
            raise PeerFailed from error
        raise error

    def wait(self, done):
        """Return on every rank once done() is true on one. A rank that is lost meanwhile is noticed; waiting is no time-out."""
        while not self.any(int(done())):
            time.sleep(WAIT_S)

    def first_step_done(self):
        """From now on a rank that stays away is given up after timeout_min; once more changes nothing."""
        if self.size > 1:
            set_timeout = (
                getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
            )  # before torch 2.13
            for group in (None, self.control) if self.control is not None else (None,):
                set_timeout(datetime.timedelta(minutes=self.timeout_min), group)


def saving(on):
    """Tell the launcher whether this process is writing what must not be lost: until it has, it is not killed."""
    if _saving is not None:
        flags, rank = _saving
        flags[rank] = on


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
        raise InputError(f"--device {name}: it is cuda or cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = device_ids or ((local,) if device.index is None else (device.index,))
    if max(wanted) >= there or min(wanted) < 0:
        shown = ",".join(map(str, wanted))
        raise InputError(f"--device_ids {shown}: this machine has {there} CUDA devices; name fewer, or --device cpu")
    return torch.device("cuda", wanted[local % len(wanted)])


@dataclass(frozen=True)
class Devices:
    """Where a command runs. name, ids: of --device and --device_ids. size: processes in all. timeout_min: as in World."""

    name: str
    ids: tuple
    size: int
    timeout_min: float = FIRST_TIMEOUT_MIN


def count_processes(name, ids):
    """Processes that a command with these --device and --device_ids has in all: torchrun's, else one per device."""
    if by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return len(ids) or (max(torch.cuda.device_count(), 1) if name in ("", "cuda") else 1)


def launch(target, arguments, devices, guard):
    """Run target(*arguments, world) in one process per device: this one, torchrun's, or new ones.

    Args:
        guard: function that runs a function and ends the process in one line where that fails; new processes need one.
    Returns:
        What target returned; None where new processes ran it. These end in one line, and so does this one.
    Raises:
        ValueError: devices that are not there. PeersLost.
    """
    if devices.size > 1 and not by_torchrun():
        return spawn(_guarded, devices.size, target, arguments, devices, guard)
    return _run_here(target, arguments, devices)


def _guarded(target, arguments, devices, guard):
    guard(lambda: _run_here(target, arguments, devices))


def own_device(name, ids=()):
    """pick_device, and from now on this process's current device: else streams, events and contexts would be GPU 0's."""
    device = pick_device(name, ids)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _run_here(target, arguments, devices):
    device = own_device(devices.name, devices.ids)
    if not by_torchrun():
        return target(*arguments, World(0, 1, device))
    first_error = None
    try:
        first_error, world = _join(device, devices)
        return target(*arguments, world)
    except (Stopped, NotFinite, PeerFailed):
        raise  # all ranks end by these, and know it of each other
    except (Exception, KeyboardInterrupt) as error:
        lost = _as_lost(error, devices)
        ended = lost or error
        if first_error is not None and not first_error.mine(lost is not None):
            ended = PeerFailed(getattr(error, "code", 1))
        _let_go(error)
        if ended is error:
            raise
        for note in getattr(error, "__notes__", ()):
            ended.add_note(note)
        raise ended from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        if first_error is not None:
            first_error.leave()


def _let_go(error):
    """Let nothing that the error has passed hold a process group any more: its connections close with the last that does.

    The others wait for this rank until they close; a wrapped network alone would keep them until this process has ended.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def _as_lost(error, devices):
    """PeersLost, where an error means that. Gloo raises plain RuntimeErrors, with the path of its source in the text."""
    if devices.size > 1 and (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
        return PeersLost(f"rank {os.environ['RANK']} has no connection to the others ({str(error)[:300]})")
    return None


def _join(device, devices):
    """(FirstError, this process's World on `device`), after meeting the others."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(minutes=max(FIRST_TIMEOUT_MIN, devices.timeout_min))
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    met = dist.PrefixStore("ranks", store)
    dist.init_process_group(backend, store=met, rank=rank, world_size=size, timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout) if backend != "gloo" else None
    ranks.join()
    if _saving is not None:
        _end_with_parent(signal.SIGTERM)
    world = World(rank, size, device, control, devices.timeout_min)
    return FirstError(dist.PrefixStore("first_error", store), rank, size), world


def spawn(target, size, *arguments):
    """Run target(*arguments) in `size` new processes that find each other; exits with the code of the first that fails.

    Signals are passed on, and a process that is saving is waited for.
    """
    # Here, so that no other process can take the port between its choice and its use.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    flags = context.RawArray("b", size)
    processes = [
        context.Process(target=_spawned, args=(r, size, store.port, flags, target, arguments)) for r in range(size)
    ]

    def pass_on(number, _frame):
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    with signals.handled(pass_on):
        with signals.held():
            for process in processes:
                process.start()
        code = _wait(processes, flags)
    if code < 0:
        say(f"error: one of the {size} processes was ended by signal {-code}")
    if code:
        sys.exit(code if code > 0 else 128 - code)


def _wait(processes, saving):
    """Exit code of the first process that failed, 0 if none did; the others are ended, those that are saving after that."""
    failed, kept = 0, [0.0] * len(processes)  # when each process last had a reason to be there
    while any(p.is_alive() for p in processes):
        time.sleep(0.05)
        now = time.monotonic()
        for place, process in enumerate(processes):
            if not failed or saving[place]:
                kept[place] = now
            elif now - kept[place] > GRACE_S:
                process.kill()
        failed = failed or next((p.exitcode for p in processes if p.exitcode), 0)
    return failed or next((p.exitcode for p in processes if p.exitcode), 0)


def _end_with_parent(number):
    """Have the kernel send this process a signal when the launcher is killed, instead of letting it run on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != multiprocessing.parent_process().pid:  # killed before this was asked for
        os.kill(os.getpid(), number)


def _spawned(rank, size, port, flags, target, arguments):
    global _saving
    _saving = flags, rank
    # Until the ranks have met there is nothing to save, and whoever waits for them in torch hears no other signal.
    _end_with_parent(signal.SIGKILL)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher's, which is there already
    }
    # As many threads as cores in each process would make them all wait for each other.
    torch.set_num_threads(max(1, cores() // size))
    target(*arguments)
