"""Where a run's scalars, pictures and texts go: TensorBoard's files, and Weights & Biases where that is asked for."""

import glob
import re
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from common.errors import InputError
from common.files import write_atomically

PROMISED_STEPS = 100  # that a Board notes ahead of those it has logged, so that it need not write at each
FLUSH_S = 30.0  # until what is held back is written: so long a full disk is not noticed


class Board:
    """A run of Weights & Biases, which drops what is logged at a step before its latest.

    A run that has gone back therefore goes on counting there; the axis of all curves is `update`. How far it came the service
    tells; offline a file does.

    Args:
        run: of the package's. first_step: of the updates to come. reached: the file, or None.
    """

    def __init__(self, run, first_step, reached=None):
        run.define_metric("*", step_metric="update")
        self.run, self._file = run, reached
        self._next = max(run.step, _noted(reached))
        self._ahead, self._promised = max(0, self._next - first_step), self._next

    def log(self, values, step):
        """Values by name, of an update."""
        step += self._ahead
        if step >= self._promised:
            self._note(step + PROMISED_STEPS)
        self._next = max(self._next, step + 1)
        self.run.log({**values, "update": step - self._ahead}, step=step)

    def finish(self):
        """Write, or send, what is still held back."""
        self._note(self._next)
        self.run.finish()

    def _note(self, step):
        """All steps of the run lie before this one, whatever ends it."""
        self._promised = step
        if self._file is not None:
            with suppress(OSError):  # of a disk that takes nothing, which the curves will tell
                write_atomically(self._file, b"%d" % step)


def _noted(path):
    """The step in a file of Board's; 0 where there is none."""
    try:
        return int(path.read_text())
    except (AttributeError, OSError, ValueError):
        return 0


def open_wandb(mode, name, log_dir, config, first_step=1):
    """The Board of a run of Weights & Biases, or None where mode is "".

    Args:
        mode: "offline" keeps everything in log_dir/wandb, for `wandb sync`; "online" sends it. name: of the run's folder: a
            run that is resumed goes on in the same run there.
        config: the run's options, plain values. first_step: of the updates to come.
    Raises:
        ValueError: the package is missing, or the service refuses.
    """
    if not mode:
        return None
    try:
        import wandb
    except ImportError:
        raise InputError("--wandb needs Weights & Biases: pip install 'bevshards[wandb]'") from None
    folder = Path(log_dir, "wandb")
    folder.mkdir(parents=True, exist_ok=True)
    same = {"id": board_id(name), "resume": "allow"}
    try:
        run = wandb.init(project="bevshards", name=name, dir=str(log_dir), config=config, mode=mode, **same)
        return Board(run, first_step, folder / f"{same['id']}.step" if mode == "offline" else None)
    except wandb.Error as error:
        raise InputError(f"--wandb {mode}: {error}; log in with `wandb login`, or write --wandb offline") from None


def board_id(name):
    """The id of a run's name: colons and the like are not allowed in one, and it may be 64 characters long.

    The end of a name is kept, since that is what tells runs apart.
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[-64:]


class Recorder:
    """One part of a run, "t" or "v". The calls are SummaryWriter's.

    A disk that fails ends nothing at once, since a run first saves: from then on nothing more is written there.

    Args:
        folder: of TensorBoard's files. purge_step: what an earlier run wrote from there on is taken back. board: of open_wandb.
        replaces: end of the file's name; files of that end, which an earlier run wrote, are removed.
    Attributes:
        lost: ValueError that says why files could not be written, or None.
    Raises:
        ValueError: there cannot be files.
    """

    def __init__(self, folder, part, purge_step=None, board=None, replaces=""):
        self.folder, self.part, self.board, self.lost = folder, part, board, None
        threading.excepthook = _without_tensorboard
        with self._kept():
            for earlier in Path(folder).glob(f"*{glob.escape(replaces)}") if replaces else ():
                earlier.unlink()
            named = {"purge_step": purge_step, "flush_secs": FLUSH_S, "filename_suffix": replaces}
            self.writer = SummaryWriter(str(folder), **named)
        if self.lost:
            raise self.lost

    @contextmanager
    def _kept(self):
        """Errors of the disk that the block meets are kept in `lost`, the first of them."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            self.lost = self.lost or ValueError(f"{self.folder}: cannot be written ({reason}); give another --log_dir")

    def add_scalar(self, tag, value, step):
        """A number of an update."""
        if not self.lost:
            with self._kept():
                self.writer.add_scalar(tag, value, step)
        if self.board is not None:
            self.board.log({f"{self.part}/{tag}": value}, step=step)

    def add_image(self, tag, picture, step):
        """A picture (H, W, 3) uint8."""
        if not self.lost:
            with self._kept():
                self.writer.add_image(tag, picture, step, dataformats="HWC")
        if self.board is not None:
            import wandb

            self.board.log({f"{self.part}/{tag}": wandb.Image(picture)}, step=step)

    def add_text(self, tag, text, step=0):
        """A text, shown as it is."""
        if not self.lost:
            with self._kept():
                self.writer.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), step)

    def close(self):
        """Write what is still held back; see `lost` afterwards."""
        with self._kept():
            self.writer.close()


def _without_tensorboard(arguments, plain=threading.excepthook):
    """Tell what ended a thread, but for TensorBoard's: its next call raises that, and a Recorder keeps it."""
    if not type(arguments.thread).__module__.startswith("tensorboard."):
        plain(arguments)
