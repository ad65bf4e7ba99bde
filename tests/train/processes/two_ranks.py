"""python -m tests.train.processes.two_ranks SHARDS PORT…: what may befall one of two processes, told as a command tells it.

Each case has a port of its own. SHARDS: folder of this rank's shards, each named by the case that reads it.
"""

import json
import os
import signal
import sys
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common.errors import InputError
from common.vox import VoxUtil
from train.agreement import check_same_run, check_same_shards
from train.command import fail_in_one_line
from train.data.sources import LocalSource
from train.errors import DataError
from train.evaluation.evaluator import evaluate
from train.jobs.evaluation_parts import Parts
from train.loop import Trainer
from train.model import Needs
from train.options import Options
from train.processes import distributed
from train.processes.gradients import Averaged

GRID = VoxUtil(4, 2, 4, [[0.0, 1.0, 0.0]], (-4, 4, -4, 4, -4, 4))


class Plain(torch.nn.Module):
    """A network that is never asked for anything."""

    needs = Needs()

    def forward(self, batch, grid):
        raise AssertionError


def what_all_meet(world):
    Trainer(Options(keep_best="iou"), Plain(), (None, None, GRID), world=world)


def _evaluation(world, bad):
    def batches():
        if world.rank == bad:
            raise DataError(f"a bad sample of rank {bad}")
        yield from ()

    evaluate(Plain(), batches(), GRID, world)


def bad_sample_of_rank_0(world):
    _evaluation(world, 0)


def bad_sample_of_rank_1(world):
    _evaluation(world, 1)


def out_of_memory_in_an_update(world):
    """On rank 0, which holds the store, while rank 1 waits for its gradients; the wrapper keeps hold of the connection."""
    network = DistributedDataParallel(torch.nn.Linear(2, 2))
    loss = network(torch.ones(1, 2)).sum()
    if world.leads:
        raise torch.OutOfMemoryError("no room")
    loss.backward()


def two_errors_at_once(world):
    def fail():
        raise InputError(f"word {world.rank}")

    world.together(fail)


def another_fails_after_it_has_left(world):
    if world.leads:
        time.sleep(0.3)
        raise OSError("the report cannot be written")


class Loader(list):
    """Batches as this rank's loader gives them."""

    num_global_batches = 2


def time_out_of_an_evaluation(world):
    """Of two batches rank 1 has a share of the first alone; how long it then waits for the others is told as an error."""
    own = Loader(["first", "second"][: 2 - world.rank])
    parts = Parts(None, None, own, None, (), 0, None, None, "trained")
    assert list(parts.batches("evaluate", world)) == ["first", None if world.rank else "second"]
    timeout = dist.group.WORLD._get_backend(world.device).options._timeout
    raise InputError(f"waits for {timeout.total_seconds():g} s")


class Layers(torch.nn.Module):
    """Two layers, the second of which `uses` may leave out, and a buffer that grows by rank."""

    def __init__(self, world, uses):
        super().__init__()
        self.network, self.world, self.uses = torch.nn.ModuleDict(), world, uses
        for name in ("first", "second"):
            self.network[name] = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.constant_(self.network[name].weight, world.rank + 1.0)
        self.network.register_buffer("bank", torch.zeros(0))

    def forward(self, update):
        self.network.bank = torch.cat([self.network.bank, torch.ones(self.world.rank)])
        out = self.network["first"](torch.ones(1, 1))
        if self.uses(update, self.world.rank):
            out = out * self.network["second"](torch.ones(1, 1))
        return out.sum(), None, {}


def _gradients(world, uses, find_unused):
    """Of both layers, after each of three updates of two batches; the loss is w1 w2, or w1 where the second is left out."""
    step = Layers(world, uses)
    averaged = Averaged(step, find_unused)
    out = []
    for update in range(3):
        step.zero_grad(set_to_none=True)
        averaged.begin()
        for last in (False, True):
            averaged(update, last)
        out.append(tuple(p.grad.item() for p in step.network.parameters()))
    assert step.network.bank.shape == (6 * world.rank,)
    world.follow_leader(step.network.buffers())
    assert step.network.bank.shape == (0,)
    return out


def _told(world, text):
    def fail():
        raise InputError(text)

    world.together(fail)


def layer_left_out_by_one(world):
    _gradients(world, lambda update, rank: update < 2 or rank == 0, find_unused=False)


def layer_left_out_and_searched(world):
    _told(world, _gradients(world, lambda update, rank: update != 1 or rank == 0, find_unused=True))


def layer_left_out_from_the_first(world):
    _told(world, _gradients(world, lambda update, rank: update > 0 or rank == 0, find_unused=False))


def signal_to_one(world):
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    world.sum(torch.zeros(1))


def _compare_shards(world, name):
    loader = SimpleNamespace(reader=LocalSource(f"{sys.argv[1]}/{name}-000.tar"))
    world.together(lambda: check_same_shards((loader, None), world))


def other_samples(world):
    _compare_shards(world, "samples")


def other_options_of_shards(world):
    _compare_shards(world, "options")


def other_bytes(world):
    _compare_shards(world, "bytes")


def another_command_line(world):
    """Paths may differ from machine to machine; what is trained may not."""
    mix = json.dumps([{"shards": f"/data/{world.rank}/a.tar", "weight": 2}, {"shards": "/b.tar"}])
    own = {"data_dir": f"/data/{world.rank}", "nworkers": world.rank, "mix": mix}
    world.together(lambda: check_same_run(Options(**own), 7, world))
    world.together(lambda: check_same_run(Options(**own, lr=[3e-4, 1e-4][world.rank]), 7, world))


def another_checkpoint(world):
    world.together(lambda: check_same_run(Options(), [2000, 1000][world.rank], world))


CASES = (
    *(what_all_meet, bad_sample_of_rank_0, bad_sample_of_rank_1, out_of_memory_in_an_update, two_errors_at_once),
    *(another_fails_after_it_has_left, time_out_of_an_evaluation),
    *(layer_left_out_by_one, layer_left_out_and_searched, layer_left_out_from_the_first, signal_to_one),
    *(other_samples, other_options_of_shards, other_bytes, another_command_line, another_checkpoint),
)


def main(ports):
    torch.set_num_threads(1)
    for case, port in zip(CASES, ports, strict=True):
        os.environ["MASTER_PORT"] = port
        code = 0
        try:
            devices = distributed.Devices("cpu", (), 2, timeout_min=0.5)
            fail_in_one_line(lambda case=case, devices=devices: distributed.launch(case, (), devices, fail_in_one_line))
        except SystemExit as ended:
            code = ended.code
        print(f"{case.__name__} {code}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[2:])
