"""python -m train.evaluate: IoU of a checkpoint over every validation sample."""

import sys

import click
import torch
from tqdm import tqdm

from train import checkpoint
from train.command import from_config, launch, options_command
from train.forward import run_model
from train.metrics import intersection_union, iou
from train.options import Options, coerce
from train.setup import make_loaders, make_model

# What the checkpoint's own options decide, unless the command line says otherwise.
_OF_MODEL = (
    *("encoder_type", "use_radar", "use_lidar", "use_metaradar", "do_rgbcompress", "latent_dim", "Z", "Y", "X"),
    *("bounds", "centroid", "res_scale", "nsweeps", "use_radar_filters", "interpolation", "protocol", "min_visibility"),
    *("target_categories", "refcam_id"),
)


def evaluate(model, loader, vox_util, autocast=None, progress=True):
    """(2,) float64 intersection and union over every sample of the loader, in evaluation mode.

    Args:
        autocast: dtype of the network's arithmetic; None for float32. progress: show a bar on a terminal.
    """
    model.eval()
    kind = loader.stage.device.type
    counts = torch.zeros(2, dtype=torch.float64, device=loader.stage.device)
    shown = {"desc": "evaluate", "unit": "batch", "dynamic_ncols": True}
    with torch.no_grad():
        for batch in tqdm(loader, **shown, disable=not (progress and sys.stderr.isatty())):
            with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
                seg = run_model(model, batch, vox_util)[2].float()
            counts += intersection_union(seg, batch.seg_bev[:, 0], batch.valid_bev[:, 0])
    return counts.cpu()


_OF_TRAINING = (
    *("run", "optimisation", "ckpt_dir", "save_freq", "keep_latest", "resume", "load_step", "load_optimizer", "seed"),
    *("sync_bn", "deterministic", "shuffle", "temporal_aug", "nworkers_val", "rand_flip", "rand_crop_and_resize"),
    *("ncams", "do_shuffle_cams", "no_pretrained", "backbone_weights"),
)


@options_command(hide=_OF_TRAINING)
def main(given):
    """Print the IoU of --init_dir over every sample of the val shards.

    Intersections are summed over all samples, and so are unions, before they are divided. What the checkpoint records
    (network, sensors, grid, image size, labels) need not be said again. Options of training are taken and change nothing.
    """
    options = _read_options(from_config(given))
    launch(_evaluate_rank, options)


def _read_options(given):
    if given.get("resume") or not given.get("init_dir"):
        raise ValueError("give --init_dir: a checkpoint file or a run's folder")
    content = checkpoint.read(given["init_dir"])
    recorded = content.get("options") or {}
    own = {name: coerce(name, recorded[name]) for name in _OF_MODEL if name in recorded}
    own["interpolation"] = checkpoint.interpolation(content)
    return Options(**{**own, **given, "do_val": True})


def _evaluate_rank(options, world):
    step, samples, counts = world.together(lambda: _evaluated(options, world))
    counts = world.sum(counts.to(world.device))
    if world.leads:
        click.echo(f"step {step}; {samples} samples; IoU {iou(counts):.4f}")


def _evaluated(options, world):
    """Step of the checkpoint, samples over all ranks, and (2,) counts of this rank's share."""
    if not options.precision:
        options.precision = "fp32"  # as in the lineage; training's bf16 is for speed
    _, loader, vox_util = make_loaders(options, world.device, want_train=False, rank=world.rank, world_size=world.size)
    model = make_model(options).to(world.device)
    path = checkpoint.find(options.init_dir)
    step = checkpoint.load_weights(path, checkpoint.read(path), model, options.ignore_load)
    if options.compile:
        model.compile()
    counts = evaluate(model, loader, vox_util, options.autocast_on(world.device), world.leads)
    return step, len(loader.windows), counts


if __name__ == "__main__":
    main()
