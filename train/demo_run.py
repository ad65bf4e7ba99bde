"""A small training, its IoU before and after, a picture and a page: the work of train.demo."""

from dataclasses import replace
from pathlib import Path

import click
import torch

from train.evaluating import Evaluation, read_options, shown
from train.evaluation.files import read_json
from train.launch import launch
from train.metrics import iou
from train.processes.distributed import World, own_device, pick_device
from train.processes.precision import full_float32
from train.report import write_report
from train.samples import Network, Samples
from train.setup import make_loaders, make_network
from train.showing import sheet_of, write_picture
from train.step import LossStep, validate
from train.training import train


def run(options, picture, out):
    """Train as the options say, evaluate, draw the fullest val sample, and write the run's page to the folder `out`."""
    options = on_one_device(options)
    device = own_device(options.device)
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
