"""python -m train.evaluate: what a checkpoint is worth over every validation sample, under both protocols."""

from pathlib import Path

import click

from common.errors import InputError
from common.spelling import spelled
from train.command import fail_in_one_line, from_config, options_command
from train.evaluation.files import evaluation_file
from train.exporting.card import read_card
from train.options import SHARDS, Options
from train.paths import check_paths

# Options that change nothing here, by group and name.
_OF_TRAINING = (
    *("run", "optimisation", "ckpt_dir", "save_freq", "keep_latest", "resume", "load_step", "load_optimizer"),
    *("sync_bn", "find_unused", "deterministic", "shuffle", "temporal_aug", "nworkers_val", "rand_flip"),
    *(
        "rand_crop_and_resize",
        "ncams",
        "do_shuffle_cams",
        "no_pretrained",
        "backbone_weights",
        "keep_best",
        "freeze_encoder",
        "bn_momentum",
    ),
    *("bev_rotate", "bev_scale", "bev_shift", "drop_cameras", "photometric"),
)
_CHOICES = (
    click.Option(["--out"], help="folder of eval.json, samples.csv, pictures  [RUN/eval]"),
    click.Option(
        ["--weights"],
        type=click.Choice(("trained", "ema")),
        default="trained",
        help="trained, or ema: their moving average, of a run with --ema",
    ),
    click.Option(["--pictures"], type=click.IntRange(0), default=9, help="worst, median and best samples drawn  [9]"),
    click.Option(["--robustness"], is_flag=True, help="evaluate again under some forty kinds of damage"),
    click.Option(
        ["--exported"], help="a file that train.export wrote, instead of RUN's network, which is counted beside it"
    ),
    click.Option(["--baseline"], help="with --robustness: an eval.json to compare corruptions with (mCE)"),
    click.Option(["--off_degrees"], default="0.5,1,2,5", help="with --robustness: cameras turned by  [0.5,1,2,5]"),
    click.Option(["--off_cm"], default="2,5,10,20", help="and moved by as many centimetres, pair by pair  [2,5,10,20]"),
)


@options_command(hide=_OF_TRAINING, argument=("RUN", "init_dir"), extra=_CHOICES)
def main(given, **choices):
    """Evaluate RUN (--init_dir), a run's folder or a checkpoint, over every sample of its val shards.

    Intersections are summed over all samples, and so are unions, before they are divided. What the run recorded (network,
    sensors, grid, image size, labels, shards) need not be said again. Options of training are taken and change nothing.
    """
    given, choices = fail_in_one_line(lambda: _looked_up(given, choices))
    from train.jobs import evaluating  # loads torch, which takes seconds

    fail_in_one_line(lambda: evaluating.evaluate_run(given, choices))


def _looked_up(given, choices):
    """The given options with those of --config, and choices, once all paths that they name are known to be there.

    Raises ValueError.
    """
    if choices["exported"]:
        given, choices = _of_card(given, choices)
    given = from_config(given, {"init_dir": "RUN"})
    if given.get("resume") or not given.get("init_dir"):
        raise InputError(f"give a run's folder or a checkpoint file: {spelled('train.evaluate')} RUN")
    if any(name in given for name in SHARDS):
        check_paths(Options(**{**given, "do_val": True}), want_train=False)
    if choices["baseline"]:
        evaluation_file(choices["baseline"])
    return given, choices


def _of_card(given, choices):
    """The given options and choices with the checkpoint and weights that an exported file is of; on one CPU, in windows."""
    exported = choices["exported"]
    card = read_card(exported)
    if not Path(exported).is_file():
        raise InputError(f"--exported {exported}: there is no such file")
    if given.get("device", "cpu") != "cpu" or len(given.get("device_ids", ())) > 1:
        raise InputError("--exported is evaluated in one process on the CPU; leave out --device and --device_ids")
    if choices["robustness"]:
        raise InputError("--robustness changes what a network gets, and --exported reads images anew; leave one out")
    given = {"init_dir": card["checkpoint"]["path"], **given, "device": "cpu", "order": "shuffled"}
    return given, choices | {"weights": card["checkpoint"]["weights"]}


if __name__ == "__main__":
    main()
