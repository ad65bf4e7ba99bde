"""python -m train.demo: a small training on given shards, its IoU before and after, and one picture."""

from dataclasses import replace
from pathlib import Path

import click
import torch

from common.spelling import EITHER, spelled
from train.command import fail_in_one_line, launch
from train.evaluate import Evaluation, read_options, shown
from train.evaluation.files import read_json
from train.metrics import iou
from train.options import Options
from train.processes.distributed import World, pick_device
from train.processes.precision import full_float32
from train.report import write_report
from train.run import train
from train.samples import Network, Samples
from train.setup import make_loaders, make_network
from train.show import sheet_of, write_picture
from train.step import LossStep, validate


def options_of(shards, out, steps):
    return Options(
        exp_name="demo",
        shards=(f"{shards}/train-*.tar",),
        val_shards=(f"{shards}/val-*.tar",),
        log_dir=f"{out}/logs",
        ckpt_dir=f"{out}/checkpoints",
        max_iters=steps,
        save_freq=steps,
        val_freq=20,
        batch_size=2,
        grad_acc=1,
        lr=1e-3,
        nworkers=2,
        res_scale=0.5,
        use_lidar=True,
        nsweeps=1,
        encoder_type="effb0",
        no_pretrained=True,
        latent_dim=64,
        bounds=(-25.6, 25.6, -5.0, 5.0, -25.6, 25.6),
        Z=64,
        Y=4,
        X=64,
    )


@click.command(context_settings=EITHER)
@click.option("--shards", required=True)
@click.option("--out", default="demo", show_default=True, help="folder of logs and checkpoints")
@click.option("--picture", default="demo.png", show_default=True)
@click.option("--steps", default=240, show_default=True, type=click.IntRange(1))
@click.option("--precision", default="fp32", show_default=True, help="bf16 or fp32")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def main(shards, out, picture, steps, precision, seed):
    """Train for some minutes on the CPU, evaluate, draw one sample of the val shards, and make the page of the run."""
    options = replace(options_of(shards, out, steps), precision=precision, seed=seed)
    fail_in_one_line(lambda: _run(options, picture, Path(out)))


def _run(options, picture, out):
    options = on_one_device(options)
    device = pick_device(options.device)
    model, options = make_network(options, device=device)
    _, loader, vox_util = make_loaders(options, device)
    with full_float32():
        before = iou(validate(LossStep(model, vox_util), shown(loader, "evaluate"), World(0, 1, device))[1])
    path = Path(train(options))
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True)["model_state_dict"])
    after = _evaluated(path.parent, options.device)
    guess = torch.zeros(2, dtype=torch.float64)
    fullest = (-1.0, "")  # vehicle cells and token of the sample with most of them
    for batch in loader:
        seg, valid = batch.seg_bev, batch.valid_bev
        guess += torch.stack([(seg * valid).sum(), valid.sum()]).double().cpu()
        fullest = max(fullest, (seg[0].sum().item(), batch.tokens[0][0]))
    samples = Samples(options.val_shards)
    network = Network(options, model.eval(), options.max_iters, device)
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    write_picture(picture, sheet_of(samples, samples.find(fullest[1])[0], network))
    write_report((path.parent,), out / "report.html", options.log_dir)
    click.echo(f"run: {path.parent}, trained in {options.precision}")
    click.echo(f"val IoU: {before:.3f} before, {after:.3f} after (all-vehicle guess {iou(guess):.3f})")


def _evaluated(run, device):
    """IoU of the run's newest checkpoint, by the command that anyone would use; it leaves eval.json and pictures there."""
    choices = {"out": None, "pictures": 9, "robustness": False, "baseline": None}
    launch(Evaluation(choices), read_options({"init_dir": str(run), "nworkers": 2, "device": device}))
    figures = read_json(run)["figures"]
    return next(f["value"] for f in figures if (f["group"], f["name"]) == ("iou", "all"))


def on_one_device(options):
    """The options with one device named, however many there are: a batch of two samples feeds no more."""
    return replace(options, device=str(pick_device(options.device)))


if __name__ == "__main__":
    main(prog_name=spelled("train.demo"))
