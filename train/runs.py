"""Runs on the disk: how they are named, and which one is meant by a name, a folder or a file."""

import errno
import glob
import time
from datetime import datetime
from pathlib import Path

from common.errors import InputError
from train.processes.ranks import say

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
        raise InputError(f"{what} {text}: there is no such file or folder{newest}")
    if (path / "config.yaml").is_file():
        remedy = f"begin it again with --config {path}/config.yaml"
        raise InputError(f"{path}: ended before its first checkpoint; {remedy}")
    if any(path.glob("[tv]/events*")):
        name = path.absolute().name
        beside = path.absolute().parent.parent.glob(f"*/{glob.escape(name)}")
        found = {p.resolve(): p for p in (*beside, Path(ckpt_dir, name))}
        runs = [p for p in found.values() if _is_run(p)]
        where = f"its checkpoints, under --ckpt_dir {ckpt_dir} or another"
    else:
        runs, where = _runs_in(path), "a run's folder, which holds model-*.pth"
    if len(runs) > 1:
        raise InputError(f"{what} {text}: {len(runs)} runs are there; name one, the newest is {runs[-1]}")
    if not runs:
        raise InputError(f"{what} {text}: no checkpoint is there; give {where}")
    say(f"note: {what} {runs[0]}, which {text} stands for")
    return str(runs[0])


def _is_run(folder):
    return folder.is_dir() and any(folder.glob("model-*.pth"))


def _runs_in(folder):
    """Folders with checkpoints in a folder, the newest last."""
    return sorted((p for p in Path(folder).glob("*") if _is_run(p)), key=lambda p: p.stat().st_mtime)


def model_name(batch_size, grad_acc, lr, use_scheduler, exp_name, now):
    """Simple-BEV's name of a run, such as 1x5_3e-4s_rgb03_17:45:58; now: datetime."""
    name = f"{batch_size:d}"
    if grad_acc > 1:
        name += f"x{grad_acc:d}"
    digits = f"{lr:.1e}"  # 3.0e-04
    name += f"_{digits[0]}{digits[3:5]}{digits[-1]}"
    return f"{name}{'s' if use_scheduler else ''}_{exp_name}_{now:%H:%M:%S}"


def new_folder(options):
    """Make the folder of a new run; names hold the time of day alone, and no two runs share one."""
    if options.run_name in (".", "..") or "/" in options.run_name:
        raise InputError(f"--run_name {options.run_name}: it names one folder in --ckpt_dir; give another name")
    while True:
        folder = Path(options.ckpt_dir) / folder_name(options, datetime.now())
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not folder.is_dir():
                raise
            if folder.name == options.run_name:
                if not any(folder.glob("*model-*.pth")):
                    return folder  # of a run that ended before its first checkpoint
                raise InputError(f"{folder} is there already; --resume it, or give another --run_name") from None
            time.sleep(1)
        except OSError as error:
            remedy = "give another --ckpt_dir"
            if error.errno in (errno.EINVAL, errno.EPROTO) and ":" in folder.name:
                remedy = "this file system may take no colon: add --run_name dated"
            raise InputError(f"{folder}: cannot be made ({error.strerror}); {remedy}") from None


def folder_name(options, now):
    named = (options.batch_size, options.grad_acc, options.lr, options.use_scheduler, options.exp_name)
    name = model_name(*named, now)
    if options.run_name == "dated":
        return f"{now:%Y-%m-%d_%H-%M-%S}_{name.rpartition('_')[0]}"
    return options.run_name or name
