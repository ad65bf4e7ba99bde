"""Shard tasks on local processes or on a Dask cluster, through one interface: run(recipes, arguments, on_progress).

`arguments` are the keyword arguments of `work`, which is write_shard where nothing else is said: any importable function of
(task, on_keyframe=None, **arguments) that gives a Written. `on_progress` is called now and then with the Written of all tasks
so far. run returns it at the end, and raises the first error of any task, the others being stopped first. No worker is forked
from the parent, which holds the plan.
"""

import multiprocessing
import time
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool

from preprocess.errors import SourceError
from preprocess.shard_writer import KINDS, Written, write_shard
from preprocess.workers import Workers, go_on

_counters = None


def _start(counters):
    global _counters
    _counters = counters


def _count(keyframes, read, written):
    go_on()
    with _counters.get_lock():
        _counters[0] += keyframes
        for i, kind in enumerate(KINDS):
            _counters[1 + i] += read.get(kind, 0)
            _counters[1 + len(KINDS) + i] += written.get(kind, 0)


def _task(work, recipe, arguments):
    return work(recipe, on_keyframe=_count, **arguments).skipped


class LocalPool:
    """`workers` processes; 1 works in this one."""

    def __init__(self, workers):
        self.workers = workers

    def run(self, recipes, arguments, on_progress, work=write_shard):
        if self.workers <= 1 or len(recipes) <= 1:
            return self._run_here(recipes, arguments, on_progress, work)
        counters = multiprocessing.get_context("spawn").Array("q", 1 + 2 * len(KINDS))
        with Workers(min(self.workers, len(recipes)), _start, (counters,)) as pool:
            futures = [pool.submit(_task, work, recipe, arguments) for recipe in recipes]
            try:
                while True:
                    done, waiting = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
                    on_progress(_unpack(counters))
                    for future in done:
                        future.result()
                    if not waiting:
                        total = _unpack(counters)
                        total.skipped = [s for future in futures for s in future.result()]
                        return total
            except BrokenProcessPool:
                raise SourceError("a worker process was killed (out of memory?); the same command continues") from None
            finally:
                for future in futures:
                    future.cancel()

    @staticmethod
    def _run_here(recipes, arguments, on_progress, work):
        total, last = Written(), time.monotonic()

        def counted(*counts):
            nonlocal last
            total.add(*counts)
            if time.monotonic() - last > 0.1:
                last = time.monotonic()
                on_progress(total)

        for recipe in recipes:
            total.skipped += work(recipe, on_keyframe=counted, **arguments).skipped
        on_progress(total)
        return total


def _unpack(counters):
    values = list(counters)
    half = 1 + len(KINDS)
    return Written(
        values[0], dict(zip(KINDS, values[1:half], strict=True)), dict(zip(KINDS, values[half:], strict=True))
    )


class DaskPool:
    """The cluster whose scheduler answers at `address`, such as tcp://host:8786. Its workers need this code and the data."""

    def __init__(self, address):
        try:
            import distributed
        except ImportError:
            raise SourceError("--scheduler needs Dask: pip install 'dask[distributed]'") from None
        self.distributed, self.address = distributed, address

    def run(self, recipes, arguments, on_progress, work=write_shard):
        total = Written()
        try:
            client = self.distributed.Client(self.address, timeout="20s")
        except (OSError, ValueError, TimeoutError) as error:
            raise SourceError(f"{self.address}: no Dask scheduler answers there ({error})") from None
        with client:
            # Recipes may be megabytes each: one at a time a worker, not all in the scheduler's memory.
            futures = [client.submit(work, r, **arguments, pure=False, retries=2) for r in recipes]
            try:
                for future in self.distributed.as_completed(futures):
                    one = future.result()
                    total.add(one.keyframes, one.read, one.written)
                    total.skipped += one.skipped
                    on_progress(total)
            finally:
                client.cancel(futures)
        return total
