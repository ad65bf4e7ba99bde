"""python -m train.run: shards -> a trained network."""

import sys
from datetime import datetime

import click
import torch

from train import checkpoint
from train.data import DataError
from train.loop import Stopped, Trainer
from train.optim import fetch_optimizer
from train.options import Options, add_options, join_words
from train.setup import load_backbone, make_loaders, make_model, pick_device


def model_name(batch_size, grad_acc, lr, use_scheduler, exp_name, now):
    """Simple-BEV's name of a run, such as 1x5_3e-4s_rgb03_17:45:58; now: datetime."""
    name = f"{batch_size:d}"
    if grad_acc > 1:
        name += f"x{grad_acc:d}"
    digits = f"{lr:.1e}"  # 3.0e-04
    name += f"_{digits[0]}{digits[3:5]}{digits[-1]}"
    return f"{name}{'s' if use_scheduler else ''}_{exp_name}_{now:%H:%M:%S}"


@click.command(context_settings={"max_content_width": 100})
@add_options
def main(**values):
    """Train a bird's-eye-view segmentation network on shards."""
    fail_in_one_line(lambda: train(Options(**values)))


def train(options):
    """Train as the options say; returns the last checkpoint's path."""
    options.validate()
    device = pick_device(options.device, options.device_ids)
    torch.manual_seed(options.seed)
    loaders = make_loaders(options, device)
    model = make_model(options)
    if not options.init_dir:
        load_backbone(model, options)
    model.to(device)
    optimizer, scheduler = fetch_optimizer(
        model.parameters(), options.lr, options.weight_decay, options.max_iters, options.use_scheduler
    )
    step = 0
    if options.init_dir:
        states = (optimizer, scheduler) if options.load_optimizer else (None, None)
        found = checkpoint.load(options.init_dir, model, *states, ignore_load=options.ignore_load)
        step = found if options.load_step else 0
    name = model_name(
        options.batch_size, options.grad_acc, options.lr, options.use_scheduler, options.exp_name, datetime.now()
    )
    train_loader, val_loader, vox_util = loaders
    trainer = Trainer(options, name, model, optimizer, scheduler, train_loader, val_loader, vox_util, device)
    return trainer.run(step)


def fail_in_one_line(action):
    """Run action(); bad input ends with one line and exit code 1, a signal with its own code."""
    try:
        return action()
    except Stopped as stopped:
        click.echo(f"{stopped}", err=True)
        sys.exit(stopped.code)
    except (ValueError, DataError, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(args=join_words(sys.argv[1:]))
