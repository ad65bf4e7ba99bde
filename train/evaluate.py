"""python -m train.evaluate: IoU of a checkpoint over every validation sample."""

import dataclasses
import sys
from dataclasses import fields

import click
import torch
from tqdm import tqdm

from train import checkpoint
from train.arithmetic import on_device, set_arithmetic
from train.command import from_config, launch, options_command
from train.distributed import World
from train.evaluator import evaluate as evaluate_batches
from train.metrics import iou
from train.options import Options, coerce
from train.setup import check_same_network, make_loaders, make_network
from train.step import LossStep

# What the checkpoint's own options decide, unless the command line says otherwise: groups, and names of other groups.
_OF_MODEL = ("sensors", "model", "labels", "grid", "res_scale", "interpolation", "refcam_id")


def evaluate(network, loader, grid, autocast=None, progress=True, labelled=None):
    """(2,) float64 intersection and union over every sample of the loader, in evaluation mode, in this process.

    Args:
        network: see train/model/README.md. grid: VoxUtil. autocast: dtype of the network's arithmetic; None for float32.
        progress: show a bar on a terminal. labelled: float64 tensor to which the number of cells that are labelled is added.
    Raises:
        ValueError: the network gives no seg.
    """
    device = loader.stage.device
    batches = _counted(_shown(loader, progress), labelled)
    counts = evaluate_batches(LossStep(network, grid, autocast), batches, World(0, 1, device))[1]
    if not len(counts):
        raise ValueError(f"{type(network).__name__} gives no seg: there is no IoU")
    return counts


def _shown(loader, progress):
    disable = not (progress and sys.stderr.isatty())
    return tqdm(loader, desc="evaluate", unit="batch", dynamic_ncols=True, disable=disable)


def _counted(batches, labelled):
    """The batches; their labelled cells, where they count, are added to the tensor `labelled` if there is one."""
    for batch in batches:
        if labelled is not None:
            labelled += (batch.seg_bev[:, 0] * batch.valid_bev[:, 0]).sum(dtype=torch.float64)
        yield batch


_OF_TRAINING = (
    *("run", "optimisation", "ckpt_dir", "save_freq", "keep_latest", "resume", "load_step", "load_optimizer", "seed"),
    *("sync_bn", "deterministic", "shuffle", "temporal_aug", "nworkers_val", "rand_flip", "rand_crop_and_resize"),
    *("ncams", "do_shuffle_cams", "no_pretrained", "backbone_weights", "keep_best"),
)


@options_command(hide=_OF_TRAINING, argument=("RUN", "init_dir"))
def main(given):
    """Print the IoU of RUN (--init_dir) over every sample of the val shards.

    Intersections are summed over all samples, and so are unions, before they are divided. What the checkpoint records
    (network, sensors, grid, image size, labels) need not be said again. Options of training are taken and change nothing.
    """
    options = _read_options(from_config(given))
    launch(_evaluate_rank, options)


def _read_options(given):
    if given.get("resume") or not given.get("init_dir"):
        raise ValueError("give a run's folder or a checkpoint file: python -m train.evaluate RUN")
    content = checkpoint.read(given["init_dir"], command="python -m train.evaluate")
    recorded = content.get("options") or {}
    own = [f.name for f in fields(Options) if {f.name, f.metadata["group"]} & set(_OF_MODEL)]
    own = {name: coerce(name, recorded[name]) for name in own if name in recorded}
    own["interpolation"] = checkpoint.interpolation(content)
    options = Options(**{**own, **given, "do_val": True})
    # As in the lineage; training's bf16 is for speed.
    return dataclasses.replace(options, precision=options.precision or "fp32")


def _evaluate_rank(options, world):
    step, samples, counts = world.together(lambda: _evaluated(options, world))
    counts = world.sum(counts.to(world.device))
    if world.leads:
        cells = int(counts[2])
        click.echo(f"step {step}; {samples} samples; IoU {iou(counts[:2]):.4f}; {cells} labelled cells")
        if not cells:
            raise ValueError(
                "no cell of these samples is labelled, so the IoU says nothing; see --target_categories, --bounds"
            )


def _evaluated(options, world):
    """Step of the checkpoint, samples over all ranks, and of this rank's share (3,): intersection, union, labelled cells."""
    set_arithmetic(options, world.device)
    path = checkpoint.find(options.init_dir)
    content = checkpoint.read(path)
    check_same_network(path, content, options)
    network, options = make_network(options)
    _, loader, grid = make_loaders(options, world.device, False, world.rank, world.size, network.needs.cameras)
    step = checkpoint.load_weights(path, content, on_device(network, world.device), options.ignore_load)
    if options.compile:
        network.compile()
    autocast = options.autocast_on(world.device)
    labelled, counts = torch.zeros(1, dtype=torch.float64, device=world.device), torch.zeros(2).double()
    if len(loader):
        counts = evaluate(network, loader, grid, autocast, world.leads, labelled)
    return step, len(loader.windows), torch.cat([counts, labelled.cpu()])


if __name__ == "__main__":
    main()
