"""The training loop: updates of accumulated batches, one validation batch now and then, logs and checkpoints."""

import signal
import sys
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train import checkpoint
from train.metrics import iou
from train.options import as_dict
from train.step import LOG_VARIANCES, LossStep

POOL = 10  # updates that the pooled figures average over
SPEED = ("data_wait_percent", "samples_per_s", "read_mb_per_s")
SHOWN = "data wait {data_wait_percent:.0f} %, {samples_per_s:.1f} samples/s, {read_mb_per_s:.0f} MB/s"
# A log gets the lines alone.
_BAR = {"dynamic_ncols": True, "disable": not sys.stderr.isatty()}


class Stopped(RuntimeError):
    """SIGTERM or SIGINT arrived and a checkpoint was saved; `code` is the exit code."""

    def __init__(self, code):
        super().__init__("stopped by a signal; a checkpoint was saved")
        self.code = code


class NotFinite(RuntimeError):
    """The loss became NaN or infinite; the message names step and samples."""


def batches(loader):
    """Batches without end, epoch after epoch."""
    while True:
        yield from loader


class Pool:
    """Figures of the last POOL entries."""

    def __init__(self):
        self.entries = deque(maxlen=POOL)

    def add(self, figures, counts):
        self.entries.append((figures, counts))

    def means(self):
        """Mean of each figure, and IoU of the summed counts."""
        out = {k: sum(f[k] for f, _ in self.entries) / len(self.entries) for k in self.entries[0][0]}
        return out | {"iou": iou(sum(c for _, c in self.entries))}


class Trainer:
    """One run: what it needs, and its update step.

    Args:
        options: Options. name: of the run. model: Segnet on its device. loaders: (train, val or None).
        world: distributed.World.
    """

    def __init__(self, options, name, model, optimizer, scheduler, loaders, vox_util, world):
        self.options, self.name, self.model, self.world = options, name, model, world
        self.optimizer, self.scheduler = optimizer, scheduler
        self.train_loader, self.val_loader = loaders
        self.folder = Path(options.ckpt_dir) / name
        network = torch.compile(model) if options.compile else model
        autocast = torch.bfloat16 if options.precision_on(world.device) == "bf16" else None
        self.step = LossStep(network, vox_util, autocast, world).to(world.device)
        self.parallel = self.step
        if world.size > 1:
            # feat_head has no loss, as in the lineage: its parameters never get a gradient.
            self.parallel = DistributedDataParallel(self.step, find_unused_parameters=True)

    def run(self, first_step=0):
        """Train to max_iters; returns the last checkpoint's path. Raises Stopped after a signal."""
        leads = self.world.leads
        writers = {}
        if leads:
            where = f"{self.options.log_dir}/{self.name}"
            writers = {w: SummaryWriter(f"{where}/{w}", purge_step=first_step + 1) for w in "tv"}
        pools = {"t": Pool(), "v": Pool()}
        train, val = batches(self.train_loader), None
        if self.val_loader is not None and len(self.val_loader):
            val = batches(self.val_loader)
        path, saver = None, checkpoint.Writer(self.folder, self.options.keep_latest)
        bar = {**_BAR, "disable": _BAR["disable"] or not leads}
        try:
            steps = range(first_step + 1, self.options.max_iters + 1)
            with _signals() as caught, tqdm(steps, desc="train", unit="update", **bar) as steps:
                for step in steps:
                    figures = self.update(step, pools["t"], train)
                    if self._validates(step):
                        self._validate(pools["v"], val)
                    if leads:
                        self._log(writers, step, pools, figures, steps)
                    stop = self.world.any(caught[0] if caught else 0)
                    if step % self.options.save_freq == 0 or step == self.options.max_iters or stop:
                        path = self.save(step, saver)
                    if stop:
                        raise Stopped(128 + stop)
        finally:
            saver.close()
            train.close()
            if val:
                val.close()
            for writer in writers.values():
                writer.close()
        return path

    def save(self, step, saver):
        """Hand the state after `step` to the background writer; the path it will have."""
        if not self.world.leads:
            return None
        state = {"options": as_dict(self.options), "loader": self.train_loader.state_dict()}
        if self.val_loader is not None:
            state["val_loader"] = self.val_loader.state_dict()
        return saver.submit(step, checkpoint.snapshot(step, self.model, self.optimizer, self.scheduler, **state))

    def update(self, step, pool, train):
        """One optimizer update of grad_acc batches; figures of its speed and loss.

        Random numbers of the network (flips, dropped paths) are a function of seed, step and rank: nothing to save.
        """
        torch.manual_seed((self.options.seed * 1_000_003 + step) * 4099 + self.world.rank)
        started, waited, read_before = time.monotonic(), 0.0, self.train_loader.reader.bytes_read
        self.step.train()
        self.parallel.train()
        self.optimizer.zero_grad(set_to_none=True)
        for number in range(1, self.options.grad_acc + 1):
            before = time.monotonic()
            batch = next(train)
            waited += time.monotonic() - before
            # Gradients are summed over the batches first, and over the ranks once.
            last = number == self.options.grad_acc
            with nullcontext() if last or self.parallel is self.step else self.parallel.no_sync():
                loss, terms, counts, self.logits = self.parallel(batch)
                finite = torch.isfinite(loss)
                if self.world.any(int(not finite)):
                    raise NotFinite(f"the loss is not finite at step {step}; samples {batch.tokens}")
                loss.backward()
            total = self.world.mean(loss.detach()).item()
            pool.add({"total_loss": total, **self._means(terms)}, self.world.sum(counts).cpu())
        self.batch = batch
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        seconds = time.monotonic() - started
        return {
            "rtime": waited,
            "itime": seconds,
            "loss": total,
            "data_wait_percent": 100 * waited / seconds,
            "samples_per_s": self.options.batch_size * self.options.grad_acc / seconds,
            "read_mb_per_s": (self.train_loader.reader.bytes_read - read_before) / seconds / 1e6,
        }

    def _means(self, terms):
        return {name: self.world.mean(value).item() for name, value in terms.items()}

    def _validates(self, step):
        return self.val_loader is not None and (step % self.options.val_freq == 0 or step == 1)

    def _validate(self, pool, val):
        """val_batches batches, going round the val set; a rank whose share is empty only adds its zeros."""
        whole = self.options.val_batches == "all"
        wanted = len(self.val_loader) if whole else int(self.options.val_batches) * (val is not None)
        self.step.eval()
        names = ("total_loss", *("ce_loss", "center_loss", "offset_loss"), *LOG_VARIANCES)
        sums = torch.zeros(len(names) + 1, dtype=torch.float64)
        counts = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for _ in range(wanted):
                loss, terms, both, _ = self.step(next(val))
                values = {"total_loss": loss, **terms}
                sums += torch.tensor([*(values[n].item() for n in names), 1.0], dtype=torch.float64)
                counts += both.cpu()
        device = self.world.device
        sums, counts = self.world.sum(sums.to(device)).cpu(), self.world.sum(counts.to(device)).cpu()
        pool.add(dict(zip(names, (sums[:-1] / sums[-1].clamp(min=1)).tolist(), strict=True)), counts)

    def _log(self, writers, step, pools, figures, bar):
        self._write(writers["t"], step, pools["t"])
        for name in SPEED:
            writers["t"].add_scalar(f"_/{name}", figures[name], step)
        writers["t"].add_scalar("_/current_lr", self.optimizer.param_groups[0]["lr"], step)
        writers["t"].add_scalar("pooled/time_per_batch", figures["itime"], step)
        per_element = figures["itime"] / (self.options.batch_size * self.options.grad_acc)
        writers["t"].add_scalar("pooled/time_per_el", per_element, step)
        if self._validates(step):
            self._write(writers["v"], step, pools["v"])
        if step % self.options.log_freq == 0 or step == 1:
            self._pictures(writers["t"], step)
        bar.set_postfix_str(SHOWN.format(**figures), refresh=False)
        bar.write(self._line(step, figures, pools))

    @staticmethod
    def _write(writer, step, pool):
        for name, value in pool.means().items():
            writer.add_scalar(f"pooled/{name}", value, step)
        for name, value in pool.entries[-1][0].items():
            writer.add_scalar(f"stats/{name}", value, step)

    def _pictures(self, writer, step):
        """The first sample of the last batch: its cameras, the truth, what counts, and the prediction."""
        batch = self.batch
        writer.add_images("inputs/cameras", batch.imgs[0, 0], step)
        writer.add_image("outputs/seg_bev_g", batch.seg_bev[0, 0], step)
        writer.add_image("outputs/valid_bev_g", batch.valid_bev[0, 0], step)
        writer.add_image("outputs/seg_bev_e", self.logits[0].float().sigmoid(), step)

    def _line(self, step, figures, pools):
        text = (
            f"{self.name}; step {step:06d}/{self.options.max_iters:d}; rtime {figures['rtime']:.2f}; "
            f"itime {figures['itime']:.2f}; loss {figures['loss']:.5f}; iou_t {pools['t'].means()['iou']:.3f}"
        )
        return text + (f"; iou_v {pools['v'].means()['iou']:.3f}" if pools["v"].entries else "")


@contextmanager
def _signals():
    """A list that SIGTERM and SIGINT are put into; handlers are put back afterwards."""
    caught = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    old = [signal.signal(n, lambda number, _frame: caught.append(number)) for n in numbers]
    try:
        yield caught
    finally:
        for number, handler in zip(numbers, old, strict=True):
            signal.signal(number, handler)
