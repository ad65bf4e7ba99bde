"""An exported file held against what PyTorch said where it was exported: on any machine, without torch."""

import runpy
import time
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.progress import say
from common.shard_set import find_shards, load_indexes
from train.exporting.card import read_card
from train.exporting.runtime import open_file

SLACK = 1e-3  # of float32 outputs: calibration is worked out anew, by NumPy, and other machines add up otherwise
MARGIN = 1.5  # of less precise ones: over the difference that was measured when they were exported


def quick_check(file, shards):
    """Compare on the samples that reference.npz holds; what is found is said in a line. Raises ValueError where it differs."""
    file = Path(file)
    run, folder = open_file(file), file.parent
    card, program = read_card(file), folder / "run.py"
    if not program.is_file():
        raise InputError(f"{program}: there is none, since the network takes other inputs than shards give as they are")
    program, reference = runpy.run_path(str(program)), np.load(folder / "reference.npz")
    where = _tars(shards, reference["keys"].tolist())
    differences, seconds, other, cells = {}, [], 0, 0
    for number, key in enumerate(reference["keys"].tolist()):
        arrays = program["inputs"](program["read"](where[key], key)[1])
        if "images" in reference:  # resized ones: PIL, which run.py takes, rounds a pixel otherwise here and there
            arrays["images"] = reference["images"][number][None].astype(np.float32) / np.float32(255)
        began = time.perf_counter()
        got = run({name: arrays[name] for name in card["inputs"]})
        seconds.append(time.perf_counter() - began)
        for name in card["outputs"]:
            apart = float(np.abs(got[name][0].astype(np.float32) - reference[name][number]).max())
            differences[name] = max(differences.get(name, 0.0), apart)
        if "seg" in got:
            other += int(((got["seg"][0] > 0) != (reference["seg"][number] > 0)).sum())
            cells += reference["seg"][number].size
    say(
        f"{file}: {len(seconds)} samples; largest difference "
        + ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        + f"; {other} of {cells} cells predicted otherwise; {1000 * float(np.median(seconds)):.0f} ms a sample"
    )
    allowed = {n: max(SLACK, MARGIN * card["measured"]["difference"][n]) for n in differences}
    if wrong := [name for name, value in differences.items() if not value <= allowed[name]]:
        raise InputError(
            f"{file}: {wrong[0]} differs by {differences[wrong[0]]:.1e} from what PyTorch said, more than "
            f"{allowed[wrong[0]]:.1e}; another version of the runtime or float32 without TF32 may do"
        )


def _tars(shards, keys):
    """Path of the tar that holds each key. Raises ValueError for one that is in none."""
    found = {}
    for index, _ in load_indexes(find_shards([shards])):
        found |= dict.fromkeys(set(keys) & set(index.keys), str(index.tar))
    if missing := [key for key in keys if key not in found]:
        raise InputError(f"{shards}: there is no {missing[0]}; give the val shards that the file was exported with")
    return found
