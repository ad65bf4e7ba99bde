"""How far a long command is: a bar on a terminal, a line now and then in a log."""

import sys
import time

import click
from tqdm import tqdm

FIRST_LINE_S, LONGEST_PAUSE_S = 5.0, 60.0


def say(text):
    """One line about what is being done, on stderr."""
    click.echo(text, err=True)


class Progress:
    """Counts up to `total`. In a log a line comes after five seconds, then ever more seldom, down to one a minute."""

    def __init__(self, total, unit, title):
        self.total, self.unit, self.title, self.done = total, unit, title, 0
        self.started = time.monotonic()
        self.pause, self.said = FIRST_LINE_S, self.started
        on_terminal = sys.stderr.isatty() and total
        self.bar = tqdm(total=total, unit=unit, desc=title, dynamic_ncols=True) if on_terminal else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def update(self, done, note=""):
        """`done` of the total are finished."""
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        self.done, now = done, time.monotonic()
        if self.bar is None and now - self.said >= self.pause:
            self.said, self.pause = now, min(2 * self.pause, LONGEST_PAUSE_S)
            left = (now - self.started) / max(done, 1) * (self.total - done)
            say(
                f"{self.title}: {done} of {self.total} {self.unit}s{f', {note}' if note else ''}, about {left:.0f} s left"
            )

    def one_more(self):
        """Another one is finished."""
        self.update(self.done + 1)

    def over(self, items):
        """The items, counted as they are taken."""
        for item in items:
            yield item
            self.one_more()
