"""python -m tests.bench.networks --out DIR: the table of networks, on a generated world; without make, .venv and nuScenes.

A row's cost is measured alone, its trainings side by side where --jobs says so. What is done is appended to DIR/networks.jsonl
at once and not done again by the same command; --only takes rows' names, or parts of them.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.bench.measure import REPOSITORY
from tests.bench.networks.pool import Job, run
from tests.bench.networks.recipes import DRY_WORLD, RECIPES, SEEDS, WORLD, WORLDS, chosen
from tests.bench.networks.table import done, table

VERSION = "v1.0-trainval"
HERE = "tests.bench.networks"
KEPT_S = 5.0  # of --seconds, for the table


def main():
    """The exit code: 0 where every row is complete."""
    options = _arguments().parse_args()
    ends = time.monotonic() + options.seconds - KEPT_S
    try:
        recipes = chosen([word.strip() for word in options.only.split(";") if word.strip()])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if options.jobs > 1 or options.dry:  # networks this small gain little from more threads, which wait for each other
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    from tests.bench.networks.jobs import Settings  # once the environment is what torch shall find

    settings = Settings(str(out), options.device, options.threads, options.dry)
    _make_shards(settings, sorted({recipe.world for recipe in recipes}))
    for at_once, jobs in _jobs(settings, recipes, options):
        run(jobs, at_once, ends, out, [f"{HERE}.jobs"], print)
    rows = settings.rows()
    for row in (row for row in rows if row["what"] == "failed"):
        print(f"{row['row']}, {row['of']}, seed {row['seed']}: {row['why']}")
    for line in (_machine(options.device), *table(rows, [recipe.name for recipe in RECIPES])):
        print(line)
    wanted = {(recipe.name, "trial", seed) for recipe in recipes for seed in SEEDS[: options.seeds]}
    return 0 if wanted <= done(rows) else 1


def _arguments():
    parser = argparse.ArgumentParser(prog=f"python -m {HERE}", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out", required=True, type=Path, help="folder of networks.jsonl, logs and the generated world"
    )
    parser.add_argument("--only", default="", metavar="ROW;…", help="; ".join(recipe.name for recipe in RECIPES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (1)")
    parser.add_argument("--threads", type=int, default=1, help="of each training's loader (1)")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    parser.add_argument(
        "--seconds", type=float, default=4 * 3600, help="for all together; then it goes on another time (4 h)"
    )
    parser.add_argument("--no-cost", action="store_true", help="trainings alone")
    parser.add_argument("--dry", action="store_true", help="every row at a tiny size")
    return parser


def _jobs(settings, recipes, options):
    """(how many side by side, Jobs) of what is still to be done: trainings, seed by seed, then costs one by one."""
    from tests.bench.networks import jobs

    over = done(settings.rows())
    costs = [(recipe.name, "cost", None) for recipe in recipes if not options.no_cost]
    trials = [(recipe.name, "trial", seed) for seed in SEEDS[: options.seeds] for recipe in recipes]
    for at_once, group in ((options.jobs, trials), (1, costs)):
        made = []
        for name, what, seed in (key for key in group if key not in over):
            arguments = (settings, name) if what == "cost" else (settings, name, seed)
            failed = partial(jobs.failed, settings, name, what, seed)
            log = "".join(c if c.isalnum() else "_" for c in name) + (f"-seed{seed}" if what == "trial" else "-cost")
            made.append(Job(log, getattr(jobs, what), arguments, failed))
        yield at_once, made


def _machine(device):
    """What it was measured on, without anything that names it."""
    import torch

    card = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    return f"{card}{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def _make_shards(settings, worlds):
    """Generated cities side by side, without nuscenes-devkit, by a split file each; one that is there already is kept."""
    with ThreadPoolExecutor() as pool:
        for made in [pool.submit(_make_world, settings, world) for world in worlds]:
            made.result()


def _make_world(settings, name):
    shards, size = settings.shards(name), DRY_WORLD if settings.dry else WORLD
    if (shards / "val.manifest.json").exists():
        return
    names = [f"scene-{number:04d}" for number in range(1, size["scenes"] + 1)]
    val = size["scenes"] // 5
    splits, world = (shards.with_name(f"{shards.name}-{what}") for what in ("splits.json", "world"))
    splits.write_text(json.dumps({"train": names[:-val], "val": names[-val:]}))
    shutil.rmtree(world, ignore_errors=True)  # of a run that was ended half-way
    common = ["--version", VERSION, "--split-file", splits]
    words = [
        "--scenes",
        size["scenes"],
        "--samples",
        size["samples"],
        "--image-size",
        size["image_size"],
        "--sweeps",
        0,
    ]
    _run("preprocess.synth", "--out", world, *common, *words, *WORLDS[name])
    _run("preprocess.run", "--dataroot", world, "--out", shards, *common, "--sweeps", 1, "--train-shards", 4)
    shutil.rmtree(world)


def _run(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    sys.exit(main())
