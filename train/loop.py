"""The training loop: updates of accumulated batches, one validation batch now and then, logs and checkpoints."""

import signal
import sys
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train import checkpoint
from train.forward import run_model
from train.loss import SimpleLoss, total_loss
from train.metrics import intersection_union, iou
from train.options import as_dict

POOL = 10  # updates that the pooled figures average over
POS_WEIGHT = 2.13
SPEED = ("data_wait_percent", "samples_per_s", "read_mb_per_s")
SHOWN = "data wait {data_wait_percent:.0f} %, {samples_per_s:.1f} samples/s, {read_mb_per_s:.0f} MB/s"
# A log gets the lines alone.
_BAR = {"dynamic_ncols": True, "disable": not sys.stderr.isatty()}


class Stopped(RuntimeError):
    """SIGTERM or SIGINT arrived and a checkpoint was saved; `code` is the exit code."""

    def __init__(self, code):
        super().__init__("stopped by a signal; a checkpoint was saved")
        self.code = code


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
    """One run: what it needs, and its update step."""

    def __init__(self, options, name, model, optimizer, scheduler, train_loader, val_loader, vox_util, device):
        self.options, self.name, self.model, self.device = options, name, model, device
        self.optimizer, self.scheduler, self.vox_util = optimizer, scheduler, vox_util
        self.train_loader, self.val_loader = train_loader, val_loader
        self.seg_loss = SimpleLoss(POS_WEIGHT).to(device)
        self.folder = Path(options.ckpt_dir) / name

    def run(self, first_step=0):
        """Train to max_iters; returns the last checkpoint's path. Raises Stopped after a signal."""
        writers = {w: SummaryWriter(f"{self.options.log_dir}/{self.name}/{w}") for w in "tv"}
        pools = {"t": Pool(), "v": Pool()}
        train = batches(self.train_loader)
        val = batches(self.val_loader) if self.val_loader is not None else None
        path = None
        try:
            steps = range(first_step + 1, self.options.max_iters + 1)
            with _signals() as caught, tqdm(steps, desc="train", unit="update", **_BAR) as bar:
                for step in bar:
                    figures = self._timed(step, pools["t"], train)
                    self._write(writers["t"], step, pools["t"], figures)
                    if val and (step % self.options.val_freq == 0 or step == first_step + 1):
                        self._validate(pools["v"], next(val))
                        self._write(writers["v"], step, pools["v"], {})
                    bar.set_postfix_str(SHOWN.format(**figures), refresh=False)
                    bar.write(self._line(step, figures, pools))
                    last = step == self.options.max_iters
                    if step % self.options.save_freq == 0 or last or caught:
                        path = self.save(step)
                    if caught:
                        raise Stopped(128 + caught[0])
        finally:
            train.close()
            if val:
                val.close()
            for writer in writers.values():
                writer.close()
        return path

    def save(self, step):
        return checkpoint.save(
            self.folder,
            step,
            self.model,
            self.optimizer,
            self.scheduler,
            keep_latest=self.options.keep_latest,
            options=as_dict(self.options),
            loader=self.train_loader.state_dict(),
        )

    def _timed(self, step, pool, train):
        started, waited, read_before = time.monotonic(), 0.0, self.train_loader.reader.bytes_read
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(self.options.grad_acc):
            before = time.monotonic()
            batch = next(train)
            waited += time.monotonic() - before
            loss, terms, counts = self._losses(batch)
            if not torch.isfinite(loss):
                raise RuntimeError(f"the loss is not finite at step {step}; samples {batch.tokens}")
            loss.backward()
            pool.add({"total_loss": loss.item(), **{k: v.item() for k, v in terms.items()}}, counts)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        seconds = time.monotonic() - started
        return {
            "rtime": waited,
            "itime": seconds,
            "loss": loss.item(),
            "data_wait_percent": 100 * waited / seconds,
            "samples_per_s": self.options.batch_size * self.options.grad_acc / seconds,
            "read_mb_per_s": (self.train_loader.reader.bytes_read - read_before) / seconds / 1e6,
        }

    def _losses(self, batch):
        outputs = run_model(self.model, batch, self.vox_util)
        loss, terms = total_loss(self.model, outputs, batch, self.seg_loss)
        terms |= {n: getattr(self.model, n).detach() for n in ("ce_weight", "center_weight", "offset_weight")}
        return loss, terms, intersection_union(outputs[2], batch.seg_bev[:, 0], batch.valid_bev[:, 0])

    def _validate(self, pool, batch):
        self.model.eval()
        with torch.no_grad():
            loss, terms, counts = self._losses(batch)
        pool.add({"total_loss": loss.item(), **{k: v.item() for k, v in terms.items()}}, counts)

    def _write(self, writer, step, pool, figures):
        for name, value in pool.means().items():
            writer.add_scalar(f"pooled/{name}", value, step)
        for name, value in pool.entries[-1][0].items():
            writer.add_scalar(f"stats/{name}", value, step)
        if figures:
            writer.add_scalar("_/current_lr", self.optimizer.param_groups[0]["lr"], step)
            writer.add_scalar("pooled/time_per_batch", figures["itime"], step)
            per_element = figures["itime"] / (self.options.batch_size * self.options.grad_acc)
            writer.add_scalar("pooled/time_per_el", per_element, step)
            for name in SPEED:
                writer.add_scalar(f"_/{name}", figures[name], step)

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
