"""The training loop: updates of accumulated batches, one validation batch now and then, logs and checkpoints."""

import sys
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train import checkpoint, signals
from train.distributed import saving, say
from train.errors import NotFinite, Stopped
from train.metrics import iou
from train.options import as_dict
from train.step import FIGURES, LossStep, over_processes

POOL = 10  # updates that the pooled figures average over
LOST = 255  # no signal's number: rank 0's last write failed
LOGGED = ("grad_norm", "data_wait_percent", "samples_per_s", "read_mb_per_s")
SHOWN = "data wait {data_wait_percent:.0f} %, {samples_per_s:.1f} samples/s, {read_mb_per_s:.0f} MB/s"
# A log gets the lines alone.
_BAR = {"dynamic_ncols": True, "disable": not sys.stderr.isatty()}


def batches(loader):
    """Batches without end, epoch after epoch; None where this rank has no share of an epoch's last batch."""
    while True:
        yield from loader
        if len(loader) < loader.num_global_batches:
            yield None


class Pool:
    """Figures of the last POOL entries; `entries` of another pool continue it."""

    def __init__(self, entries=()):
        self.entries = deque(entries, maxlen=POOL)

    def add(self, figures, counts):
        self.entries.append((figures, counts))

    def means(self):
        """Mean of each figure, and IoU of the summed counts."""
        out = {k: sum(f[k] for f, _ in self.entries) / len(self.entries) for k in self.entries[0][0]}
        return out | {"iou": iou(sum(c for _, c in self.entries))}


class Trainer:
    """One run: what it needs, and its update step.

    Args:
        options: Options. name: of the run. model: Segnet on its device. world: distributed.World.
        loaders: (train, val or None, VoxUtil), as make_loaders gives them.
        pools: entries of the pools t and v, as `save` kept them.
    """

    def __init__(self, options, name, model, optimizer, scheduler, loaders, world, pools):
        self.options, self.name, self.model, self.world = options, name, model, world
        self.optimizer, self.scheduler = optimizer, scheduler
        self.train_loader, self.val_loader, vox_util = loaders
        self.folder = Path(options.ckpt_dir) / name
        self.pools = {w: Pool(pools.get(w, ())) for w in "tv"}
        if options.compile:
            model.compile()
        autocast = options.autocast_on(world.device)
        self.step = LossStep(model, vox_util, autocast, world, options.seed).to(world.device)
        self.parallel = over_processes(self.step)

    def run(self, first_step=0):
        """Train to max_iters; returns the last checkpoint's path. Raises Stopped after a signal."""
        leads = self.world.leads
        writers = {}
        if leads:
            where = f"{self.options.log_dir}/{self.name}"
            names = "tv" if self.val_loader is not None else "t"
            writers = {w: SummaryWriter(f"{where}/{w}", purge_step=first_step + 1) for w in names}
        train = batches(self.train_loader)
        val = batches(self.val_loader) if self.val_loader is not None else None
        path, saver = None, checkpoint.Writer(self.folder, self.options.keep_latest, saving) if leads else None
        bar = {**_BAR, "disable": _BAR["disable"] or not leads}
        stop = 0
        with signals.collected() as caught:  # until the last write is on the disk
            try:
                steps = range(first_step + 1, self.options.max_iters + 1)
                with tqdm(steps, desc="train", unit="update", **bar) as steps:
                    for step in steps:
                        figures = self.update(step, train)
                        if self._validates(step):
                            self._validate(val)
                        if leads:
                            self._log(writers, step, figures, steps)
                        stop = self.world.any(caught[0] if caught else LOST if saver and saver.failed() else 0)
                        if step % self.options.save_freq == 0 or step == self.options.max_iters or stop:
                            path = self.save(step, saver)
                        if stop:
                            break
                        if step == first_step + 1:
                            self.world.first_step_done()
                self._saved(saver)
                if stop:
                    raise Stopped(128 + stop)
            finally:
                if saver and (lost := saver.finish()):
                    say(f"error: {lost}")
                train.close()
                if val:
                    val.close()
                for writer in writers.values():
                    writer.close()
        return path

    def _saved(self, saver):
        """Wait on all ranks until rank 0's last write has ended: one that went away might take rank 0 with it.

        Raises what the write raised on rank 0, PeerFailed on the others.
        """
        self.world.wait(lambda: saver is not None and saver.idle())
        self.world.together(lambda: saver and saver.check())

    def save(self, step, saver):
        """Hand the state after `step` to the background writer; the path it will have."""
        self._saved(saver)
        if not self.world.leads:
            return None
        state = {"options": as_dict(self.options), "pools": {w: list(pool.entries) for w, pool in self.pools.items()}}
        for prefix, loader in (("", self.train_loader), ("val_", self.val_loader)):
            if loader is not None:
                state |= {f"{prefix}loader": loader.state_dict(), f"{prefix}samples": len(loader.windows)}
        return saver.submit(step, checkpoint.snapshot(step, self.model, self.optimizer, self.scheduler, **state))

    def update(self, step, train):
        """One optimizer update of grad_acc batches; figures of its speed and loss.

        Random numbers of the network (dropped paths) are a function of seed, step and rank: nothing to save.
        """
        torch.manual_seed((self.options.seed * 1_000_003 + step) * 4099 + self.world.rank)
        started, waited, read_before = time.monotonic(), 0.0, self.train_loader.reader.bytes_read
        self.parallel.train()
        self.optimizer.zero_grad(set_to_none=True)
        figures, tokens = [], []
        for number in range(1, self.options.grad_acc + 1):
            before = time.monotonic()
            self.batch = self.world.together(lambda: next(train))
            waited += time.monotonic() - before
            # Gradients are summed over the batches first, and over the ranks once.
            last = number == self.options.grad_acc
            with nullcontext() if last or self.parallel is self.step else self.parallel.no_sync():
                loss, values, self.logits = self.parallel(self.batch)
                loss.backward()
            figures.append(values)
            tokens.append([token for window in self.batch.tokens for token in window])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        means, counts = self._reduced(step, torch.stack(figures), norm, tokens)
        seconds, samples = time.monotonic() - started, self.options.batch_size * self.options.grad_acc
        self.pools["t"].add({**means, "time_per_batch": seconds, "time_per_el": seconds / samples}, counts)
        return {
            "rtime": waited,
            "itime": seconds,
            "loss": means["total_loss"],
            "grad_norm": norm.item(),
            "data_wait_percent": 100 * waited / seconds,
            "samples_per_s": samples / seconds,
            "read_mb_per_s": (self.train_loader.reader.bytes_read - read_before) / seconds / 1e6,
        }

    def _reduced(self, step, figures, norm, tokens):
        """Means of FIGURES over an update's batches and ranks, and its counts. The update waits for the device here, once.

        Raises NotFinite, on all ranks, before anything is saved.
        """
        figures = torch.cat([figures, norm.double().expand(len(figures), 1)], 1)
        sums = self.world.sum(figures).cpu()
        if not sums.isfinite().all():
            own = figures.cpu().isfinite().all(1).tolist()
            bad = [token for ours, fine in zip(tokens, own, strict=True) if not fine for token in ours]
            bad = [token for ours in self.world.gather(bad) for token in ours]
            what = "loss" if not sums[:, :-1].isfinite().all() else "gradient"
            raise NotFinite(
                f"the {what} is not finite at step {step}; samples {', '.join(bad)}; lower --lr, or look at them"
            )
        means = sums[:, : len(FIGURES)].mean(0) / self.world.size
        return dict(zip(FIGURES, means.tolist(), strict=True)), sums[:, len(FIGURES) : -1].sum(0)

    def _validates(self, step):
        return self.val_loader is not None and (step % self.options.val_freq == 0 or step == 1)

    def _validate(self, val):
        """val_batches batches, going round the val set; a rank without a share of one only adds its zeros."""
        whole = self.options.val_batches == "all"
        wanted = self.val_loader.num_global_batches if whole else int(self.options.val_batches)
        self.parallel.eval()
        self.world.follow_leader(self.model.buffers())  # batch-norm statistics: what a checkpoint of now would hold
        sums = torch.zeros(len(FIGURES) + 3, dtype=torch.float64, device=self.world.device)
        with torch.no_grad():
            for _ in range(wanted):
                batch = self.world.together(lambda: next(val))
                if batch is not None:
                    figures = self.step(batch)[1]
                    sums += torch.cat([figures, figures.new_ones(1)])
        sums = self.world.sum(sums).cpu()
        means = sums[: len(FIGURES)] / sums[-1].clamp(min=1)
        self.pools["v"].add(dict(zip(FIGURES, means.tolist(), strict=True)), sums[len(FIGURES) : -1])

    def _log(self, writers, step, figures, bar):
        self._write(writers["t"], step, self.pools["t"])
        for name in LOGGED:
            writers["t"].add_scalar(f"_/{name}", figures[name], step)
        writers["t"].add_scalar("_/current_lr", self.optimizer.param_groups[0]["lr"], step)
        if self._validates(step):
            self._write(writers["v"], step, self.pools["v"])
        if step % self.options.log_freq == 0 or step == 1:
            self._pictures(writers["t"], step)
        bar.set_postfix_str(SHOWN.format(**figures), refresh=False)
        bar.write(self._line(step, figures))

    @staticmethod
    def _write(writer, step, pool):
        for name, value in pool.means().items():
            writer.add_scalar(f"pooled/{name}", value, step)
        figures, counts = pool.entries[-1]
        for name, value in {**figures, "iou": iou(counts)}.items():
            writer.add_scalar(f"stats/{name}", value, step)

    def _pictures(self, writer, step):
        """The first sample of the last batch: its cameras, the truth, what counts, and the prediction."""
        batch = self.batch
        writer.add_images("inputs/cameras", batch.imgs[0, 0], step)
        writer.add_image("outputs/seg_bev_g", batch.seg_bev[0, 0], step)
        writer.add_image("outputs/valid_bev_g", batch.valid_bev[0, 0], step)
        writer.add_image("outputs/seg_bev_e", self.logits[0].float().sigmoid(), step)

    def _line(self, step, figures):
        text = (
            f"{self.name}; step {step:06d}/{self.options.max_iters:d}; rtime {figures['rtime']:.2f}; "
            f"itime {figures['itime']:.2f}; loss {figures['loss']:.5f}; iou_t {self.pools['t'].means()['iou']:.3f}"
        )
        return text + (f"; iou_v {self.pools['v'].means()['iou']:.3f}" if self.pools["v"].entries else "")
