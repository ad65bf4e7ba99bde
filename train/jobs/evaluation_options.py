"""The options of an evaluation: those of the command line over those that the checkpoint records."""

from dataclasses import fields, replace

from common import addresses
from common.errors import InputError
from common.shard_set import find_beside, find_shards
from common.spelling import spelled
from common.stores import parse_options
from train import checkpoint
from train.command import commands_among, known_options
from train.options import SHARDS, Options
from train.processes.ranks import say

# What the checkpoint's own options decide, unless the command line says otherwise: groups, and names of other groups.
_OF_MODEL = frozenset(
    "sensors model labels grid res_scale interpolation refcam_id refcam cams image_size crop order".split()
)


def read_options(given):
    """Options of the command line over those that the checkpoint records. Raises ValueError."""
    content = checkpoint.peek(given["init_dir"], command=spelled("train.evaluate"))
    recorded = known_options(content.get("options") or {}, given["init_dir"], strict=False)
    own = [f.name for f in fields(Options) if {f.name, f.metadata["group"]} & _OF_MODEL]
    own = {name: recorded[name] for name in own if name in recorded}
    own["interpolation"] = checkpoint.interpolation(content)
    # An empty precision was the default of whatever device the run had.
    trained = own | ({"precision": recorded["precision"]} if recorded.get("precision") else {})
    for name in sorted(trained.keys() & given.keys()):
        if trained[name] != given[name]:
            say(f"note: --{name} {given[name]}; the run was trained with {trained[name]}")
    _note_other_shards(given, recorded)
    if not any(name in given for name in (*SHARDS, "mix")):
        own |= {name: recorded[name] for name in SHARDS if name in recorded}
        if recorded.get("mix") and not recorded.get("val_shards"):
            own |= {"mix": recorded["mix"], "shards": ()}
        else:
            own |= _val_shards_of(given["init_dir"], own, parse_options(given.get("store_options")))
    own["exp_name"] = recorded.get("exp_name", Options.exp_name)
    own["log_dir"] = recorded.get("log_dir", Options.log_dir)
    options = Options(**{**own, **given, "do_val": True})
    # As in Simple-BEV; training's bf16 is for speed.
    return replace(options, precision=options.precision or "fp32")


def _note_other_shards(given, recorded):
    theirs = "val_shards" if recorded.get("val_shards") else "shards"
    own = _listed(recorded.get(theirs) or ())
    for name in SHARDS:
        if own and name in given and _listed(given[name]) != own:
            say(f"note: --{name} {_listed(given[name])}; the run recorded --{theirs} {own}")


def _listed(patterns):
    return ", ".join(map(addresses.shown, (patterns,) if isinstance(patterns, str) else patterns))


def _val_shards_of(run, recorded, access):
    """{"val_shards": those of the run}, or {} where it records none; access: options of the stores. Raises ValueError."""
    if commands := commands_among(recorded):
        raise InputError(
            f"{run}: a checkpoint may not say which commands to run; if {commands[0]!r} is meant, name it: --val_shards …"
        )
    if recorded.get("val_shards") or not recorded.get("shards"):
        return {"shards": ()}
    found = find_beside(find_shards(recorded["shards"], "train", access), "val")
    if not found:
        beside = ", ".join(map(addresses.shown, recorded["shards"]))
        raise InputError(f"{run}: no val shards beside {beside}; give --val_shards")
    return {"shards": (), "val_shards": found.shards}
