"""Shard tasks on local processes or on a Dask cluster, through one interface: run(recipes, arguments, on_progress).

`arguments` are the keyword arguments of `work`, which is write_shard where nothing else is said: any importable function of
(task, on_keyframe=None, **arguments) that gives a Written. `on_progress` is called now and then with the Written of all tasks
so far. run returns it at the end, and raises the first error of any task, the others being stopped first. No worker is forked
from the parent, which holds the plan.
"""

import itertools
import multiprocessing
import time
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool

from preprocess.errors import SourceError
from preprocess.shard_writer import FOUND, KINDS, Written, write_shard
from preprocess.workers import Workers, go_on

TASKS_A_THREAD = 2  # of a Dask cluster
_counters = None


def _start(counters):
    global _counters
    _counters = counters


def _count(keyframes, read, written):
    go_on()
    with _counters.get_lock():
        _counters[0] += keyframes
        for i, name in enumerate(KINDS + FOUND):
            _counters[1 + i] += read.get(name, 0)
        for i, kind in enumerate(KINDS):
            _counters[1 + len(KINDS + FOUND) + i] += written.get(kind, 0)


def _task(work, recipe, arguments):
    return work(recipe, on_keyframe=_count, **arguments).skipped


class LocalPool:
    """`workers` processes; 1 works in this one."""

    def __init__(self, workers):
        self.workers = workers

    def run(self, recipes, arguments, on_progress, work=write_shard):
        if self.workers <= 1 or len(recipes) <= 1:
            return self._run_here(recipes, arguments, on_progress, work)
        counters = multiprocessing.get_context("spawn").Array("q", 1 + len(KINDS + FOUND + KINDS))
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
    keyframes, *values = counters
    read = dict(zip(KINDS + FOUND, values, strict=False))
    total = Written()
    total.add(keyframes, read, dict(zip(KINDS, values[len(read) :], strict=True)))
    return total


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
            waiting, running = iter(recipes), set()
            arriving = self.distributed.as_completed()
            try:
                while True:
                    # Recipes may be megabytes each: a few per thread of the cluster are under way, not all at once.
                    room = TASKS_A_THREAD * max(1, sum(client.nthreads().values())) - len(running)
                    for recipe in itertools.islice(waiting, max(room, 0)):
                        future = client.submit(_answer, work, recipe, arguments, pure=False, retries=2)
                        running.add(future)
                        arriving.add(future)
                    if not running:
                        return total
                    future = next(arriving)
                    running.discard(future)
                    one = future.result()
                    if isinstance(one, SourceError):
                        raise one
                    total.add(one.keyframes, {**one.read, **one.found}, one.written)
                    total.skipped += one.skipped
                    on_progress(total)
            finally:
                client.cancel(list(running))


def _answer(work, recipe, arguments):
    """What `work` gives, or the SourceError of bad data, which is not tried again as a lost worker is."""
    try:
        return work(recipe, **arguments)
    except SourceError as error:
        return error
