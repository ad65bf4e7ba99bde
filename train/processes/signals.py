"""Signals that ask a command to end: raised where nothing is to be saved, collected while something is.

Schedulers send any of NUMBERS, some twice, and a terminal sends SIGINT to every process of a run at once.
"""

import os
import signal
import threading
import time
from contextlib import contextmanager

from train.errors import Interrupted

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PATIENCE_S = 10.0  # what a command that was asked to end may take for it before asking again ends it at once

_first_s = None  # when the first signal came, on the monotonic clock


@contextmanager
def interrupting():
    """The first signal raises Interrupted; later ones do not disturb the ending that it began, unless that hangs.

    After a signal the handlers stay, since the process is about to end.
    """
    global _first_s
    _first_s = None
    old = _handle(_raise_once)
    try:
        if old:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)  # a launcher holds them back until somebody listens
        yield
    finally:
        if _first_s is None:
            _put_back(old)


@contextmanager
def collected():
    """A list that signals are put into instead of raising anything."""
    caught = []

    def note(number, _frame):
        caught.append(number)

    with handled(note):
        yield caught


@contextmanager
def held():
    """Signals wait until the block ends; processes that are started in it begin with them held back."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@contextmanager
def handled(handler):
    """handler(number, frame) gets every signal while the block runs; afterwards the handlers are what they were."""

    def noted(number, frame):
        global _first_s
        _first_s = _first_s or time.monotonic()
        handler(number, frame)

    old = _handle(noted)
    try:
        yield
    finally:
        _put_back(old)


def end_at_once():
    """A signal ends the process in one line and by its exit code, for as long as there is nothing at all to end in order."""

    def end(number, _frame):
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    _handle(end)


def ignore():
    """From here on signals change nothing: the process is ending, and the interpreter would end it by the next one."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _raise_once(number, _frame):
    global _first_s
    if _first_s is None:
        _first_s = time.monotonic()
        raise Interrupted(number)
    if time.monotonic() - _first_s > PATIENCE_S:
        os._exit(128 + number)


def _handle(handler):
    """Install the handler; what was there before, by number. Only the main thread can, and nohup's choice is kept."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [n for n in NUMBERS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def _put_back(old):
    for number, handler in old.items():
        signal.signal(number, handler)
