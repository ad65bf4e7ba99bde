"""What options name on this machine's disks, looked for before anything heavy is loaded."""

from pathlib import Path

from common.addresses import is_pipe, is_remote, join, shown
from common.errors import InputError
from common.shard_set import find_beside, find_shards
from train.mix import Mixture, parse_mix
from train.options import SHARDS


def shard_sets(options, want_train=True):
    """(train, val) ShardSets of the options; None where they are not wanted. Raises ValueError with the remedy.

    want_train: False is for evaluation, whose --shards are those of the val split.
    """
    train, val = None, None
    sets = parse_mix(options.mix)
    if sets and (want_train or not (options.val_shards or options.shards)):
        return _mixtures(options, sets, want_train)
    if want_train:
        train = find_shards(options.shards or (join(options.data_dir, "train-*.tar"),), "train", options.stores)
    if options.do_val:
        if options.val_shards:
            val = find_shards(options.val_shards, "val", options.stores)
        elif want_train:
            val = find_beside(train, "val")
        else:
            val = find_shards(options.shards or (join(options.data_dir, "val-*.tar"),), "val", options.stores)
        if not val:
            raise InputError("no val shards beside the train shards; give --val_shards or --do_val False")
    return train, val


def _mixtures(options, sets, want_train):
    """(train, val) of --mix: Mixtures; val a ShardSet with --val_shards. None where they are not wanted."""
    train, val, parts = None, None, ([one.weight for one in sets], [one.cams for one in sets])
    beside = [find_shards(one.shards, "train", options.stores) for one in sets]
    if want_train and not options.shuffle:
        raise InputError("--mix puts samples of several sets among each other; leave out --shuffle False")
    if want_train:
        train = Mixture(tuple(beside), *map(tuple, parts))
    if options.do_val and options.val_shards:
        val = find_shards(options.val_shards, "val", options.stores)
    elif options.do_val:
        found = [
            find_shards(one.val_shards, "val", options.stores) if one.val_shards else find_beside(shards, "val")
            for one, shards in zip(sets, beside, strict=True)
        ]
        if not all(found):
            lacking = sets[[bool(shards) for shards in found].index(False)].shards[0]
            raise InputError(
                f"--mix: no val shards beside {shown(lacking)}; give its val_shards, --val_shards, or --do_val False"
            )
        val = Mixture(tuple(found), *map(tuple, parts))
    return train, val


def check_paths(options, want_train=True):
    """Raise ValueError for a path of the options that is not there. What lies elsewhere is asked for when it is read."""
    words = [word for name in SHARDS for word in _words(getattr(options, name))]
    words += [word for one in parse_mix(options.mix) for word in (*one.shards, *one.val_shards)]
    if not any(is_remote(word) or is_pipe(word.strip()) for word in words):
        shard_sets(options, want_train)
    if options.backbone_weights and not Path(options.backbone_weights).is_file():
        raise InputError(f"--backbone_weights {options.backbone_weights}: there is no such file")
    arguments = options.model_args.strip()
    if arguments and not arguments.startswith("{") and not Path(arguments).is_file():
        raise InputError(f"--model_args {arguments}: neither a JSON object nor a file with one")


def _words(value):
    return (value,) if isinstance(value, str) else value
