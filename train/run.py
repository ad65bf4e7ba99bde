"""python -m train.run: shards -> a trained network."""

import dataclasses
import os
import time
from datetime import datetime
from pathlib import Path

import torch
import yaml

from train import checkpoint
from train.command import from_config, from_run, launch, options_command
from train.distributed import say
from train.loop import Trainer
from train.optim import fetch_optimizer, load_moments, stand_at
from train.options import Options, as_dict
from train.setup import load_backbone, make_loaders, make_model


def model_name(batch_size, grad_acc, lr, use_scheduler, exp_name, now):
    """Simple-BEV's name of a run, such as 1x5_3e-4s_rgb03_17:45:58; now: datetime."""
    name = f"{batch_size:d}"
    if grad_acc > 1:
        name += f"x{grad_acc:d}"
    digits = f"{lr:.1e}"  # 3.0e-04
    name += f"_{digits[0]}{digits[3:5]}{digits[-1]}"
    return f"{name}{'s' if use_scheduler else ''}_{exp_name}_{now:%H:%M:%S}"


@options_command()
def main(given):
    """Train a bird's-eye-view segmentation network on shards.

    Names may have - for _. BOOL may be left out for True; lists are 0,1 or [0,1].
    """
    train(read_options(given))


def read_options(given):
    """Options of the command line, over those of --config, over those of the run that --resume continues."""
    given = from_config(given)
    if given.get("resume"):
        return Options(**from_run(given))
    if given.get("init_dir") and "interpolation" not in given:
        given["interpolation"] = checkpoint.interpolation(checkpoint.read(given["init_dir"]))
        say(f"note: --interpolation {given['interpolation']}, with which {given['init_dir']} was trained")
    return Options(**given)


def train(options):
    """Train as the options say, a process a device; returns the last checkpoint's path (None of new processes)."""
    return launch(train_rank, options)


def train_rank(options, world):
    """One process's part of a run."""
    parts, step, folder = world.together(lambda: _prepare(options, world))
    if step >= options.max_iters:
        done = folder or options.init_dir
        say(f"note: {done} has its {options.max_iters} updates; --max_iters says how far to go on")
        return checkpoint.find(done)
    if folder is None:
        folder = world.gather(world.together(lambda: _new_folder(options) if world.leads else None))[0]
    # Fed back, the run's own config begins a run of its own.
    options = dataclasses.replace(options, ckpt_dir=str(folder.parent), resume="", config="")
    config = yaml.safe_dump(as_dict(options), sort_keys=False)
    world.together(lambda: world.leads and (folder / "config.yaml").write_text(config))
    return Trainer(options, folder.name, world=world, **parts).run(step)


def _prepare(options, world):
    """What this rank trains with.

    Returns:
        (loaders, network and the like, as Trainer takes them; the updates behind it; the resumed run's folder or None).
    """
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(options.deterministic, warn_only=True)
    loaders = make_loaders(options, world.device, rank=world.rank, world_size=world.size)
    model = make_model(options)
    if not options.init_dir and not options.resume:
        load_backbone(model, options)
    model.to(world.device)
    if options.sync_bn and world.size > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer, scheduler = fetch_optimizer(
        model.parameters(), options.lr, options.weight_decay, options.max_iters, options.use_scheduler
    )
    step, folder, pools = 0, None, {}
    if options.resume:
        step, folder, pools = _resume(options, model, optimizer, loaders)
    elif options.init_dir:
        step = _load_init(options, model, optimizer)
    if scheduler is not None and step < options.max_iters:
        stand_at(scheduler, step)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loaders": loaders, "pools": pools}
    return parts, step, folder


def _new_folder(options):
    """Make the folder of a new run; names hold the time of day alone, and no two runs share one."""
    named = (options.batch_size, options.grad_acc, options.lr, options.use_scheduler, options.exp_name)
    while True:
        folder = Path(options.ckpt_dir) / model_name(*named, datetime.now())
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise
            time.sleep(1)


def _resume(options, model, optimizer, loaders):
    """Put everything where the newest checkpoint of options.resume left it; (step, folder, pools)."""
    path = checkpoint.find(options.resume)
    content = checkpoint.read(path)
    for loader, where, samples in zip(loaders, ("loader", "val_loader"), ("samples", "val_samples"), strict=False):
        if loader is None or where not in content:
            continue
        if content.get(samples, len(loader.windows)) != len(loader.windows):
            raise ValueError(
                f"{options.resume} was trained on {content[samples]} samples, these shards have {len(loader.windows)}; "
                "give the same ones, or begin another run with --init_dir and --load_step"
            )
        loader.load_state_dict(content[where])
    step = checkpoint.load_weights(path, content, model)
    load_moments(optimizer, content["optimizer_state_dict"])
    return step, path.parent, content.get("pools", {})


def _load_init(options, model, optimizer):
    """Weights of options.init_dir, and what load_optimizer and load_step ask for; the step to go on from."""
    path = checkpoint.find(options.init_dir)
    content = checkpoint.read(path)
    step = checkpoint.load_weights(path, content, model, options.ignore_load)
    if options.load_optimizer:
        if "optimizer_state_dict" not in content:
            raise ValueError(f"{path}: holds no optimizer; leave out --load_optimizer")
        load_moments(optimizer, content["optimizer_state_dict"])
    return step if options.load_step else 0


if __name__ == "__main__":
    main()
