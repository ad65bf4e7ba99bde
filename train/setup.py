"""Options -> network, grid and loaders."""

import dataclasses
import json
import os

from common.errors import InputError
from train.data import Grid, loaders_of, make_vox_util
from train.data.config import DataConfig, Wanted
from train.model.arguments import model_arguments
from train.model.interface import build_network, complete, find_network, name_of
from train.options import Options
from train.paths import shard_sets
from train.processes.precision import seed_all
from train.processes.ranks import cores, say

DEFAULT = Options().model


def make_network(options, build=None, device="cpu"):
    """The network of --model, or of a factory, on a device; and the options as a checkpoint records them.

    These have the network's name and arguments, by which it is found again, and the sensors that it needs.

    Raises ValueError: there is no such network, or it contradicts the options.
    """
    options = _named_after(build, options)
    grid = make_vox_util(Grid.of(options), device)
    seed_all(options.seed)
    network = build_network(build or find_network(options.model), options, grid)
    needs, options = complete(network.needs, options)
    if needs != network.needs:
        try:
            network.needs = needs
        except AttributeError:  # of a property
            raise InputError(
                f"{type(network).__name__}.needs leaves lidar or radar to the options, and cannot be set: name both there"
            ) from None
    return network.to(device), options


def _named_after(build, options):
    if build is not None:
        name = name_of(build)
        if options.model not in (name, DEFAULT):
            raise InputError(f"--model {options.model}, but build is {name}; leave one out")
        options = dataclasses.replace(options, model=name)
    arguments = model_arguments(options.model_args)  # a file's content is recorded, not its name
    return dataclasses.replace(options, model_args=json.dumps(arguments) if arguments else "")


def check_same_network(path, content, options):
    """Raise ValueError where the checkpoint `content`, read from `path`, records another network than the options'."""
    recorded = content.get("options")
    if recorded and recorded["model"] != options.model:
        raise InputError(
            f"{path}: a checkpoint of the network {recorded['model']}, not of {options.model}; "
            "give its own --model, or another checkpoint"
        )


def share_of_cores(name, wanted):
    """Loader threads of this process, of those `wanted` for all of this machine's."""
    if wanted > cores() and wanted != getattr(Options, name):  # nobody gave the default
        say(f"note: --{name} {wanted}: this machine has {cores()} cores; {cores()} loader threads")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return -(-min(wanted, cores()) // processes)


def wanted_of(needs):
    """Wanted: what of the data a network's Needs decide. Of seqlen's windows, which run into the future, it takes the first."""
    layers = tuple((name, tuple(members)) for name, members in needs.layers.items())
    return Wanted(
        needs.cameras, 1, needs.track_ids, needs.train_only, layers, needs.lenses, needs.remembers, needs.past_points
    )


def make_loaders(options, device, want_train=True, rank=0, world_size=1, cameras=True, labels=None, needs=None):
    """(train, val) loaders and VoxUtil on the device; val is None without do_val. Raises ValueError.

    cameras: False reads no image, for a network that needs none. labels: LabelSpecs instead of the options' own.
    needs: all that a network needs, cameras among it; of training it may be more than of evaluation.
    """
    wanted = wanted_of(needs) if needs is not None else Wanted(cameras, frames=1)
    train, val = shard_sets(options, want_train)
    for note in (note for shards in (train, val) if shards is not None for note in shards.notes):
        say(f"note: {note}")
    threads = share_of_cores("nworkers", options.nworkers)
    # In evaluation there is but one loader, and --nworkers counts its threads, as in Simple-BEV's.
    threads_val = share_of_cores("nworkers_val", options.nworkers_val) if want_train else threads
    config = DataConfig.of(options, device, wanted=wanted, labels=labels, rank=rank, world_size=world_size)
    loaders = loaders_of(train, val, config, threads, threads_val)
    for loader in loaders:
        version = loader.reader.facts["version"] if loader is not None else ""
        if options.dset and version and version != f"v1.0-{options.dset}":
            raise InputError(f"--dset {options.dset}, but the shards are of {version}; leave it out or give others")
    return *loaders, make_vox_util(Grid.of(options), device)
