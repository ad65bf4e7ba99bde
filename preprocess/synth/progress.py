"""How far a long loop is: a bar on a terminal, a whole line now and then in a log."""

import sys
import time

from tqdm import tqdm

_LINE_EVERY_S = 10.0


def progress(items, desc, unit):
    """Yield the items of a sequence and tell on stderr how many are done and how long the rest takes.

    A log gets no carriage returns: a line every ten seconds, and one at the end if there was any before.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=desc, unit=unit, dynamic_ncols=True)
        return
    begin = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= _LINE_EVERY_S or (done == len(items) and told > begin):
            told = now
            print(f"{desc}: {_state(done, len(items), unit, now - begin)}", file=sys.stderr, flush=True)


def _state(done, total, unit, seconds):
    left = seconds / done * (total - done)
    return f"{done} of {total} {unit}s, {_clock(seconds)} gone, {_clock(left)} left"


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
