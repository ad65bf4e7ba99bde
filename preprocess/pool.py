"""Shard tasks on local processes: no worker is forked from the parent that holds the tables."""

import multiprocessing
import time
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait

from preprocess.shard_writer import write_shard

KINDS = ("images", "radar", "lidar", "rest")
_counters = None


def make_counters(context):
    """Shared counters: keyframes, then bytes in and bytes out of each kind."""
    return context.Array("q", 1 + 2 * len(KINDS))


def _start(counters):
    global _counters
    _counters = counters


def _count(read, written):
    with _counters.get_lock():
        _counters[0] += 1
        for i, kind in enumerate(KINDS):
            _counters[1 + i] += read.get(kind, 0)
            _counters[1 + len(KINDS) + i] += written.get(kind, 0)


def _task(recipe, arguments):
    index = write_shard(recipe, on_keyframe=_count, **arguments)
    return recipe.name, len(index.keys), index.tar_sha256, index.tar_bytes


def run_tasks(recipes, arguments, workers, on_progress):
    """Write every recipe's shard; return [(name, keyframes, sha256, bytes)] in the order of `recipes`.

    Args:
        arguments: keyword arguments of write_shard for all of them.
        workers: processes; 1 works in this one.
        on_progress: called now and then with the counters' list.
    Raises:
        The first error of any task; the others are stopped first.
    """
    context = multiprocessing.get_context("spawn")
    counters = make_counters(context)
    if workers <= 1:
        _start(counters)
        results = []
        for recipe in recipes:
            results.append(_task_reporting(recipe, arguments, counters, on_progress))
        return results
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(counters,)) as pool:
        futures = [pool.submit(_task, recipe, arguments) for recipe in recipes]
        try:
            while True:
                done, waiting = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
                on_progress(list(counters))
                for future in done:
                    future.result()
                if not waiting:
                    return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _task_reporting(recipe, arguments, counters, on_progress):
    last = [0.0]

    def counted(read, written):
        _count(read, written)
        if time.monotonic() - last[0] > 0.1:
            last[0] = time.monotonic()
            on_progress(list(counters))

    index = write_shard(recipe, on_keyframe=counted, **arguments)
    on_progress(list(counters))
    return recipe.name, len(index.keys), index.tar_sha256, index.tar_bytes
