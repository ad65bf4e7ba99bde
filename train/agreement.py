"""What the ranks of a run must have in common, compared before the first step.

Every machine has its own command line, its own copies of the shards and, where the folder of the runs is not shared, of the
checkpoint: what differs there would train on without a word, each rank another network.
"""

import socket

from common.errors import InputError
from common.progress import counted
from train.mix import parse_mix
from train.options import as_dict

# Options that say where a machine has what all have, and how it reads it, or what the leading rank alone does.
_OF_A_MACHINE = frozenset(
    "config resume init_dir ckpt_dir log_dir run_name wandb device device_ids timeout_min backbone_weights shards val_shards "
    "mix data_dir reader decode verify_reads requests retry_minutes cache_dir cache_gb nworkers nworkers_val".split()
)


def check_same_run(options, step, world):
    """Raise InputError on every rank where not all ranks have the same options, or go on after the same step."""
    own = {name: value for name, value in as_dict(options).items() if name not in _OF_A_MACHINE}
    own["mix"] = [(one.weight, one.cams) for one in parse_mix(options.mix)]  # whose shards may lie elsewhere too
    places = _gathered(world, own, step)
    host, first, from_step = places[0]
    for other, theirs, their_step in places:
        for name, value in theirs.items():
            if value != first[name]:
                raise InputError(
                    f"--{name}: {other} has {_short(value)}, {host} has {_short(first[name])}; "
                    "start every process with the same options"
                )
        if their_step != from_step:
            raise InputError(
                f"{other} goes on after step {their_step}, {host} after step {from_step}; "
                "give every machine the same checkpoint"
            )


def check_same_shards(loaders, world):
    """Raise InputError on every rank where not all ranks read copies of one set: the order of samples is one for all.

    loaders: (train, val), None where there is none.
    """
    for loader, split in zip(loaders, ("train", "val"), strict=True):
        identity, shown = ({}, "none") if loader is None else (loader.reader.identity, _shown(loader.reader))
        places = _gathered(world, identity, shown)
        host, first, where = places[0]
        for other, theirs, there in places:
            if theirs != first:
                what = next(name for name in (first | theirs) if theirs.get(name) != first.get(name))
                raise InputError(
                    f"the {split} shards differ: {other} has {what} ({there}) than {host} ({where}); "
                    "copy one set to every machine"
                )


def _shown(reader):
    return f"{reader.indexes[0].tar} and on: {counted(len(reader), 'sample')}"


def _gathered(world, *values):
    """(which rank on which machine, *its values) of each rank."""
    return world.gather((f"{socket.gethostname()} (rank {world.rank})", *values))


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
