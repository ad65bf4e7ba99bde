"""What a run draws of itself: figures of its updates and pooled over them, TensorBoard's curves and pictures."""

from collections import deque

from train.metrics import iou
from train.monitor.writers import Recorder
from train.pictures.tensorboard import pictures_of

POOL = 10  # updates that the pooled figures average over
LOGGED = ("grad_norm", "data_wait_percent", "samples_per_s", "read_mb_per_s", "memory_gb")


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
    """Curves and pictures of a run. leads: whether this process writes them; the others write nothing.

    Args:
        folder: of the run's curves; t and v lie in it. pools: dict from t and, with validation, v to Pool.
        first_step: curves of it and of later ones that are there already are hidden.
        board: of train.monitor.writers.open_wandb.
    """

    def __init__(self, folder, pools, first_step, leads, board=None):
        self.pools, self.leads, self.board = pools, leads, board
        self.writers = {w: Recorder(f"{folder}/{w}", w, first_step, board) for w in pools} if leads else {}

    def configuration(self, text):
        """The run's options as a text."""
        if self.leads:
            self.writers["t"].add_text("configuration", text)

    def show(self, step, figures, validated):
        """Curves of an update; figures: of its speed, its rate, its gradient."""
        if not self.leads:
            return
        self._write("t", step)
        for name in LOGGED:
            self.writers["t"].add_scalar(f"_/{name}", figures[name], step)
        self.writers["t"].add_scalar("_/current_lr", figures["lr"], step)
        if validated:
            self._write("v", step)

    def _write(self, part, step):
        for name, value in self.pools[part].means().items():
            self.writers[part].add_scalar(f"pooled/{name}", value, step)
        for name, value in self.pools[part].last().items():
            self.writers[part].add_scalar(f"stats/{name}", value, step)

    def pictures(self, part, step, batch, outputs, grid):
        """The first sample of a batch: what went in, the truth, what counts, and what of the prediction has labels."""
        if self.leads:
            for tag, picture in pictures_of(batch, outputs, grid).items():
                self.writers[part].add_image(tag, picture, step)

    @property
    def lost(self):
        """ValueError that says why the curves could not be written, or None."""
        return next((writer.lost for writer in self.writers.values() if writer.lost), None)

    def close(self):
        """Write what is still held back; once more changes nothing. See `lost` afterwards."""
        for writer in self.writers.values():
            writer.close()
        if self.board is not None:
            self.board.finish()

    def check(self):
        """Raise `lost`."""
        if self.lost:
            raise self.lost
