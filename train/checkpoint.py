"""Checkpoints in Simple-BEV's layout, written so that the newest complete one always survives."""

import copy
import io
import os
import re
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from common import files
from common.errors import InputError

SHOWN = 3  # tensors that are named where a checkpoint does not fit
BEST = "model-best.pth"  # the best one by --keep_best; it holds the whole state, as those of the steps do
_NAME = re.compile(r"model-(\d{9,})\.pth")


class CheckpointError(InputError):
    """A checkpoint that cannot be used; the message names the file and what differs."""


def _steps(folder):
    found = [(int(m[1]), p) for p in Path(folder).glob("model-*.pth") if (m := _NAME.fullmatch(p.name))]
    return sorted(found)


def save(ckpt_dir, step, model, optimizer=None, scheduler=None, keep_latest=2, **state):
    """Write model-%09d.pth to a temporary name, flush, rename; only then remove all but the keep_latest newest up to it.

    Args:
        state: more entries, of types that torch.load(weights_only=True) accepts.
    Returns:
        Path of the checkpoint.
    """
    return write(ckpt_dir, step, _content(step, model, optimizer, scheduler, state), keep_latest)


def check_readable(model, optimizer=None):
    """Raise CheckpointError where a checkpoint of these could not be read: it holds plain values and tensors."""
    entries = [(f"{type(model).__name__}'s state", name, value) for name, value in model.state_dict().items()]
    if optimizer is not None:
        groups = enumerate(optimizer.state_dict()["param_groups"])
        entries += [("the optimizer's group", f"{n}", group) for n, group in groups]
    for whose, name, value in entries:
        if type(value) is not torch.Tensor:
            file = io.BytesIO()
            try:
                torch.save(value, file)
                torch.load(io.BytesIO(file.getvalue()), map_location="cpu", weights_only=True)
            except Exception:  # pickle and torch raise many kinds
                raise CheckpointError(
                    f"{whose} {name} cannot be kept in a checkpoint: it holds more than numbers, texts, lists, dicts and "
                    "tensors; make it of these"
                ) from None


def _content(step, model, optimizer, scheduler, state):
    check_readable(model)
    content = {"model_state_dict": model.state_dict(), "step": int(step), **state}
    if optimizer is not None:
        content["optimizer_state_dict"] = optimizer.state_dict()
    if scheduler is not None:
        content["scheduler_state_dict"] = scheduler.state_dict()
    return content


def snapshot(step, model, optimizer=None, scheduler=None, **state):
    """What save would write, copied to the CPU, so that training can go on while it is written."""
    return _copied(_content(step, model, optimizer, scheduler, state))


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) in (dict, OrderedDict):
        out = type(value)((k, _copied(v)) for k, v in value.items())
        if hasattr(value, "_metadata"):  # the modules' versions, by which torch brings older states up to date
            out._metadata = copy.deepcopy(value._metadata)
        return out
    if type(value) in (list, tuple):
        return type(value)(_copied(v) for v in value)
    return copy.deepcopy(value)


def write(ckpt_dir, step, content, keep_latest, name=None, tell=lambda note: None):
    """Write the dict of a checkpoint as save does; returns its path.

    Args:
        name: of the file, beside those of the steps. tell: gets a note where the file system cannot do all that is asked.
    Raises:
        CheckpointError: it cannot be written; the ones before are still there.
    """
    if keep_latest < 1:
        raise InputError(f"keep_latest is {keep_latest}; it must be at least 1")
    folder = Path(ckpt_dir)
    path = folder / (name or f"model-{step:09d}.pth")
    sink = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.new_file(path) as file:
            sink = _Sink(file)
            torch.save(content, sink)
        # The new name reaches the disk before older files go: a power cut, too, leaves one of them.
        if not files.flush_folder(folder):
            tell(
                f"{folder}: this file system does not say when a new name is on the disk; a power cut may lose the newest"
            )
    except (OSError, RuntimeError) as error:
        reason = (sink and sink.error) or error
        if not isinstance(reason, OSError):
            raise
        steps = _steps(folder) if folder.is_dir() else []
        left = f"; the newest one is {steps[-1][1]}: go on with --resume {folder}" if steps else ""
        raise CheckpointError(f"{path}: cannot be written ({reason.strerror or reason}){left}") from None
    for _, old in [one for one in _steps(folder) if one[0] <= step][:-keep_latest]:
        old.unlink(missing_ok=True)
    return path


class _Sink:
    """A file for torch.save, which loses the reason why a write failed on its way through C++."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self.file.flush()


class Writer:
    """Writes snapshots in a background thread, one at a time; an error comes up at the next check, submit or close.

    There is one for a folder at any time; what a killed one left half-written is removed. mark: gets True when a write begins
    and False once it has ended. tell: gets notes, each once.
    """

    def __init__(self, ckpt_dir, keep_latest, mark=lambda on: None, tell=lambda note: None):
        self.folder, self.keep_latest, self._mark, self._tell = Path(ckpt_dir), keep_latest, mark, tell
        self._told = set()
        for half_written in self.folder.glob(".model-*.pth.*.tmp"):
            half_written.unlink()
        self._pool, self._last = ThreadPoolExecutor(1, "checkpoint"), None

    def submit(self, step, content, name=None):
        """Begin to write a snapshot once the one before is written; the path that it will have. name: as in write."""
        self.check()
        self._mark(True)
        self._last = self._pool.submit(self._write, step, content, name)
        return self.folder / (name or f"model-{step:09d}.pth")

    def _write(self, step, content, name):
        try:
            return write(self.folder, step, content, self.keep_latest, name, self._once)
        finally:
            self._mark(False)

    def _once(self, note):
        if note not in self._told:
            self._told.add(note)
            self._tell(note)

    def idle(self):
        """Whether nothing is being written."""
        return self._last is None or self._last.done()

    def failed(self):
        """Whether the last write has failed, and nobody has been told yet."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def check(self):
        """Wait for the last snapshot; raise, once, what writing it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def finish(self):
        """End the thread once the last snapshot is written; the error of that, if it was not raised yet."""
        self._pool.shutdown(wait=True)
        return self._last.exception() if self._last is not None else None

    def close(self):
        """Wait for the last snapshot. Raises what writing it raised."""
        self._pool.shutdown(wait=True)
        self.check()


def find(path_or_dir, step=None):
    """The checkpoint file meant: the path itself, or in a folder the one of `step`, by default the newest.

    A run that ended before the first of its steps' may have kept its best one.
    """
    path = Path(path_or_dir)
    if path.is_file():
        return path
    steps = _steps(path)
    if step is not None:
        steps = [s for s in steps if s[0] == int(step)]
    elif not steps and (path / BEST).is_file():
        return path / BEST
    if not steps:
        wanted = "model-*.pth" if step is None else f"model-{int(step):09d}.pth"
        raise CheckpointError(f"{path}: no checkpoint {wanted} there")
    return steps[-1][1]


def peek(path_or_dir, step=None, command="give"):
    """What `read` gives but for networks and optimizers, which are not read. Raises CheckpointError as it does."""
    path = find(path_or_dir, step)
    try:
        content = _by_name(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        return {name: value for name, value in content.items() if not name.endswith("_state_dict")}
    except Exception:  # a damaged file, or a format that cannot be mapped
        return read(path, command=command)


def read(path_or_dir, step=None, command="give", check=True):
    """The dict of a checkpoint, on the CPU, by weights_only.

    Args:
        command: what a user writes before the path of another one, for the message.
        check: compare checksums; of several processes that read the same file one is enough.
    Raises:
        CheckpointError: for a damaged file it names the newest sound one beside it.
    """
    path = find(path_or_dir, step)
    try:
        return _read(path, check)
    except CheckpointError as error:
        others = [*(other for _, other in reversed(_steps(path.parent))), path.with_name(BEST)]
        sound = next((other for other in others if other != path and _is_sound(other)), None)
        rest = f"; the newest sound one: {command} {sound}" if sound else "; copy it anew, no sound one is beside it"
        raise CheckpointError(f"{error}{rest}") from None


def _read(path, check=True):
    try:
        content = _by_name(torch.load(path, map_location="cpu", weights_only=True))
        content["model_state_dict"].items()
        if check and "step" in content:  # ours, with checksums, which torch does not compare
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise InputError(f"the file is corrupt, the checksum of {damaged} in it is wrong")
        return content
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from None


def _by_name(content):
    """A checkpoint's dict; of a state_dict alone, as Lift-Splat-Shoot publishes, one of nothing else."""
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        return {"model_state_dict": content, "alone": True}
    return content


def _is_sound(path):
    try:
        _read(path)
        return True
    except CheckpointError:
        return False


def set_aside(folder, step):
    """Rename what was saved after `step` to abandoned-model-…, so that a run that goes back never meets it again.

    The newest first: a kill leaves no gap behind which an abandoned one is the newest. Returns the new paths.
    """
    later = [path for found, path in _steps(folder) if found > step]
    named = [p for p in Path(folder).glob("model-*.pth") if not _NAME.fullmatch(p.name) and _step_of(p) > step]
    moved = []
    for path in (*named, *reversed(later)):
        free = (
            path.with_name(f"abandoned-{path.stem}{suffix}.pth") for suffix in ("", *map(".{}".format, range(1, 999)))
        )
        target = next(p for p in free if not p.exists())
        os.rename(path, target)
        moved.append(target)
    return moved


def _step_of(path):
    """The step that a checkpoint with a name of its own holds; 0 where it is damaged."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("step", 0))
    except Exception:  # as in _read
        return 0


def load(path_or_dir, model, optimizer=None, scheduler=None, ignore_load=(), step=None):
    """Load a checkpoint of ours, of Simple-BEV, or a state_dict alone.

    Args:
        ignore_load: substrings; weights whose names hold one keep their values. Each must be in some name.
        step: in a folder, which step; by default the newest.
    Returns:
        The step.
    Raises:
        CheckpointError: no such checkpoint, a damaged one, or one that torch's strict load_state_dict refuses: of what differs
            three are named. The model may then be changed in part.
    """
    path = find(path_or_dir, step)
    content = read(path)
    for what, name in ((optimizer, "optimizer_state_dict"), (scheduler, "scheduler_state_dict")):
        if what is not None and name not in content:
            raise CheckpointError(f"{path}: holds no {name}; load without it")
    found = load_weights(path, content, model, ignore_load)
    if optimizer is not None:
        optimizer.load_state_dict(content["optimizer_state_dict"])
    if scheduler is not None:
        scheduler.load_state_dict(content["scheduler_state_dict"])
    return found


WEIGHTS = ("trained", "ema")  # of a checkpoint, that may be loaded


def load_weights(path, content, model, ignore_load=(), weights="trained"):
    """The weights of what `read` gave of `path`, into the model; returns the step. Raises CheckpointError as `load` does.

    weights: of WEIGHTS; ema: the moving average of a run with --ema, and what is not averaged as it was trained.
    """
    own, state = model.state_dict(), _unprefixed(content["model_state_dict"], model)
    if weights == "ema":
        if "ema_state_dict" not in content:
            raise CheckpointError(
                f"{path}: holds no moving average of the weights; train with --ema, or take those trained"
            )
        state.update(content["ema_state_dict"])
    for part in ignore_load:
        if not any(part in name for name in (*own, *state)):
            raise CheckpointError(f"--ignore_load {part}: no weight of the model or of {path} has it in its name")
    kept = {name: value for name, value in own.items() if any(part in name for part in ignore_load)}
    for name in [name for name in state if any(part in name for part in ignore_load)]:
        del state[name]
    state.update(kept)
    try:
        model.load_state_dict(state)
    except InputError as error:  # of a hook of the model's own, as is a RuntimeError that lists nothing
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:
        said = [line.strip() for line in str(error).splitlines()[1:]]
        problems = _differences(own, state) or said
        if not said:
            raise
        rest = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        options = getattr(model, "decided_by", "--model or --model_args")
        raise CheckpointError(
            f"{path}: does not fit the model: {'; '.join(problems[:SHOWN])}{rest}; another {options}?"
        ) from None
    name = _NAME.fullmatch(Path(path).name)
    return int(content.get("step", name[1] if name else 0))


def _unprefixed(state, model):
    """A copy of a state_dict, without the `module.` that DataParallel puts before every name, where the model has none."""
    out = OrderedDict(state)
    if hasattr(state, "_metadata"):
        out._metadata = OrderedDict(state._metadata)
    own = model.state_dict().keys()
    if all(name.startswith("module.") for name in out) and not own & out.keys():
        consume_prefix_in_state_dict_if_present(out, "module.")
    return out


def _differences(own, given):
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [f"unexpected {name}" for name in given if name not in own]
    for name, value in given.items():
        shapes = [tuple(v.shape) if isinstance(v, torch.Tensor) else None for v in (value, own.get(name))]
        if None not in shapes and shapes[0] != shapes[1]:
            problems.append(f"{name} is {shapes[0]}, the model has {shapes[1]}")
    return problems


def interpolation(content):
    """How the images were resized that a checkpoint was trained on; Simple-BEV records nothing and used nearest.

    A state_dict alone is none of Simple-BEV's; Lift-Splat-Shoot's images were smoothed.
    """
    return (content.get("options") or {}).get("interpolation", "bilinear" if "alone" in content else "nearest")
