"""What an evaluation works with: a checkpoint's network, the samples, and what is said of both."""

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common.progress import Progress, clock, counted
from common.spelling import spelled
from common.versions import own_version
from train import checkpoint
from train.data.label_spec import labels_side_by_side
from train.evaluation.figures import keys_of
from train.options import Options, as_dict
from train.processes.precision import on_device, set_precision
from train.processes.ranks import say
from train.setup import check_same_network, make_loaders, make_network

WORTH_SAYING_S = 20.0  # that an evaluation takes


def shown(loader, what, progress=True):
    """The loader's batches; how far it is shows on stderr."""
    with Progress(len(loader), "batches", what, shown=progress) as bar:
        yield from bar.over(loader)


@dataclass
class Parts:
    """What an evaluation works with: a checkpoint's network on this rank's device, and its share of the samples."""

    options: Options
    network: torch.nn.Module
    loader: object
    grid: object
    labels: tuple
    step: int
    path: Path
    autocast: torch.dtype | None
    weights: str  # of train.checkpoint.WEIGHTS

    @property
    def folder(self):
        """Folder of the run."""
        return self.path.parent

    def batches(self, what, world):
        """This rank's batches, None where it has no share of one; rank 0 shows how far it is.

        All ranks take them together, so that one waits for another no longer than for a batch, and hears of it if that fails.
        """
        own = iter(self.loader) if len(self.loader) else iter(())
        count = self.loader.num_global_batches
        with Progress(count, "batches", what, shown=world.leads) as bar:
            for number, batch in enumerate(bar.over(world.together(lambda: next(own, None)) for _ in range(count))):
                yield batch
                world.first_step_done()
                if number == 0:  # it also paid for what begins once
                    began = time.monotonic()
                elif number == 1 and (takes := (count - 2) * (time.monotonic() - began)) > WORTH_SAYING_S:
                    say(f"{what}: about {clock(takes)}")

    def held(self):
        """(cameras, sensors besides them) of the batches."""
        decode = self.loader.decode
        sensors = [name for name in ("lidar", "radar") if getattr(decode, f"use_{name}")]
        return self.loader.augment.cams if decode.use_cameras else (), sensors

    def about(self, whole):
        """What eval.json says of where its figures come from."""
        facts = self.loader.reader.facts
        return {
            "headline": self.labels[0].name if keys_of(whole.rows) else "",
            "split": facts.get("split", ""),
            "version": facts["version"],
            "samples": f"{len(whole.rows)} of {len(self.loader.windows)}",
            "samples_sha256": self.loader.reader.samples_sha256,
            "shards": {str(index.tar): index.tar_sha256 for index in self.loader.reader.indexes},
            "checkpoint": str(self.path),
            "step": self.step,
            "weights": self.weights,
            "exported": getattr(self.network, "facts", None),
            "grid": f"{self.options.Z}x{self.options.Y}x{self.options.X} over {self.options.bounds}",
            "precision": self.options.precision,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "log_dir": self.options.log_dir,
            "options": as_dict(self.options),
            "versions": {
                "bevshards": own_version(),
                "python": platform.python_version(),
                "torch": str(torch.__version__),
            },
        }


def prepare(options, world, weights):
    """Parts of the checkpoint that the options name. weights: of train.checkpoint.WEIGHTS. Raises ValueError."""
    set_precision(options, world.device)
    path = checkpoint.find(options.init_dir)
    content = checkpoint.read(path, command=spelled("train.evaluate"), check=world.leads)
    check_same_network(path, content, options)
    network, options = make_network(options)
    labels = labels_side_by_side(options)
    place = (world.device, False, world.rank, world.size)
    _, loader, grid = make_loaders(options, *place, labels=labels, needs=network.needs)
    autocast = options.autocast_on(world.device)
    network = on_device(network, world.device, autocast)
    step = checkpoint.load_weights(path, content, network, options.ignore_load, weights)
    if options.compile:
        network.compile()
    return Parts(options, network, loader, grid, labels, step, Path(path), autocast, weights)


def opening(parts, world):
    """What is evaluated, on what."""
    options, reader = parts.options, parts.loader.reader
    split = reader.facts.get("split", "")
    samples, shards = counted(len(parts.loader.windows), "sample"), counted(len(reader.indexes), "shard")
    return (
        f"{parts.path}, step {parts.step}: {samples} of {reader.facts['version']} {split}, {shards}\n"
        f"protocol {parts.labels[0].name}; grid {options.Z}x{options.Y}x{options.X}; {options.precision} on "
        f"{world.size} x {world.device.type}"
    )
