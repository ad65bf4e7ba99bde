"""python -m tests.bench.gpu --out DIR: everything that only a GPU can tell. Needs neither make nor a .venv nor nuScenes."""

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

from tests.bench.gpu.runner import FILE, Part, choose, run
from tests.bench.gpu.settings import Settings

HERE = "tests.bench.gpu"
# Most wanted first: where time runs out, what stands last is missing.
PARTS = (
    Part("machine", f"{HERE}.machine:describe", 60),
    Part("kernels", f"{HERE}.kernels:compare_and_time", 90, ("machine",), fresh=True),
    Part("passes", f"{HERE}.passes:time_them", 60, ("machine",), fresh=True),
    Part("world", f"{HERE}.world:prepare", 120, ("machine",)),
    Part("stage", f"{HERE}.stage:compare", 60, ("world",)),
    Part("precision", f"{HERE}.precision:compare", 60, ("world",)),
    Part("batch8", f"{HERE}.training:batch8", 90, ("world",)),
    Part("profile", f"{HERE}.profile:table", 90, ("world",)),
    Part("steps", f"{HERE}.steps:by_part", 60, ("machine",)),
    Part("nvjpeg", f"{HERE}.stage:nvjpeg", 60, ("world",)),
    Part("pieces", f"{HERE}.stage:pieces", 60, ("world",)),
    Part("batch16", f"{HERE}.training:batch16", 60, ("world",)),
    Part("preset24", f"{HERE}.training:preset24", 60, ("world",)),
    Part("metaradar", f"{HERE}.training:metaradar", 60, ("world",)),
    Part("plain", f"{HERE}.training:plain", 60, ("world",)),
    Part("compile", f"{HERE}.training:compiled", 240, ("world",)),
    Part("roofline", f"{HERE}.roofline:share", 40, ("profile",), kept_s=20),
)
# What is imported, and by what name pip knows it.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "click": "click",
    "tqdm": "tqdm",
    "tensorboard": "tensorboard",
    "yaml": "pyyaml",
    "simplejpeg": "simplejpeg",
    "zstandard": "zstandard",
    "webdataset": "webdataset",
    "braceexpand": "braceexpand",
    "pyquaternion": "pyquaternion",
}


def main():
    """The exit code: 0 where every part succeeded."""
    options = _arguments().parse_args()
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        return _error(f"{', '.join(missing)} not installed; python -m pip install {' '.join(missing)}")
    try:
        parts = choose(PARTS, [name for name in options.only.split(",") if name])
    except ValueError as error:
        return _error(error)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if (out / FILE).exists():
        (out / FILE).rename(out / f"{time.strftime('%Y%m%d-%H%M%S')}-{FILE}")
    settings = Settings(str(out), tuple(options.shards), options.dry)
    if options.dry:  # networks this small gain nothing from more threads, which spin while they wait for each other
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    failed = run(parts, settings, out, options.seconds, [f"{HERE}.warm"])
    print(f"{len(parts) - len(failed)} of {len(parts)} parts succeeded; rows in {out / FILE}, their output beside it")
    return 1 if failed else 0


def _arguments():
    parser = argparse.ArgumentParser(prog=f"python -m {HERE}", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, type=Path, help="folder for gpu.jsonl, logs and the generated world")
    parser.add_argument("--seconds", type=float, default=480, help="for all parts together (480)")
    parser.add_argument("--only", default="", metavar="PART,…", help=", ".join(part.name for part in PARTS))
    parser.add_argument("--shards", nargs="+", default=(), help="train tars; without them a world is generated")
    parser.add_argument("--dry", action="store_true", help="every part on the CPU, at tiny sizes")
    return parser


def _error(text):
    print(f"error: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
