"""What a run says: what it will do, how far it is, and where everything lies once it has ended."""

import os
import shlex
import textwrap
import time

import torch

from common.addresses import is_pipe, recordable
from common.progress import Left, Pace, Progress, clock, counted, say
from common.spelling import spelled
from train import checkpoint
from train.options import Options
from train.step import TOTAL

WIDTH = 79  # columns of a line, but for paths and commands, which stay whole
FIRST_UPDATES = 10  # of which each has a line
PAUSE_S, LONGEST_PAUSE_S = 10.0, 60.0  # between later lines
_INDENT = 12


class Console:
    """One line per update on stdout, at first of each and later now and then; on a terminal also a bar.

    Args:
        steps: range of the updates to come. samples: of an update. leads: whether this process shows anything.
    """

    def __init__(self, steps, samples, leads):
        self.first, self.last, self.samples, self.leads = steps.start, steps.stop - 1, samples, leads
        self.started, self.updates, self.waited_s = time.monotonic(), 0, 0.0
        self.pace, self.left = Pace(PAUSE_S, LONGEST_PAUSE_S), Left(self.last, self.first)
        self.bar = Progress(self.last, "updates", "", done=self.first - 1, lines=False, shown=leads)

    def show(self, step, figures, pools):
        """figures: of an update's speed. pools: dict from t and, with validation, v to the Pool of each."""
        self.updates += 1
        self.waited_s += figures["rtime"]
        if not self.leads:
            return
        speed = "{samples_per_s:.1f} samples/s, {read_mb_per_s:.0f} MB/s, wait {data_wait_percent:.0f} %"
        if step == self.first:  # it also paid for what begins once
            self.left = Left(self.last, step)
            self.bar.begin_clock(step)
        self.bar.update(step, speed.format(**figures))
        due = self.pace.due()
        if due or self.updates <= FIRST_UPDATES or step == self.last:
            say(line(step, self.last, figures, pools, self.left.after(step)), to_stdout=True)

    def close(self):
        """End the bar, where it is."""
        self.bar.close()

    def speed(self):
        """The run so far in words."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate, waited = self.updates * self.samples / seconds, 100 * self.waited_s / seconds
        made = counted(self.updates, "update")
        return f"{made} in {clock(seconds)}, {rate:.1f} samples/s, {waited:.0f} % of it waiting for data"


def line(step, last, figures, pools, left):
    """An update in at most WIDTH columns, as `opening` explains it: loss, IoU, IoU of validation, seconds, time left.

    What would not fit any more is left out, the last first.
    """
    parts = {name: pool.last() for name, pool in pools.items() if pool.entries}
    words = [f"loss {_short(parts['t'][TOTAL])}"]
    ious = [f"{of}{parts[name]['iou']:.3f}" for name, of in (("t", ""), ("v", "val ")) if "iou" in parts.get(name, {})]
    words += [f"IoU {', '.join(ious)}"] if ious else []
    words += [f"{_short(figures['itime'])} s each", left]
    text = f"step {step:06d}/{last:d}"
    for word in filter(None, words):
        if len(text) + 2 + len(word) > WIDTH:
            break
        text += f"; {word}"
    return text


def _short(value):
    """A figure in about five characters: 0.512, 12.95, 123.4, 12345."""
    size = abs(value)
    if size >= 99999.5:
        return f"{value:.1e}"
    return f"{value:.{3 if size < 9.9995 else 2 if size < 99.995 else 1 if size < 999.95 else 0}f}"


def row(name, text):
    """Name and text in lines of at most WIDTH columns."""
    wrapped = textwrap.wrap(text, WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * _INDENT}".join([f"{name:<{_INDENT}}{wrapped[0]}", *wrapped[1:]])


def _whole(name, text):
    """The same in one line, for what is pasted elsewhere."""
    return f"{name:<{_INDENT}}{text}"


def opening(options, world, network, loaders, folder, step):
    """Rows that say what a run will do after `step`. folder: of its checkpoints."""
    each, later = f"{options.batch_size} x {options.grad_acc} samples each", ""
    if step:
        later = f", after {step} that are done"
    return [
        _whole("run", folder),
        _whole("curves", _curves(options, folder)),
        row("device", _device(options, world)),
        row("train", _samples(loaders[0])),
        row("val", _validation(loaders[1], options)),
        row("labels", _labels(options)),
        row("network", _network(network, options)),
        row("sensors", _sensors(network.needs, options)),
        row("updates", f"{options.max_iters - step}{later}; {each}; a checkpoint every {options.save_freq}"),
        row("lines", "loss and IoU of each update, IoU of the latest validation, seconds per update, time left"),
    ]


def _curves(options, folder):
    return os.path.join(options.log_dir, folder.name)


def _device(options, world):
    name = "cpu"
    if world.device.type == "cuda":
        name = f"cuda ({torch.cuda.get_device_name(world.device)})"
    precision = options.precision or ("fp32" if options.autocast_on(world.device) is None else "bf16")
    return f"{name}, {counted(world.size, 'process', 'processes')}, {precision}"


def _samples(loader):
    shards = counted(len(loader.reader.indexes), "shard")
    return f"{counted(len(loader.windows), 'sample')} in {shards} of {loader.reader.facts['version']}"


def _validation(loader, options):
    if loader is None:
        return "none"
    many = "all of them" if options.val_batches == "all" else counted(int(options.val_batches), "batch", "batches")
    text = f"{_samples(loader)}; {many} every {options.val_freq} updates"
    return text + ", so its IoU jumps; --val_batches all sees all" * (options.val_batches == "1")


def _labels(options):
    at_least = f" {options.min_visibility}" if options.protocol == "min_visibility" else ""
    names = [spec.name for spec in options.classes] or options.target_categories
    return f"{', '.join(names)}; protocol {options.protocol}{at_least}"


def _network(network, options):
    encoder = f" {options.encoder_type}" if options.model == Options().model else ""
    return f"{options.model}{encoder}, {sum(p.numel() for p in network.parameters()):,} parameters"


def _sensors(needs, options):
    height, width = options.data_aug_conf()["final_dim"]
    count = f"{options.ncams} cameras" if options.ncams else "all cameras"
    names = [f"{count} of {height} x {width}"] * needs.cameras
    names += ["lidar"] * bool(needs.lidar)
    names += ["metaradar" if needs.radar == "metaradar" else "radar"] * bool(needs.radar)
    return ", ".join(names) or "none"


def ending(options, folder, *, done):
    """Rows that say where a run's files lie and how it goes on. done: it made all its updates."""
    where = shlex.quote(str(folder))
    try:
        rows = [_whole("checkpoint", checkpoint.find(folder))]
        again = f"--resume {where}" + " --max_iters N" * done
    except checkpoint.CheckpointError:
        rows = [_whole("checkpoint", f"none yet in {folder}")]
        again = f"--config {where}/config.yaml"
    rows.append(_whole("curves", f"tensorboard --logdir {shlex.quote(_curves(options, folder))}"))
    if done:
        rows.append(_whole("evaluate", f"{spelled('train.evaluate')} {where}{_unrecorded(options, False)}"))
    train = "torchrun … -m train.run" if "TORCHELASTIC_RUN_ID" in os.environ else spelled("train.run")
    return [*rows, _whole("go on", f"{train} {again}{_unrecorded(options, True)}")]


def _unrecorded(options, trains):
    """Options that a checkpoint does not hold, or that it may not give by itself, as a reminder to give them again."""
    given = {"shards": options.shards, "val_shards": options.val_shards, "data_dir": (options.data_dir,)}
    lost = [
        name
        for name, words in given.items()
        if any(is_pipe(word.strip()) or recordable(word) != word for word in words)
    ]
    if lost and not trains:
        lost = ["val_shards"]
    return "".join(f" --{name} …" for name in [*lost, *["store_options"] * bool(options.store_options)])
