"""Processes that work for this one, and end with it: Ctrl-C stops them after what they are at, and nothing of them shows."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

# Cores that this process may use, which a container or taskset makes fewer than the machine has.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_stopping = None  # of a worker: whether the process that it works for was interrupted


class Workers(ProcessPoolExecutor):
    """`count` new processes. What they run calls `go_on` now and then. initializer: called in each, with initargs."""

    def __init__(self, count, initializer=None, initargs=()):
        context = multiprocessing.get_context("spawn")
        self._interrupted = context.Event()
        begin = (self._interrupted, initializer, initargs)
        super().__init__(count, mp_context=context, initializer=_begin, initargs=begin)

    def submit(self, *arguments, **named):
        # A terminal sends Ctrl-C to every process. Those that are begun here never hear it: this one tells them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(*arguments, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, kind, *error):
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._interrupted.set()
            self.shutdown(cancel_futures=True)
        return super().__exit__(kind, *error)


def _begin(stopping, initializer, arguments):
    global _stopping
    _stopping = stopping
    if initializer is not None:
        initializer(*arguments)


def go_on():
    """Raise KeyboardInterrupt in a worker whose process was interrupted; it takes away what it has half-written."""
    if _stopping is not None and _stopping.is_set():
        raise KeyboardInterrupt
