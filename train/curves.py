"""What a run shows of itself: figures pooled over updates, TensorBoard's curves and pictures, a line an update."""

import sys
from collections import deque

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train.metrics import iou
from train.pictures.tensorboard import pictures_of

POOL = 10  # updates that the pooled figures average over
LOGGED = ("grad_norm", "data_wait_percent", "samples_per_s", "read_mb_per_s")
SHOWN = "data wait {data_wait_percent:.0f} %, {samples_per_s:.1f} samples/s, {read_mb_per_s:.0f} MB/s"


class Pool:
    """Figures of the last POOL entries; `entries` of another pool continue it."""

    def __init__(self, entries=()):
        self.entries = deque(entries, maxlen=POOL)

    def add(self, figures, counts):
        self.entries.append((figures, counts))

    def last(self):
        """Figures of the last entry, and its IoU where the network gives a seg."""
        figures, counts = self.entries[-1]
        return figures | self._iou(counts)

    def means(self):
        """Mean of each figure, and IoU of the summed counts."""
        names = self.entries[-1][0]
        out = {k: sum(f[k] for f, _ in self.entries) / len(self.entries) for k in names}
        return out | self._iou(sum(c for _, c in self.entries))

    @staticmethod
    def _iou(counts):
        return {"iou": iou(counts)} if len(counts) else {}


class Curves:
    """TensorBoard's files of a run, and its lines. leads: whether this process writes them; the others write nothing.

    Args:
        folder: of the run's curves; t and v lie in it. pools: dict from t and v to Pool. parts: "t", or "tv" with validation.
    """

    def __init__(self, name, folder, pools, parts, steps, leads):
        self.name, self.pools, self.max_iters, self.leads = name, pools, steps.stop - 1, leads
        self.writers = {w: SummaryWriter(f"{folder}/{w}", purge_step=steps.start) for w in parts} if leads else {}
        # A log gets the lines alone.
        quiet = not leads or not sys.stderr.isatty()
        self.bar = tqdm(steps, desc="train", unit="update", dynamic_ncols=True, disable=quiet)

    def show(self, step, figures, validated):
        """Curves and line of an update; figures: of its speed, its rate, its gradient."""
        if not self.leads:
            return
        self._write("t", step)
        for name in LOGGED:
            self.writers["t"].add_scalar(f"_/{name}", figures[name], step)
        self.writers["t"].add_scalar("_/current_lr", figures["lr"], step)
        if validated:
            self._write("v", step)
        self.bar.set_postfix_str(SHOWN.format(**figures), refresh=False)
        self.bar.write(self._line(step, figures))

    def _write(self, part, step):
        for name, value in self.pools[part].means().items():
            self.writers[part].add_scalar(f"pooled/{name}", value, step)
        for name, value in self.pools[part].last().items():
            self.writers[part].add_scalar(f"stats/{name}", value, step)

    def pictures(self, part, step, batch, outputs, grid):
        """The first sample of a batch: what went in, the truth, what counts, and the prediction."""
        if self.leads and "seg" in outputs:
            for tag, picture in pictures_of(batch, outputs, grid).items():
                self.writers[part].add_image(tag, picture, step, dataformats="HWC")

    def _line(self, step, figures):
        text = (
            f"{self.name}; step {step:06d}/{self.max_iters:d}; rtime {figures['rtime']:.2f}; "
            f"itime {figures['itime']:.2f}; loss {figures['loss']:.5f}"
        )
        for part, pool in self.pools.items():
            means = pool.means() if pool.entries else {}
            text += f"; iou_{part} {means['iou']:.3f}" if "iou" in means else ""
        return text

    def close(self):
        self.bar.close()
        for writer in self.writers.values():
            writer.close()
