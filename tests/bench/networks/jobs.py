"""What is measured of a row, each in a process of its own: its cost, alone on the machine, and one training by each seed."""

import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.networks.recipes import BY_NAME, COMMON, DRY, QUARTERS
from tests.bench.networks.table import read
from tests.bench.train_bench import MEMORY, SPEED, WARM_UP, measured
from train import checkpoint
from train.jobs.training import train
from train.model.forward import run_network, with_voxels, without_gradients
from train.options import Options
from train.setup import make_loaders, make_network

MOST_HIDDEN = 2  # visibility of boxes that are seen by less than 60 %
TIMED = 12  # updates whose speed counts


@dataclass(frozen=True)
class Settings:
    """out: folder of the results. device: cpu or cuda. threads: of a loader. dry: tiny sizes, two updates each."""

    out: str
    device: str
    threads: int
    dry: bool = False

    def shards(self, world):
        """Folder of a world's shards."""
        return Path(self.out, f"dry-{world}" if self.dry else world)

    @property
    def results(self):
        return Path(self.out, "dry-networks.jsonl" if self.dry else "networks.jsonl")

    def rows(self):
        """The results, without trainings whose number of updates is not the recipe's: a row's spread is of equal trainings."""
        updates = {name: self.updates(recipe) for name, recipe in BY_NAME.items()}
        return [
            row for row in read(self.results) if row["what"] != "trial" or row["updates"] == updates.get(row["row"])
        ]

    def updates(self, recipe):
        return 2 if self.dry else recipe.updates

    def options(self, recipe, folder, **more):
        """Options of the recipe's training, into the folder."""
        here = self.shards(recipe.world)
        split = dict(shards=(f"{here}/train-*.tar",), val_shards=(f"{here}/val-*.tar",))
        places = dict(log_dir=f"{folder}/logs", ckpt_dir=f"{folder}/checkpoints", run_name="run", exp_name="bench")
        device = dict(device=self.device, device_ids=(0,) if self.device == "cuda" else ())
        threads = dict(nworkers=self.threads, nworkers_val=self.threads)
        never = dict(save_freq=10**6, log_freq=10**6)
        tiny = DRY if self.dry else {}
        return Options(**{**split, **places, **device, **threads, **never, **COMMON, **recipe.options, **tiny, **more})


def keep(settings, **row):
    """Append a row to the results, at once."""
    with open(settings.results, "a") as file:
        file.write(json.dumps(row) + "\n")


def failed(settings, name, what, seed, why):
    """Keep why a row's cost or training has none."""
    keep(settings, row=name, what="failed", of=what, seed=seed, why=why)


def cost(settings, name):
    """Parameters, operations per sample, and what a training without anything beside it takes: samples/s and memory."""
    recipe = BY_NAME[name]
    if not settings.dry:  # trainings side by side have a thread each; this one is alone
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        updates = WARM_UP + (1 if settings.dry else TIMED)
        options = settings.options(recipe, folder, do_val=False, max_iters=updates)
        figures = measured(options)
        parameters, operations = _counted(options)
    row = dict(parameters=parameters, operations=operations, samples_per_s=figures[SPEED], memory_gb=figures[MEMORY])
    keep(settings, row=name, what="cost", **row)


def _counted(options):
    """(parameters, operations of the convolutions and products of one sample's evaluation: two for each multiply and add)."""
    network, options = make_network(options, device=options.device)
    loader, _, grid = make_loaders(options, options.device, needs=network.needs)
    batch = with_voxels(loader.batch_of([0], augment=False), network.needs, grid)
    network.eval()
    if hasattr(network, "unprojection"):
        network.unprojection = "plain"  # whose convolution torch counts wherever it runs
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(batch, grid)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()


def trial(settings, name, seed):
    """One training: IoU over all val samples at its end, and on the way there."""
    recipe, folder = BY_NAME[name], tempfile.mkdtemp()
    try:
        updates = settings.updates(recipe)
        options = settings.options(recipe, folder, seed=seed, max_iters=updates, val_freq=max(1, updates // QUARTERS))
        began = time.monotonic()
        path = train(options)
        content = checkpoint.read(path)
        hidden = _hidden_iou(options, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ious = [figures["iou"] for figures, _ in content["pools"]["v"]]
    reached = dict(iou=ious[-1], hidden_iou=hidden, on_the_way=ious[:-1], minutes=(time.monotonic() - began) / 60)
    keep(settings, row=name, what="trial", seed=seed, updates=updates, **reached)


def _hidden_iou(options, path):
    """IoU over the cells of boxes that are hardly visible (nuScenes' visibility 1 and 2); those of other boxes are ignored."""
    network, options = make_network(options, device=options.device)
    checkpoint.load(path, network)
    _, loader, grid = make_loaders(options, options.device, needs=network.needs)
    both = either = 0
    for batch, outputs in without_gradients(network, lambda batch: run_network(network, batch, grid), loader):
        most = max(len(facts.visibility) for (facts, *_) in batch.facts)
        visibility = torch.zeros((len(batch), 1 + most), dtype=torch.int64)  # the first: of no box
        for own, (facts, *_) in zip(visibility, batch.facts, strict=True):
            own[1 : 1 + len(facts.visibility)] = torch.from_numpy(facts.visibility)
        numbers = batch.box_numbers[:, 0].long().cpu()
        seen = visibility.gather(1, numbers.flatten(1)).view_as(numbers)
        predicted, hidden = outputs["seg"][:, 0].cpu() > 0, (seen > 0) & (seen <= MOST_HIDDEN)
        both += int((predicted & hidden).sum())
        either += int((hidden | (predicted & (seen == 0))).sum())
    return both / either if either else 0.0
