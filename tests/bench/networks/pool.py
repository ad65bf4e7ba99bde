"""Jobs in processes of their own, several at a time, until the time is over; what they print goes to a file each."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.1
FAILED = 3  # exit code of a job that has said itself why it failed


@dataclass(frozen=True)
class Job:
    """function(*arguments) of a module that a new process imports. name: of its log. failed: gets why, in that process."""

    name: str
    function: object
    arguments: tuple
    failed: object


def run(jobs, at_once, ends, logs, preload, say):
    """Run the jobs in order, `at_once` of them side by side, as long as time.monotonic() is before `ends`.

    preload: modules that are imported once for all of them. say: gets a line where a job has ended without having said why.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting, running = list(jobs), {}
    try:
        while (waiting or running) and time.monotonic() < ends:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                process = context.Process(target=_child, args=(job, str(Path(logs, f"{job.name}.log"))))
                process.start()
                running[job] = process
            time.sleep(LOOK_S)
            for job, process in list(running.items()):
                if not process.is_alive():
                    _end(running.pop(job))
                    if process.exitcode not in (0, FAILED):
                        say(f"{job.name}: its process ended with exit code {process.exitcode}")
    finally:
        for job, process in running.items():
            _end(process)
            say(f"{job.name}: ended, the time is over")
        for job in waiting:
            say(f"{job.name}: not begun, the time is over")


def _end(process):
    """Kill a job's process and all that it has started and left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (PermissionError, ProcessLookupError):  # nobody is left, or it has no group of its own yet
        process.kill()
    process.join()


def _child(job, log):
    """The job's process: a session of its own, by which it is ended together with what it starts."""
    os.setsid()
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    code = 0
    try:
        job.function(*job.arguments)
    except BaseException as error:
        traceback.print_exc()
        job.failed(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that something has left behind would be waited for
