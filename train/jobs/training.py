"""One training from its options to its last checkpoint: the work of train.run."""

import dataclasses
import pickle
from functools import partial
from pathlib import Path

import torch
import yaml

from common.errors import InputError
from common.files import write_atomically
from common.spelling import spelled
from train import checkpoint
from train.agreement import check_same_run, check_same_shards
from train.command import commands_among, known_options
from train.jobs.launch import launch
from train.loop import Trainer
from train.model.interface import name_of
from train.model.memory import share_of
from train.monitor.console import ending, opening, row
from train.optim import fetch_optimizer, load_moments, parameter_groups, stand_at
from train.options import FREE_ON_RESUME, Options, as_dict
from train.processes.precision import on_device, set_precision
from train.processes.ranks import say
from train.runs import new_folder
from train.setup import check_same_network, make_loaders, make_network


def read_options(given):
    """Options of the command line and --config, over those of the run that --resume continues. Raises ValueError."""
    if given.get("resume"):
        return Options(**from_run(given))
    if given.get("init_dir") and "interpolation" not in given:
        given["interpolation"] = checkpoint.interpolation(checkpoint.peek(given["init_dir"], command="--init_dir"))
        if given["interpolation"] != Options.interpolation:
            say(f"note: --interpolation {given['interpolation']}, with which {given['init_dir']} was trained")
    return Options(**given)


def from_run(given):
    """The given options over those of the run that `resume` names.

    Raises ValueError for an option that would make it another run.
    """
    run = Path(given["resume"])
    recorded = checkpoint.peek(run, command=f"{spelled('train.run')} --resume").get("options")
    if recorded is None:
        raise InputError(f"{run}: its checkpoint records no options; use --init_dir")
    recorded = known_options(recorded, run, strict=False)
    for name in ("shards", "val_shards", "data_dir"):
        commands = commands_among({name: recorded.get(name, ())})
        if commands and name not in given:
            raise InputError(
                f"{run}: a checkpoint may not say which commands to run; if {commands[0]!r} is meant, name it again: --{name} …"
            )
    for name, value in given.items():
        if name not in FREE_ON_RESUME and recorded.get(name, value) != value:
            raise InputError(
                f"--{name} {value}: the run to resume has {recorded[name]}; leave it out, or begin another run with "
                "--init_dir and --load_step"
            )
    return {**recorded, **given}


def train(options, build=None):
    """Train as the options say, one process per device; returns the last checkpoint's path (None of new processes).

    build: the network's factory, in the place of --model. It is recorded by the name under which it can be imported.

    Raises ValueError for wrong arguments, among them a factory that new processes cannot import.
    """
    if not isinstance(options, Options):
        raise InputError(f"train(options, build=…): options is a {type(options).__name__}, not Options")
    if build is not None and len(options.device_ids) > 1:
        _check_importable(build)
    return launch(partial(train_rank, build=build), options)


def _check_importable(build):
    try:
        pickle.dumps(build)
    except Exception:  # pickle raises many kinds
        raise InputError(f"build: {name_of(build)} cannot be imported by new processes; define it in a file") from None


def train_rank(options, world, build=None):
    """One process's part of a run."""
    parts, options, step, folder = world.together(lambda: _prepare(options, world, build))
    world.together(lambda: check_same_run(options, step, world))
    world.together(lambda: check_same_shards(parts["loaders"][:2], world))
    if step >= options.max_iters and not parts["kept"].get("validation_due"):
        done = folder or options.init_dir
        say(f"note: {done} has its {options.max_iters} updates; --max_iters says how far to go on")
        return checkpoint.find(done)
    if folder is None:
        folder = world.gather(world.together(lambda: new_folder(options) if world.leads else None))[0]
    # Fed back, the run's own config begins a run of its own.
    options = dataclasses.replace(options, ckpt_dir=str(folder.parent), resume="", config="")
    config = yaml.safe_dump(as_dict(options), sort_keys=False)
    world.together(lambda: world.leads and write_atomically(folder / "config.yaml", config.encode()))
    what = world.together(lambda: opening(options, world, parts["network"], parts["loaders"], folder, step))
    for text in what:
        say(text)
    return _run(Trainer(options, name=folder.name, world=world, **parts), step)


def _run(trainer, step):
    """Train; say, also after a signal or an error, where everything lies. Returns the last checkpoint's path."""
    try:
        path = trainer.run(step)
    except BaseException as error:
        if trainer.world.leads:
            for text in ending(trainer.options, trainer.folder, done=False):
                error.add_note(text)  # whoever shows the error shows these after it
        raise
    if trainer.world.leads:
        say(row("done", trainer.console.speed()))
        for text in ending(trainer.options, trainer.folder, done=True):
            say(text)
    return path


def _prepare(options, world, build):
    """What this rank trains with.

    Returns:
        (loaders, network and the like, as Trainer takes them; the options with what the network needs; the updates behind it;
        the resumed run's folder or None).
    """
    set_precision(options, world.device)
    network, options = make_network(options, build)
    loaders = make_loaders(options, world.device, True, world.rank, world.size, needs=network.needs)
    if not options.init_dir and not options.resume and hasattr(network, "load_pretrained"):
        network.load_pretrained(options)
    if options.sync_bn and world.size > 1:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = on_device(network, world.device)
    optimizer, scheduler = fetch_optimizer(
        parameter_groups(network), options.lr, options.weight_decay, options.max_iters, options.use_scheduler
    )
    step, folder, kept = 0, None, {}
    if options.resume:
        step, folder, kept = _resume(options, network, optimizer, loaders, world)
    elif options.init_dir:
        step = _load_init(options, network, optimizer, world)
    if scheduler is not None and step <= options.max_iters:
        stand_at(scheduler, step)
    parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "loaders": loaders, "kept": kept}
    return parts, options, step, folder


def _resume(options, network, optimizer, loaders, world):
    """Put everything where the newest checkpoint of options.resume left it; (step, folder, what else the Trainer kept)."""
    path = checkpoint.find(options.resume)
    content = checkpoint.read(path, command=f"{spelled('train.run')} --resume", check=world.leads)
    check_same_network(path, content, options)
    for loader, prefix in zip(loaders, ("", "val_"), strict=False):
        where = f"{prefix}loader"
        if loader is None or where not in content:
            continue
        check_samples(options.resume, content, loader, prefix)
        loader.load_state_dict(content[where])
        loader.memory = share_of(content.get(f"{prefix}stream_state", {}), loader.order)
    note_other_order(content, loaders[0])
    step = checkpoint.load_weights(path, content, network)
    load_moments(optimizer, content["optimizer_state_dict"])
    kept = {name: content[name] for name in ("pools", "validation_due") if name in content}
    if "ema_state_dict" in content:
        kept["ema"] = content["ema_state_dict"]
    if "best_by" in content:
        kept["best"] = content["best_by"] | {"value": content["best"]}
    named = content["name"]
    if named != path.parent.name:
        where = f"{options.log_dir}/{named}"
        say(
            f"note: {path.parent} is a copy of the run {named}: curves up to step {step} are in {where}, later ones beside it"
        )
    if content["options"].get("keep_best") != options.keep_best:
        kept.pop("best", None)  # of another figure
    return step, path.parent, kept


def note_other_order(content, loader):
    """Say so where the epoch that is resumed began in another order than the one in which it goes on."""
    if content["is_stream"] != loader.reader.is_stream and loader.position and loader.order.shuffle:
        say(
            "note: shards that are streamed have an order of their own: of the epoch at hand some samples may come twice, "
            "some not at all"
        )


def check_samples(run, content, loader, prefix):
    """Raise ValueError where a run's checkpoint was trained on other samples than the loader's; where they lie is all the same.

    prefix: of the entries of this loader, "" or "val_".
    """
    remedy = "give the same ones, or begin another run with --init_dir and --load_step"
    there, here = content[f"{prefix}samples"], len(loader.windows)
    if there != here:
        raise InputError(f"{run} was trained on {there} samples, these shards have {here}; {remedy}")
    if content.get(f"{prefix}samples_sha256") != loader.reader.samples_sha256:
        raise InputError(f"{run} was trained on other samples than these shards', although as many; {remedy}")


def _load_init(options, network, optimizer, world):
    """Weights of options.init_dir, and what load_optimizer and load_step ask for; the step to go on from."""
    path = checkpoint.find(options.init_dir)
    content = checkpoint.read(path, command="--init_dir", check=world.leads)
    if not options.ignore_load:
        check_same_network(path, content, options)
    step = checkpoint.load_weights(path, content, network, options.ignore_load)
    if options.load_optimizer:
        if "optimizer_state_dict" not in content:
            raise InputError(f"{path}: holds no optimizer; leave out --load_optimizer")
        load_moments(optimizer, content["optimizer_state_dict"])
    return step if options.load_step else 0
