"""Where the time of a training step goes, operation by operation, with the bytes and the arithmetic of each."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.bench.step_bench import moved
from train.optim import fetch_optimizer, parameter_groups
from train.processes.precision import on_device, set_precision
from train.setup import make_loaders, make_network
from train.step import LossStep

FILE = "operations.json"
MARK = "bench "  # before the names by which operations are found in the profile
COSTLIEST = 25


@dataclass
class Operation:
    """All calls of one operation with tensors of one shape in a step: milliseconds of the device, and what they need.

    half: whether it computes in bfloat16.
    """

    name: str
    calls: int = 0
    ms: float = 0.0
    flops: int = 0
    nbytes: int = 0
    half: bool = False


def table(settings, rows):
    """Rows of the costliest operations of a step. All of them go to operations.json, torch's own table to profile.txt."""
    step = _step(settings)
    for _ in range(1 if settings.dry else 3):  # kernels are chosen
        step()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (not settings.dry)
    with profile(activities=activities) as profiled, _Marks() as marks:
        step()
        if not settings.dry:
            torch.cuda.synchronize()
    averages = profiled.key_averages()
    clock = "cpu_time_total" if settings.dry else "device_time_total"
    for event in averages:
        # On a GPU a mark is there twice, as the host's and as the device's own.
        if event.key.startswith(MARK):
            found = marks.operations[event.key.removeprefix(MARK)]
            found.ms = max(found.ms, getattr(event, clock) / 1e3)
    order = sorted(marks.operations.values(), key=lambda operation: -operation.ms)
    Path(settings.out, FILE).write_text(json.dumps([asdict(operation) for operation in order]))
    text = averages.table(sort_by="self_" + clock, row_limit=60, max_name_column_width=80)
    Path(settings.out, "profile.txt").write_text(text)
    rows.add("all operations", sum(operation.ms for operation in order), "ms")
    for operation in order[:COSTLIEST]:
        gbytes = operation.nbytes / 1e9
        rate = gbytes / operation.ms * 1e3 if operation.ms else 0.0
        rows.add(operation.name, operation.ms, "ms", calls=operation.calls, gbytes=gbytes, gbytes_per_s=rate,
                 tflop=operation.flops / 1e12)  # fmt: skip


def _step(settings):
    """A function that runs a training step, its optimizer included, on one batch."""
    options = settings.options(batch_size=settings.batch)
    device = torch.device(settings.device)
    set_precision(options, device)
    network, options = make_network(options)
    train, _, grid = make_loaders(options, device)
    batch = next(iter(train))
    autocast = torch.bfloat16
    on_device(network, device, autocast)
    loss_of = LossStep(network, grid, autocast).train()
    optimizer, _ = fetch_optimizer(parameter_groups(network), options.lr, options.weight_decay, 100)

    def step():
        loss_of(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), options.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class _Marks(TorchDispatchMode):
    """Marks every operation for the profiler by name and shapes, and adds up what it needs."""

    def __init__(self):
        super().__init__()
        self.operations = defaultdict(lambda: Operation(""))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor) and t.dim()]
        shapes = " ".join("x".join(map(str, t.shape)) for t in given[:3])
        more = f" and {len(given) - 3} more" if len(given) > 3 else ""
        name = f"{func.name()} {shapes}{more}"
        with record_function(MARK + name):
            out = func(*args, **(kwargs or {}))
        needed = moved(func, args, kwargs or {}, out)
        if needed is not None:
            operation = self.operations[name]
            operation.name, operation.calls = name, operation.calls + 1
            operation.flops, operation.nbytes = operation.flops + needed[0], operation.nbytes + needed[1]
            operation.half |= any(t.dtype in (torch.bfloat16, torch.float16) for t in given)
        return out
