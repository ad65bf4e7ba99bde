"""python -m train.run: shards -> a trained network."""

import dataclasses
import os
import sys
from datetime import datetime
from pathlib import Path

import click
import torch
import yaml

from train import checkpoint, distributed
from train.data import DataError
from train.loop import NotFinite, Stopped, Trainer
from train.optim import fetch_optimizer
from train.options import Options, add_options, as_dict, from_mapping, join_words
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
@click.pass_context
def main(context, **values):
    """Train a bird's-eye-view segmentation network on shards."""
    given = {k for k in values if context.get_parameter_source(k).name == "COMMANDLINE"}
    fail_in_one_line(lambda: train(read_options(values, given)))


def read_options(values, given):
    """Options of the command line, over those of --config, over those of the run that --resume continues."""
    if values["resume"]:
        recorded = checkpoint.read(values["resume"]).get("options")
        if recorded is None:
            raise ValueError(f"{values['resume']}: its checkpoint records no options; use --init_dir")
        from_mapping(values, recorded, given, values["resume"])
    if values["config"]:
        try:
            recorded = yaml.safe_load(Path(values["config"]).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"{values['config']}: not a readable YAML or JSON file ({error})") from None
        if not isinstance(recorded, dict):
            raise ValueError(f"{values['config']}: not a mapping of option names to values")
        from_mapping(values, recorded, given, values["config"])
    return Options(**values)


def train(options):
    """Train as the options say, a process a device; returns the last checkpoint's path (None of several processes)."""
    if not options.device_ids and options.device in ("", "cuda") and torch.cuda.device_count() > 1:
        options = dataclasses.replace(options, device_ids=tuple(range(torch.cuda.device_count())))
    size = distributed.world_size(options)
    options.validate(size)
    pick_device(options.device, options.device_ids)  # says at once which devices are not there
    if size > 1 and not distributed.by_torchrun():
        return distributed.spawn(_train_rank_or_fail, size, options, datetime.now())
    return train_rank(options, datetime.now())


def _train_rank_or_fail(options, now):
    fail_in_one_line(lambda: train_rank(options, now), quiet=int(os.environ["RANK"]) > 0)


def train_rank(options, now):
    """One process's part of a run that begins at `now`."""
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(options.deterministic, warn_only=True)
    world = distributed.join(pick_device(options.device, options.device_ids), distributed.world_size(options))
    try:
        return _train(options, now, world)
    finally:
        distributed.leave()


def _train(options, now, world):
    train_loader, val_loader, vox_util = make_loaders(options, world.device, rank=world.rank, world_size=world.size)
    model = make_model(options)
    if not options.init_dir and not options.resume:
        load_backbone(model, options)
    model.to(world.device)
    if options.sync_bn and world.device.type == "cuda" and world.size > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer, scheduler = fetch_optimizer(
        model.parameters(), options.lr, options.weight_decay, options.max_iters, options.use_scheduler
    )
    step = 0
    if options.resume:
        path = checkpoint.find(options.resume)
        step = checkpoint.load(path, model, optimizer, scheduler)
        content = checkpoint.read(path)
        train_loader.load_state_dict(content["loader"])
        if val_loader is not None and "val_loader" in content:
            val_loader.load_state_dict(content["val_loader"])
        name = path.parent.name
        options = dataclasses.replace(options, ckpt_dir=str(path.parent.parent))
    else:
        if options.init_dir:
            states = (optimizer, scheduler) if options.load_optimizer else (None, None)
            found = checkpoint.load(options.init_dir, model, *states, ignore_load=options.ignore_load)
            step = found if options.load_step else 0
        name = model_name(
            options.batch_size, options.grad_acc, options.lr, options.use_scheduler, options.exp_name, now
        )
    if world.leads:
        folder = Path(options.ckpt_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(as_dict(options), sort_keys=False))
    trainer = Trainer(options, name, model, optimizer, scheduler, (train_loader, val_loader), vox_util, world)
    return trainer.run(step)


def fail_in_one_line(action, quiet=False):
    """Run action(); bad input ends with one line (none if quiet) and exit code 1, a signal with its own code."""
    try:
        return action()
    except Stopped as stopped:
        if not quiet:
            click.echo(f"{stopped}", err=True)
        sys.exit(stopped.code)
    except (ValueError, DataError, OSError, NotFinite) as error:
        if not quiet:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(args=join_words(sys.argv[1:]))
