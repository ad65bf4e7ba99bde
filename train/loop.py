"""The training loop: updates of accumulated batches, validation now and then, checkpoints."""

import copy
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import InputError
from common.progress import Progress
from train import checkpoint
from train.data.buffers import passed
from train.ema import Ema
from train.errors import NotFinite, Stopped
from train.model.interface import check_network
from train.model.memory import apart, has_memory, joined, load_memory, memory_of
from train.monitor.console import Console
from train.monitor.curves import Curves, Pool
from train.monitor.waits import Waits
from train.monitor.writers import open_wandb
from train.optim import fetch_optimizer, parameter_groups
from train.options import Options, as_dict
from train.processes import signals
from train.processes.distributed import World, saving
from train.processes.gradients import Averaged
from train.processes.precision import on_device, peak_memory_gb, seed_all
from train.processes.ranks import say
from train.step import LossStep, validate

LOST = 255  # no signal's number: rank 0 could not write a checkpoint, or curves


def _writer(folder, keep_latest):
    return checkpoint.Writer(folder, keep_latest, saving, lambda note: say(f"note: {note}"))


@dataclass
class Update:
    """An update that the device may still be busy with: its figures are on their way to the host.

    own: this rank's, one row per batch, on the device. sums: the same summed over ranks, on the CPU once `arrived` has passed.
    samples: tokens of each batch. shown: what is known of it without the device. waits: for its batches. validated: whether a
    validation followed.
    """

    step: int
    own: torch.Tensor
    sums: torch.Tensor
    arrived: object
    samples: list
    shown: dict
    waits: Waits
    validated: bool = False

    def is_finite(self):
        """Whether loss and gradient are, on all ranks; waits for the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.sums.isfinite().all())


class _NoBatch(Exception):
    """A loader gave no batch; why is its cause. step: the last update that was made. state: of the loaders, as of then."""

    def __init__(self, step, state):
        super().__init__()
        self.step, self.state = step, state


class Trainer:
    """One run: what it needs, and its update step.

    Args:
        options: Options. network: see train/model/README.md. loaders: (train, val or None, VoxUtil) of make_loaders.
        name: of the run and its folders; without it the experiment's.
        optimizer, scheduler: without them those of the options. world: distributed.World; without it this process alone.
        kept: what a checkpoint kept of the run: `pools`; `best`, the figure of --keep_best so far: its name, whether higher is
            better, value; `validation_due`: whether the last update's validation failed, and is still to be made; `ema`:
            averages of the weights.
    Raises:
        ValueError: what is wrong with an argument.
    """

    def __init__(self, options, network, loaders, *, name="", optimizer=None, scheduler=None, world=None, kept=None):
        kept = kept or {}
        _check_arguments(options, network, loaders)
        self.options, self.network, self.name = options, network, name or options.exp_name
        self.train_loader, self.val_loader, grid = loaders
        self.world = world or World(0, 1, self.train_loader.stage.device)
        autocast = options.autocast_on(self.world.device)
        on_device(network, self.world.device, autocast)
        if optimizer is None:
            chosen = (options.lr, options.weight_decay, options.max_iters, options.use_scheduler)
            optimizer, scheduler = fetch_optimizer(parameter_groups(network), *chosen)
        self.optimizer, self.scheduler = optimizer, scheduler
        self.folder = Path(options.ckpt_dir) / self.name
        self.step = LossStep(network, grid, autocast, self.world, options.seed, options.rand_flip)
        self.pools = {w: Pool(kept.get("pools", {}).get(w, ()), self.step.read) for w in "tv"}
        self.best = kept.get("best")
        self.validation_due = kept.get("validation_due", False)
        # Of the leading rank alone, whose weights are everybody's, and whose statistics a checkpoint holds.
        self.ema = Ema(network, options.ema, kept.get("ema")) if options.ema and self.world.leads else None
        if options.compile and self.world.size == 1:
            self.step.compile_parts()
        if options.rand_flip and not self.step.flips:
            say("note: the network takes no flips (its forward has no parameter of that name), and trains without them")
        on_wrapping = self.step.compile_parts if options.compile else lambda: None
        self.averaged = Averaged(self.step, options.find_unused, on_wrapping)
        # The host runs one update ahead of a device that works by itself.
        self.runs_ahead = self.world.device.type == "cuda"
        self._pending = None

    def run(self, first_step=0):
        """Train to max_iters; returns the last checkpoint's path.

        Where a loader fails, what was trained so far is saved before its error is raised; resumed, the run is the one that
        it would have been. Checkpoints of later steps that lie in the folder are set aside first.

        Raises Stopped after a signal, NotFinite, what a loader raises.
        """
        train = self.train_loader.endless()
        val = self.val_loader.endless() if self.val_loader is not None else None
        self.world.together(lambda: checkpoint.check_readable(self.network, self.optimizer))
        self.world.together(lambda: self.world.leads and self._set_aside(first_step))
        saver = _writer(self.folder, self.options.keep_latest) if self.world.leads else None
        load_memory(self.network, self.train_loader.memory, self.world.device)
        steps = range(first_step + 1, self.options.max_iters + 1)
        shown = {part: pool for part, pool in self.pools.items() if part == "t" or val is not None}
        self.curves = self._curves(shown, steps.start)
        self.console = Console(steps, self.options.batch_size * self.options.grad_acc, self.world.leads)
        self._val_picture_due = False
        self._saved_step = first_step
        endings = (
            *(lambda: self._finish(ended=True), self.console.close, lambda: _last_written(saver)),
            *(train.close, lambda: val and val.close(), self.curves.close),
        )
        with signals.collected() as caught, _at_the_end(*endings):  # until the last write is on the disk
            return self._updates(steps, train, val, saver, caught)

    def _updates(self, steps, train, val, saver, caught):
        path, stop, failure = None, 0, None
        if self.validation_due and val is not None:
            path = self._validate_late(steps.start - 1, val, saver)
        for step in steps:
            try:
                self._iterate(step, train, val, saver)
            except _NoBatch as failed:
                failure = failed
                break
            lost = (saver and saver.failed()) or self.curves.lost
            stop = self.world.any(caught[0] if caught else LOST if lost else 0)
            if self._saves(step) or stop:
                self._finish()
                path = self.save(step, saver)
            if stop:
                break
            if step == steps.start:
                self.world.first_step_done()
        if failure is not None:
            self._keep(failure, saver)
            raise failure.__cause__
        self._saved(saver)
        self.curves.close()
        self.world.together(self.curves.check)
        if stop:
            raise Stopped(128 + stop)
        return path

    def _keep(self, failure, saver):
        """Save what was trained until a loader failed; where that fails too, the loader's error tells it."""
        if failure.step <= self._saved_step:
            return
        try:
            self._finish()
            self.save(failure.step, saver, state=failure.state)
            self._saved(saver)
        except NotFinite:
            raise
        except Exception as error:
            failure.__cause__.add_note(f"note: step {failure.step} could not be saved: {error}")

    def _set_aside(self, step):
        """Set aside what the folder holds of later steps: of this run, which goes back, or of another of its name."""
        for path in checkpoint.set_aside(self.folder, step):
            say(f"note: {path} was saved after step {step}, from which this run goes on; it will not be used again")

    def _curves(self, pools, first_step):
        options = as_dict(self.options)
        mode = self.options.wandb if self.world.leads else ""
        board = self.world.together(lambda: open_wandb(mode, self.name, self.options.log_dir, options, first_step))
        where = f"{self.options.log_dir}/{self.name}"
        curves = self.world.together(lambda: Curves(where, pools, first_step, self.world.leads, board))
        curves.configuration("\n".join(f"{name}: {value}" for name, value in options.items()))
        return curves

    def _saved(self, saver):
        """Wait on all ranks until rank 0's last write has ended: one that went away might take rank 0 with it.

        Raises what the write raised on rank 0, PeerFailed on the others.
        """
        self.world.wait(lambda: saver is not None and saver.idle())
        self.world.together(lambda: saver and saver.check())

    def _iterate(self, step, train, val, saver):
        """One update, and what of the one before was left until the device had something to do."""
        started = time.monotonic()
        update = self.update(step, train)
        self._finish()
        self._pending = update
        validates = val is not None and self._validates(step)
        draws = self._draws(step)
        at_once = validates or draws or self._saves(step) or not self.runs_ahead
        if at_once:
            self._count(update)
        seconds, samples = time.monotonic() - started, self.options.batch_size * self.options.grad_acc
        update.shown |= {
            "itime": seconds,
            "samples_per_s": samples / seconds,
            "read_mb_per_s": update.shown.pop("read_mb") / seconds,
        }
        if validates:
            seen = self._validate(step, val)
            update.validated = True
        if at_once:
            self._finish()
        if draws:
            self.curves.pictures("t", step, self.batch, self.outputs, self.step.grid)
        # Validation need not fall on a step whose pictures are drawn: the next one then shows its own, and the run's last.
        self._val_picture_due |= draws or step + self.options.val_freq > self.options.max_iters
        if validates and seen and self._val_picture_due:
            self.curves.pictures("v", step, *seen, self.step.grid)
            self._val_picture_due = False
        if validates:
            self._keep_best(step, saver)

    def _validate_late(self, step, val, saver):
        """Make the validation of the last update, whose own has failed and ended the run; the path of what is then saved."""
        try:
            seen = self._validate(step, val)
        except _NoBatch as failed:
            raise failed.__cause__ from None
        self.curves.validation(step)
        if seen and self._draws(step):
            self.curves.pictures("v", step, *seen, self.step.grid)
        self._keep_best(step, saver)
        return self.save(step, saver)

    def _keep_best(self, step, saver):
        if self.options.keep_best and self.world.any(int(self.world.together(self._is_best))):
            self.save(step, saver, checkpoint.BEST)

    def update(self, step, train):
        """One optimizer update of grad_acc batches, handed to the device without waiting for it; an Update.

        Random numbers of the network (dropped paths) are a function of seed, step and rank: nothing to save.
        """
        seed_all((self.options.seed * 1_000_003 + step) * 4099 + self.world.rank)
        stood = {"loader": self.train_loader.state_dict(), "stream_state": memory_of(self.network)}
        waits, read_before = Waits(self.world.device), self.train_loader.reader.bytes_read
        self.step.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.begin()
        figures, tokens = [], []
        for number in range(1, self.options.grad_acc + 1):
            self.batch = waits.taken(lambda: self._next(train, step - 1, stood))
            if number == 1 and self.options.grad_acc > 1:
                stood["model_state_dict"] = _beside_parameters(self.network)
            # Gradients are summed over the batches first, and over the ranks once.
            values, self.outputs = self.averaged(self.batch, last=number == self.options.grad_acc)
            figures.append(values)
            tokens.append([token for window in self.batch.tokens for token in window])
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.grad_clip or math.inf)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.network, step)
        own = torch.stack(figures)
        own = torch.cat([own, norm.double().expand(len(own), 1)], 1)
        shown = {
            "lr": self.optimizer.param_groups[0]["lr"],
            "read_mb": (self.train_loader.reader.bytes_read - read_before) / 1e6,
        }
        return Update(step, own, *_on_its_way(self.world.sum(own)), tokens, shown, waits)

    def _next(self, batches, step, state):
        """The next batch. Raises _NoBatch, on all ranks, where a rank's loader fails; step, state: what is then saved."""
        try:
            return self.world.together(lambda: next(batches))
        except Exception as error:
            raise _NoBatch(step, state) from error

    def _count(self, update):
        """Wait for the update's figures. Raises NotFinite, on all ranks, before anything is saved."""
        if update.is_finite():
            return
        own = update.own.cpu().isfinite().all(1).tolist()
        bad = [token for ours, fine in zip(update.samples, own, strict=True) if not fine for token in ours]
        bad = [token for ours in self.world.gather(bad) for token in ours]
        what = "loss" if not update.sums[:, :-1].isfinite().all() else "gradient"
        raise NotFinite(
            f"the {what} is not finite at step {update.step}; samples {', '.join(bad)}; lower --lr, or look at them"
        )

    def _finish(self, ended=False):
        """Pool and show the figures of the update that is pending. ended: something else has ended the run."""
        update, self._pending = self._pending, None
        if update is None or (ended and not update.is_finite()):
            return
        self._count(update)
        means, _ = self.step.split(update.sums[:, :-1].mean(0) / self.world.size, training=True)
        counts = update.sums[:, len(means) : -1].sum(0)
        seconds, samples = update.shown["itime"], self.options.batch_size * self.options.grad_acc
        self.pools["t"].add({**means, "time_per_batch": seconds, "time_per_el": seconds / samples}, counts)
        grad_norm = update.sums[0, -1].item() / self.world.size
        waited = update.waits.seconds()
        shown = update.shown | {"rtime": waited, "data_wait_percent": 100 * waited / seconds}
        shown |= {"grad_norm": grad_norm, "memory_gb": peak_memory_gb(self.world.device)}
        self.curves.show(update.step, shown, update.validated)
        self.console.show(update.step, shown, self.curves.pools)

    def _draws(self, step):
        return step % self.options.log_freq == 0 or step in (1, self.options.max_iters)

    def _validates(self, step):
        return step % self.options.val_freq == 0 or step == 1

    def _saves(self, step):
        return step % self.options.save_freq == 0 or step == self.options.max_iters

    def _validate(self, step, val):
        """val_batches batches, going round the val set; a rank without a share of one only adds its zeros.

        Returns the last batch and its outputs, None where this rank had none.
        """
        whole = self.options.val_batches == "all"
        wanted = self.val_loader.num_global_batches if whole else int(self.options.val_batches)
        self.world.follow_leader(self.network.buffers())  # batch-norm statistics: what a checkpoint of now would hold
        stood = {"val_loader": self.val_loader.state_dict(), "val_stream_state": dict(self.val_loader.memory)}
        stood["validation_due"] = True
        taken = (self._next(val, step, stood) for _ in range(wanted))
        bar = Progress(wanted, "batches", "validation", leave=False, shown=self.world.leads)
        with bar, apart(self.network, self.val_loader.memory, self.world.device):
            means, counts, seen = validate(self.step, bar.over(taken), self.world)
        self.pools["v"].add(means, counts)
        return seen

    def save(self, step, saver, name=None, state=()):
        """Hand the state after `step` to the background writer; the path it will have.

        name: of the file, not the step's. state: entries of a checkpoint that replace those of now, of weights by name.
        """
        self._saved(saver)
        if name is None:
            self._saved_step = step
        then = dict(state)
        memories = self._memories(then)
        if not self.world.leads:
            return None
        state = {
            "name": self.name,
            "options": as_dict(self.options),
            "pools": {w: list(pool.entries) for w, pool in self.pools.items()},
        }
        if self.best is not None:
            by = dict(self.best)
            state |= {"best": by.pop("value"), "best_by": by}
        if self.ema is not None:
            state["ema_state_dict"] = self.ema.state_dict()
        for prefix, loader in (("", self.train_loader), ("val_", self.val_loader)):
            if loader is not None:
                state |= {f"{prefix}loader": loader.state_dict(), f"{prefix}samples": len(loader.windows)}
                if digest := getattr(loader.reader, "samples_sha256", None):
                    state[f"{prefix}samples_sha256"] = digest
        state["is_stream"] = getattr(self.train_loader.reader, "is_stream", False)
        content = checkpoint.snapshot(step, self.network, self.optimizer, self.scheduler, **state)
        content["model_state_dict"].update(then.pop("model_state_dict", {}))
        content |= then | memories
        return saver.submit(step, content, name)

    def _memories(self, then):
        """What the network remembers of all ranks' slots, in training and in validation: now, or, taken from it, `then`."""
        now = {"stream_state": memory_of(self.network)}
        if self.val_loader is not None:
            now["val_stream_state"] = self.val_loader.memory
        own = {name: then.pop(name, memory) for name, memory in now.items()}
        if not has_memory(self.network):
            return {}
        ranks = self.world.gather({name: joined([memory]) for name, memory in own.items()})
        return {name: joined([rank[name] for rank in ranks]) for name in own}

    def _is_best(self):
        """Whether, on the leading rank, this validation is better than all before by --keep_best, whose metric says what is."""
        if not self.world.leads:
            return False
        name, figures = self.options.keep_best, self.pools["v"].last()
        if name not in figures:
            raise InputError(f"--keep_best {name}: validation gives {', '.join(figures)}")
        higher = self.step.higher_is_better(name)
        best = self.best["value"] if self.best and self.best["figure"] == name else None
        better = is_better(figures[name], best, higher)
        if better:
            self.best = {"figure": name, "higher_is_better": higher, "value": figures[name]}
        return better


def is_better(value, best, higher_is_better):
    """Whether a figure of validation beats the best one so far, None for none; NaN beats nothing."""
    if math.isnan(value) or best is None or math.isnan(best):
        return not math.isnan(value)
    return value > best if higher_is_better else value < best


def _beside_parameters(network):
    """What a checkpoint holds of a network besides its parameters, copied: what forward passes may change."""
    trained = {name for name, _ in network.named_parameters()}
    state = {name: value for name, value in network.state_dict().items() if name not in trained}
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


def _last_written(saver):
    """Wait until the last write has ended; say so where it failed."""
    if saver and (lost := saver.finish()):
        say(f"error: {lost}")


@contextmanager
def _at_the_end(*actions):
    """Do all of these after the block, whatever the others do; of several errors the first is raised."""
    first = None
    try:
        yield
    except BaseException as error:
        first = error
    for action in actions:
        try:
            action()
        except Exception as error:
            first = first or error
    if first is not None:
        raise first


def _on_its_way(sums):
    """(the tensor on the CPU, an event that passes once it is there or None)."""
    if sums.device.type != "cuda":
        return sums.cpu(), None
    host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    host.copy_(sums, non_blocking=True)
    return host, passed(sums.device)


def _check_arguments(options, network, loaders):
    if not isinstance(options, Options):
        raise InputError(f"Trainer(options, network, loaders): options is a {type(options).__name__}, not Options")
    options.validate()  # of which some may have been changed since they were built
    check_network(network)
    if not (isinstance(loaders, tuple) and len(loaders) == 3):
        raise InputError(
            "Trainer(options, network, loaders): loaders is (train, val or None, grid), as make_loaders gives"
        )
    if options.keep_best and loaders[1] is None:
        raise InputError(f"--keep_best {options.keep_best} needs a validation; give --do_val True and val shards")
