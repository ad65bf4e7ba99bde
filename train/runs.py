"""Runs on the disk: which one is meant by a name, a folder or a file."""

import glob
from pathlib import Path

from train.processes.distributed import say

CKPT_DIR = "checkpoints"  # the default of --ckpt_dir


def find_run(text, ckpt_dir=CKPT_DIR, what="RUN"):
    """The checkpoint file or run's folder that is meant by what a user gave: that, the run's name, its logs, a folder of runs.

    ckpt_dir: where runs are looked for by name. what: the option that the text was given to.

    Raises ValueError that says what to write instead.
    """
    path = Path(text)
    if not path.exists() and len(path.parts) == 1 and Path(ckpt_dir, text).is_dir():
        path = Path(ckpt_dir, text)
    if path.is_file() or _is_run(path):
        return str(path)
    if not path.is_dir():
        runs = _runs_in(ckpt_dir)
        newest = f"; the newest run is {runs[-1]}" if runs else ""
        raise ValueError(f"{what} {text}: there is no such file or folder{newest}")
    if (path / "config.yaml").is_file():
        remedy = f"begin it again with --config {path}/config.yaml"
        raise ValueError(f"{path}: ended before its first checkpoint; {remedy}")
    if any(path.glob("[tv]/events*")):
        name = path.absolute().name
        beside = path.absolute().parent.parent.glob(f"*/{glob.escape(name)}")
        found = {p.resolve(): p for p in (*beside, Path(ckpt_dir, name))}
        runs = [p for p in found.values() if _is_run(p)]
        where = f"its checkpoints, under --ckpt_dir {ckpt_dir} or another"
    else:
        runs, where = _runs_in(path), "a run's folder, which holds model-*.pth"
    if len(runs) > 1:
        raise ValueError(f"{what} {text}: {len(runs)} runs are there; name one, the newest is {runs[-1]}")
    if not runs:
        raise ValueError(f"{what} {text}: no checkpoint is there; give {where}")
    say(f"note: {what} {runs[0]}, which {text} stands for")
    return str(runs[0])


def _is_run(folder):
    return folder.is_dir() and any(folder.glob("model-*.pth"))


def _runs_in(folder):
    """Folders with checkpoints in a folder, the newest last."""
    return sorted((p for p in Path(folder).glob("*") if _is_run(p)), key=lambda p: p.stat().st_mtime)
