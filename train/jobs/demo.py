"""A small training, its IoU before and after, a picture and a page: the work of train.demo."""

import shlex
from dataclasses import replace
from pathlib import Path

import click
import torch

from common.errors import InputError
from common.spelling import spelled
from train import checkpoint
from train.classes import MEAN
from train.evaluation.figures import BEST_THRESHOLD
from train.evaluation.files import read_json
from train.jobs.evaluating import Evaluation
from train.jobs.evaluation_options import read_options
from train.jobs.evaluation_parts import shown
from train.jobs.launch import launch
from train.jobs.showing import sheet_of, write_picture
from train.jobs.training import from_run, train
from train.metrics import iou
from train.options import FREE_ON_RESUME, Options, as_dict
from train.processes.distributed import World, own_device, pick_device
from train.processes.precision import full_float32
from train.report import write_report
from train.samples import Network, Samples
from train.setup import make_loaders, make_network
from train.step import LossStep, validate


def run(options, pictures, picture, out):
    """Train as the options say, on from where an earlier call was stopped; evaluate, draw the fullest val sample, make a page.

    pictures: of the evaluation. picture: file of the sample. out: folder of the page. Raises ValueError.
    """
    options = on_one_device(options)
    device = own_device(options.device)
    model, options = make_network(options, device=device)
    _, loader, vox_util = make_loaders(options, device)
    with full_float32():
        counts = validate(LossStep(model, vox_util), shown(loader, "untrained"), World(0, 1, device))[1]
        before = [iou(own) for own in counts.reshape(-1, 2)]
    path = _trained(options)
    step = checkpoint.load(path, model)
    after, best = _evaluated(path.parent, options.device, pictures)
    guesses, fullest = _truth(loader)
    samples = Samples(options.val_shards)
    number = samples.find(fullest)[0]
    Path(picture).parent.mkdir(parents=True, exist_ok=True)
    write_picture(picture, sheet_of(samples, number, Network(options, model.eval(), step, device)))
    write_report((path.parent,), out / "report.html", options.log_dir)
    for line in _next(path.parent, options, samples.keys[number]):
        click.echo(line)
    for line in _ious(options, before, after, best, guesses):
        click.echo(line)


def _trained(options):
    """The last checkpoint's path, of this demo's run as far as it has got. Raises ValueError where that is another one's."""
    folder = Path(options.ckpt_dir) / options.run_name
    if not any(folder.glob("model-*.pth")):
        return Path(train(options))
    path = checkpoint.find(folder)
    recorded = checkpoint.read(path).get("options") or {}
    for name, value in as_dict(options).items():
        if name not in FREE_ON_RESUME and recorded.get(name, value) != value:
            raise InputError(
                f"{folder}: is a demo with --{name} {recorded[name]}, not {value}; remove {folder.parents[1]}, or give "
                "another --out"
            )
    if int(path.stem.rpartition("-")[2]) >= options.max_iters:
        return path
    free = {
        name: value
        for name, value in vars(options).items()
        if name in FREE_ON_RESUME and name not in ("resume", "config")
    }
    return Path(train(Options(**from_run({**free, "resume": str(folder)}))))


def _evaluated(run, device, pictures):
    """IoU of each class of the run's newest checkpoint, at 0.5 and at its best threshold, by the command that anyone would use.

    It leaves eval.json there.
    """
    choices = {"out": None, "pictures": pictures, "robustness": False, "baseline": None}
    launch(Evaluation(choices), read_options({"init_dir": str(run), "nworkers": 2, "device": device}))
    figures = [f for f in read_json(run)["figures"] if f.get("class") != MEAN]
    own = [
        [f for f in figures if (f["group"], f["label"]) == (g, figures[0]["label"])] for g in ("iou", BEST_THRESHOLD)
    ]
    return tuple([figure["value"] for figure in group] for group in own)


def _truth(loader):
    """IoU of the guess that all is of a class, class by class; and the token of the sample with the most cells of the first."""
    guess, fullest = 0.0, (-1.0, "")
    for batch in loader:
        seg, valid = batch.seg_bev, batch.valid_bev
        guess += torch.stack([(seg * valid).sum((0, 1, 3, 4)), valid.sum((0, 1, 3, 4))], -1).double().cpu()
        seg = seg[:, :, :1]
        for cells, tokens in zip(seg.flatten(1).sum(1).tolist(), batch.tokens, strict=True):
            fullest = max(fullest, (cells, tokens[0]))
    return [iou(own) for own in guess], fullest[1]


def _ious(options, before, after, best, guesses):
    """Lines of IoU: of several classes one each, at 0.5 and at the best threshold, as papers on maps report; the last is what
    scripts read."""
    names = [spec.name for spec in options.classes]
    for name, *own in zip(names, before, after, best, guesses, strict=True) if names else ():
        form = "{:<12} IoU {:.3f} before, {:.3f} after, {:.3f} at its best threshold (all-true guess {:.3f})"
        yield form.format(name, *own)
    own = [sum(each) / len(each) for each in (before, after, guesses)]
    guess = "mean of all-true guesses" if names else "all-vehicle guess"
    yield f"val IoU: {own[0]:.3f} before, {own[1]:.3f} after ({guess} {own[2]:.3f})"


def _next(run, options, key):
    """Lines that say what to look at, and what to type next."""
    shards, here = shlex.quote(str(Path(options.val_shards[0]).parent)), shlex.quote(str(run))
    return (
        f"run: {run}, trained in {options.precision}",
        "look at: the last row of the picture (hit, missed, false alarm); on the page, IoU by distance and by weather",
        f"next: {spelled('train.show')} {shards} {key} --run {here} --out sample.png",
        f"      {spelled('train.run')} --resume {here} --max_iters {2 * options.max_iters}",
        f"      {spelled('train.evaluate')} {here} --robustness",
    )


def on_one_device(options):
    """The options with one device named, however many there are: a batch of two samples feeds no more."""
    return replace(options, device=str(pick_device(options.device)))
