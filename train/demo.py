"""python -m train.demo: a generated world -> shards -> a small training, its IoU before and after, a picture and a page."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from common.errors import InputError
from common.files import write_atomically
from common.progress import say
from common.spelling import EITHER, Command, spelled
from train.command import fail_in_one_line
from train.options import Options
from train.paths import check_paths

VERSION = "v1.0-trainval"  # the layout that the generated folder has
RUN = "demo"  # the run's name


@dataclass(frozen=True)
class Size:
    """How large a demo is.

    scenes, samples, sweeps, image_size: of preprocess.synth; a fifth of the scenes are for validation. options: of training,
    but for where things lie. pictures: of the evaluation. takes: on two cores, in words. maps: whether shards get layer map.
    """

    scenes: int
    samples: int
    sweeps: int
    image_size: str
    options: dict
    pictures: int
    takes: str
    maps: bool = False


_OPTIONS = {
    "exp_name": "demo",
    "run_name": RUN,
    "grad_acc": 1,
    "nworkers": 2,
    "use_lidar": True,
    "nsweeps": 1,
    "encoder_type": "effb0",
    "no_pretrained": True,
    "bn_momentum": 0.1,
}
WHOLE = Size(
    scenes=40,
    samples=6,
    sweeps=2,
    image_size="900x1600",
    options=_OPTIONS
    | {
        "max_iters": 240,
        "val_freq": 20,
        "save_freq": 40,
        "batch_size": 2,
        "lr": 1e-3,
        "res_scale": 0.5,
        "latent_dim": 64,
    }
    | {"bounds": (-25.6, 25.6, -5.0, 5.0, -25.6, 25.6), "Z": 64, "Y": 4, "X": 64},
    pictures=9,
    takes="about ten minutes",
)
# Chosen by measurement: five times the IoU of the all-vehicle guess in 75 s of CPU. Without augmentation, which pays later.
QUICK = Size(
    scenes=25,
    samples=4,
    sweeps=0,
    image_size="225x400",
    options=_OPTIONS
    | {
        "max_iters": 60,
        "val_freq": 20,
        "save_freq": 20,
        "batch_size": 4,
        "lr": 2e-3,
        "res_scale": 0.25,
        "latent_dim": 32,
    }
    | {"rand_flip": False, "rand_crop_and_resize": False, "do_shuffle_cams": False}
    | {"bounds": (-24.0, 24.0, -5.0, 5.0, -24.0, 24.0), "Z": 48, "Y": 2, "X": 48},
    pictures=3,
    takes="about a minute",
)
# Several classes at once, from boxes and from the map. Paint is narrow: it needs images, and more updates than vehicles do.
MAPS = Size(
    scenes=80,
    samples=3,
    sweeps=0,
    image_size="450x800",
    options=_OPTIONS
    | {
        "max_iters": 320,
        "val_freq": 80,
        "save_freq": 80,
        "batch_size": 4,
        "lr": 3e-3,
        "res_scale": 0.36,
        "latent_dim": 32,
        "frame": "ego",
        "classes": "vehicle=vehicle; pedestrian=human.pedestrian @3 +50; drivable=map:drivable_area; "
        "crossing=map:ped_crossing @2 +4; divider=map:road_divider,lane_divider",
    }
    | {"rand_flip": False, "rand_crop_and_resize": False, "do_shuffle_cams": False}
    | {"centroid": (0.0, -1.5, 0.0), "bounds": (-50.0, 50.0, -1.8, 1.8, -50.0, 50.0), "Z": 80, "Y": 4, "X": 80},
    pictures=9,
    takes="about six minutes",
    maps=True,
)


def options_of(size, shards, out, **chosen):
    """Options of the demo's training. chosen: more of them, over the size's own."""
    return Options(
        shards=(f"{shards}/train-*.tar",),
        val_shards=(f"{shards}/val-*.tar",),
        log_dir=f"{out}/logs",
        ckpt_dir=f"{out}/checkpoints",
        **{**size.options, **chosen},
    )


@click.command(cls=Command, context_settings={**EITHER, "show_default": True, "max_content_width": 100})
@click.option("--quick", is_flag=True, help=f"a smaller world and training: {QUICK.takes} instead of {WHOLE.takes}")
@click.option("--maps", is_flag=True, help=f"vehicles, pedestrians and three layers of the map: {MAPS.takes}")
@click.option("--out", help="folder of everything but the picture  [demo, demo-quick, demo-maps]", show_default=False)
@click.option("--picture", help="path of the picture of one sample  [OUT.png]", show_default=False)
@click.option("--shards", help="train on these instead of a generated world", show_default=False)
@click.option("--steps", type=click.IntRange(1), help=f"updates  [{WHOLE.options['max_iters']}]", show_default=False)
@click.option("--precision", default="fp32", help="bf16 or fp32")
@click.option(
    "--seed", default=0, type=click.IntRange(0), help="random seed of the training; the world is always the same"
)
def main(quick, maps, out, picture, shards, steps, precision, seed):
    """Make a world, shards of it, and train on the CPU; evaluate, draw a val sample, and make the page of the run.

    It needs no data, and goes on where it was stopped.
    """
    if quick and maps:
        raise click.UsageError("--quick and --maps are two demos; leave one out")
    size, name = (QUICK, "demo-quick") if quick else (MAPS, "demo-maps") if maps else (WHOLE, "demo")
    out = Path(out or name)
    given = {"precision": precision, "seed": seed} | ({"max_iters": steps} if steps else {})
    options = options_of(size, shards or out / "shards", out, **given)
    fail_in_one_line(lambda: _begin(size, out, shards, options))
    from train.jobs import demo  # loads torch, which takes seconds

    say("[3/3] training")
    fail_in_one_line(lambda: demo.run(options, size.pictures, picture or f"{out}.png", out))


def _begin(size, out, shards, options):
    """Say what will be done, and make world and shards where they are not there yet. Raises ValueError."""
    options.validate()
    if shards:
        check_paths(options)
        return
    say(f"a generated city of {size.scenes} scenes -> shards -> {options.max_iters} updates on the CPU -> evaluation,")
    say(f"a picture and a page, all in {out}; {size.takes} on two cores. Stopped, it goes on where it was.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}); give another --out") from None
    splits = out / "splits.json"
    val = size.scenes // 5
    names = [f"scene-{number:04d}" for number in range(1, size.scenes + 1)]
    write_atomically(splits, json.dumps({"train": names[:-val], "val": names[-val:]}).encode())
    if not (out / "world" / VERSION).is_dir():  # written last
        say("[1/3] world: cameras, lidar and radars of a city that is not there")
        words = f"--version {VERSION} --scenes {size.scenes} --samples {size.samples} --sweeps {size.sweeps}".split()
        _preprocess("synth", "--out", out / "world", "--split-file", splits, "--image-size", size.image_size, *words)
    if not all((out / "shards" / f"{split}.manifest.json").is_file() for split in ("train", "val")):
        say("[2/3] shards")
        words = f"--version {VERSION} --sweeps {size.sweeps + 1} --train-shards 4 --val-shards 2".split()
        _preprocess("run", "--dataroot", out / "world", "--out", out / "shards", "--split-file", splits, *words)
    if size.maps:
        _preprocess("maps", "--dataroot", out / "world", "--shards", out / "shards")


def _preprocess(command, *words):
    """Run a command of the package preprocess, of which this one knows nothing else; where it fails, it has said why."""
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # -P: a preprocess.py in the current folder would hide ours.
    line = [sys.executable, "-P", "-m", f"preprocess.{command}", *map(str, words)]
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": paths})
    if done.returncode:
        sys.exit(done.returncode if done.returncode > 0 else 128 - done.returncode)


if __name__ == "__main__":
    main(prog_name=spelled("train.demo"))
