"""python -m train.evaluate: IoU of a checkpoint over every validation sample."""

import sys

import click
import torch
from tqdm import tqdm

from train import checkpoint
from train.forward import run_model
from train.metrics import intersection_union, iou
from train.options import Options, add_options, join_words
from train.run import fail_in_one_line
from train.setup import make_loaders, make_model, pick_device

# What the checkpoint's own options decide, unless the command line says otherwise.
_OF_MODEL = (
    *("encoder_type", "use_radar", "use_lidar", "use_metaradar", "do_rgbcompress", "latent_dim", "grid", "bounds"),
    *("centroid", "res_scale", "nsweeps", "use_radar_filters", "interpolation", "protocol", "min_visibility"),
    "target_categories",
)


def evaluate(model, loader, vox_util):
    """(2,) float64 intersection and union over every sample of the loader, in evaluation mode, with a progress bar."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for batch in tqdm(loader, desc="evaluate", unit="batch", dynamic_ncols=True):
            seg = run_model(model, batch, vox_util)[2]
            counts += intersection_union(seg, batch.seg_bev[:, 0], batch.valid_bev[:, 0]).cpu()
    return counts


@click.command(context_settings={"max_content_width": 100})
@add_options
@click.pass_context
def main(context, **values):
    """Print the IoU over every sample of the val shards (summed intersections over summed unions)."""
    given = {k for k in values if context.get_parameter_source(k).name == "COMMANDLINE"}
    fail_in_one_line(lambda: _run(values, given))


def _run(values, given):
    if not values["init_dir"]:
        raise ValueError("give --init_dir: a checkpoint file or a run's folder")
    recorded = checkpoint.read(values["init_dir"]).get("options")
    if recorded is None and "interpolation" not in given:
        values["interpolation"] = "nearest"  # the lineage's checkpoints were trained so and record nothing
    for name in _OF_MODEL:
        if recorded and name in recorded and name not in given:
            value = recorded[name]
            values[name] = tuple(value) if isinstance(value, list) else value
    options = Options(**values)
    options.validate()
    device = pick_device(options.device)
    _, loader, vox_util = make_loaders(options, device, want_train=False)
    model = make_model(options).to(device)
    step = checkpoint.load(options.init_dir, model, ignore_load=options.ignore_load)
    counts = evaluate(model, loader, vox_util)
    click.echo(f"step {step}; {len(loader.windows)} samples; IoU {iou(counts):.4f}")


if __name__ == "__main__":
    main(args=join_words(sys.argv[1:]))
