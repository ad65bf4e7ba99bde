"""How far a long command is: a bar on a terminal, a line now and then in a log."""

import sys
import time

import click
from tqdm import tqdm

from common.plain import plain

FIRST_LINE_S, LONGEST_PAUSE_S = 5.0, 60.0
# Figures first and the bar last: it takes what columns they leave, and a narrow terminal cuts it alone.
_FORMAT = "{desc}{n}/{total} {unit}{postfix} |{bar}|"


def say(text, to_stdout=False):
    """A text about what is being done, on stderr, made plain; a bar that is shown makes room for it."""
    with tqdm.external_write_mode(file=sys.stdout if to_stdout else sys.stderr):
        click.echo(plain(text), err=not to_stdout)


def clock(seconds):
    """A time such as 0:07, 12:34 or 60:12:34."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def counted(count, one, several=""):
    """A number of things in words: 1 shard, 2 shards. several: where that is not `one` and an s."""
    return f"{count} {one if count == 1 else several or f'{one}s'}"


class Pace:
    """When another line is due in a log: after `first_s`, then ever more seldom, down to one in `longest_s`."""

    def __init__(self, first_s=FIRST_LINE_S, longest_s=LONGEST_PAUSE_S):
        self.pause_s, self.longest_s, self.last = first_s, longest_s, time.monotonic()

    def due(self):
        """Whether a line is due now; the next one is counted from here if it is."""
        now = time.monotonic()
        if now - self.last < self.pause_s:
            return False
        self.last, self.pause_s = now, min(2 * self.pause_s, self.longest_s)
        return True


class Left:
    """How long the rest takes, by the mean speed since `done` of the total were finished."""

    def __init__(self, total, done=0):
        self.total, self.first, self.since = total, done, time.monotonic()

    def after(self, done):
        """A text such as 1:23 left, once `done` are finished; empty while there is nothing to tell it from."""
        if done <= self.first:
            return ""
        seconds = (time.monotonic() - self.since) / (done - self.first) * (self.total - done)
        return f"{clock(seconds)} left"


class Progress:
    """Counts up to `total`, on stderr.

    Args:
        total: of what is to be done. units: of it, in the plural. title: of what is going on.
        done: of it already. lines: write lines in a log; without them there is only the bar. leave: the bar stays when it
        is over. shown: whether this process shows anything.
    """

    def __init__(self, total, units, title, *, done=0, lines=True, leave=True, shown=True):
        self.total, self.units, self.title, self.done = total, units, title, done
        self.left, self.pace, self.told = Left(total, done), Pace(), False
        self.started = time.monotonic()
        on_terminal = shown and total > done and sys.stderr.isatty()
        self.lines = lines and shown and not on_terminal
        self.bar = None
        if on_terminal:
            options = {"bar_format": _FORMAT, "dynamic_ncols": True, "leave": leave}
            self.bar = tqdm(total=total, initial=done, unit=units, desc=f"{title}: " if title else "", **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Leave the terminal's last state where it is; in a log, end what was told with a line."""
        if self.bar is not None:
            self.bar.close()
        elif self.told and self.done == self.total:
            say(f"{self.title}: {self.total} {self.units} in {clock(time.monotonic() - self.started)}")
        self.told = False

    def update(self, done, note=""):
        """`done` of the total are finished. note: a few figures more."""
        self.done = done
        texts = ", ".join(text for text in (note, self.left.after(done)) if text)
        if self.bar is not None:
            self.bar.set_postfix_str(texts, refresh=False)
            self.bar.update(done - self.bar.n)
        elif self.lines and done < self.total and self.pace.due():
            self.told = True
            say(f"{self.title}: {done} of {self.total} {self.units}{f', {texts}' if texts else ''}")

    def begin_clock(self, done):
        """Reckon what is left from here on, where `done` are finished: these also paid for what begins once."""
        self.left = Left(self.total, done)

    def one_more(self):
        """Another one is finished."""
        self.update(self.done + 1)

    def over(self, items):
        """The items, counted as they are taken."""
        for item in items:
            yield item
            self.one_more()


def progress(items, units, title):
    """Yield the items of a sequence and show how far it is, from when the first one is asked for."""
    with Progress(len(items), units, title) as bar:
        yield from bar.over(items)
