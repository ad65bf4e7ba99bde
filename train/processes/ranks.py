"""This process among those of its run, as far as the environment tells; without torch, so that a command can speak at once."""

import os

from common import progress

_joined = False


def by_torchrun():
    """Whether torchrun (or the like) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def joined():
    """Whether this process has met other ranks, so that what it meets from then on may be its own."""
    return _joined


def join():
    """This process has met the other ranks."""
    global _joined
    _joined = True


def say(text, once_per="run"):
    """One line on stderr: of rank 0 ("run"), of the first rank of each machine ("node"), or of any ("process")."""
    variable = {"run": "RANK", "node": "LOCAL_RANK", "process": None}[once_per]
    if variable is None or int(os.environ.get(variable, 0)) == 0:
        progress.say(text)


def cores():
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
