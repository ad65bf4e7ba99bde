"""What a run draws of itself: figures of its updates and pooled over them, TensorBoard's curves and pictures."""

from collections import deque

from common.errors import InputError
from train.monitor.writers import Recorder
from train.pictures.tensorboard import pictures_of

POOL = 10  # updates that the pooled figures average over
LOGGED = ("grad_norm", "data_wait_percent", "samples_per_s", "read_mb_per_s", "memory_gb")


class Pool:
    """Figures of the last POOL entries; `entries` of another pool continue it.

    read: counts of metrics, summed -> name -> Score, as LossStep.read.
    """

    def __init__(self, entries=(), read=lambda counts: {}):
        self.entries, self.read = deque(entries, maxlen=POOL), read

    def add(self, figures, counts):
        """Figures of an update or a validation, and the counts of its metrics, whose own figures they become.

        Raises ValueError where both give one name.
        """
        scores = {name: score.value for name, score in self.read(counts).items()}
        if twice := sorted(figures.keys() & scores.keys()):
            raise InputError(f"{', '.join(twice)} is a figure of a metric; give the loss's term another name")
        self.entries.append((figures | scores, counts))

    def last(self):
        """Figures of the last entry."""
        return self.entries[-1][0]

    def means(self):
        """Mean of each figure; of metrics that are sums, those of the summed counts."""
        entries = [figures for figures, _ in self.entries]
        own = {name: [figures[name] for figures in entries if name in figures] for name in entries[-1]}
        out = {name: sum(values) / len(values) for name, values in own.items()}
        scores = self.read(sum(counts for _, counts in self.entries))
        return out | {name: score.value for name, score in scores.items()}


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
            self.validation(step)

    def validation(self, step):
        """Curves of a validation."""
        if self.leads:
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
