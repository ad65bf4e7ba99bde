"""Parts of a benchmark, each in a process of its own: one that raises, hangs or is killed costs no other its rows."""

import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.bench.gpu.rows import Rows, read, shown

FILE = "gpu.jsonl"
FAILED = 3  # exit code of a part that has written itself why it failed
LOOK_S = 0.1  # between two looks for new rows
LEAST_S = 5.0  # no part is begun with less time than this, or than its own limit where that is shorter


@dataclass(frozen=True)
class Part:
    """One process's work.

    target: "module:function", called with the settings and a Rows. limit_s: seconds that it may take. needs: parts without
    whose success it is not begun. kept_s: seconds of the whole time that earlier parts leave it.
    """

    name: str
    target: str
    limit_s: float
    needs: tuple = ()
    kept_s: float = 0.0
    fresh: bool = False


def choose(parts, names):
    """The parts of these names and what they need, in order; all where names is empty. Raises ValueError for a name of none."""
    known = {part.name: part for part in parts}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: the parts are {', '.join(known)}")
    wanted, front = set(), list(names or known)
    while front:
        name = front.pop()
        wanted.add(name)
        front += known[name].needs
    return [part for part in parts if part.name in wanted]


def run(parts, settings, out, seconds, preload=(), say=print):
    """Run the parts one after the other, their rows to out/gpu.jsonl and, at once, to `say`; what they print to out/PART.log.

    Args:
        settings: what each part's function gets first; it is pickled. seconds: for all parts together.
        preload: modules that are imported once for all parts that are not fresh, which begin as copies of a process that has.
    Returns:
        Names of the parts that failed or were not begun.
    """
    out, failed = Path(out), []
    warm, fresh = (multiprocessing.get_context(method) for method in ("forkserver", "spawn"))
    warm.set_forkserver_preload(list(preload))
    ends, seen = time.monotonic() + seconds, _Seen(out / FILE, say)
    for number, part in enumerate(parts):
        left = ends - time.monotonic() - sum(later.kept_s for later in parts[number + 1 :])
        missing = [name for name in part.needs if name in failed]
        why = None
        if missing:
            why = f"not begun: it needs {missing[0]}, which failed"
        elif left < min(LEAST_S, part.limit_s):
            why = f"not begun: of {seconds:g} s none are left for it; give more --seconds, or --only {part.name}"
        else:
            limit = min(part.limit_s, left)
            context = fresh if part.fresh else warm
            why = _run_part(context.Process(target=_child, args=(part, settings, str(out))), limit, seen)
        if why:
            failed.append(part.name)
            if why is not True:
                Rows(out / FILE, part.name).failed(why)
        seen.look()
    return failed


class _Seen:
    """Shows the rows of a file that are new since the last look."""

    def __init__(self, path, say):
        self.path, self.say, self.count = path, say, len(read(path))

    def look(self):
        rows = read(self.path)
        for row in rows[self.count :]:
            self.say(shown(row))
        self.count = len(rows)


def _run_part(process, limit, seen):
    """None where the part succeeded, True where it has written why it failed, else the reason."""
    started = time.monotonic()
    process.start()
    try:
        while process.is_alive():
            if time.monotonic() - started > limit:
                return f"ended: it took longer than {limit:.0f} s"
            process.join(LOOK_S)
            seen.look()
    finally:
        _end(process)
    code = process.exitcode
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return {0: None, FAILED: True}.get(code, f"its process ended with exit code {code}")


def _end(process):
    """Kill the part's process and all that it has started and left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nobody is left
        pass
    process.join()


def _child(part, settings, out):
    """The part's process: a session of its own, by which it is ended together with what it starts."""
    os.setsid()
    with open(Path(out) / f"{part.name}.log", "ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    rows, started, code = Rows(Path(out) / FILE, part.name), time.monotonic(), 0
    try:
        module, function = part.target.split(":")
        getattr(importlib.import_module(module), function)(settings, rows)
        rows.add("seconds that this part took", time.monotonic() - started, "s")
    except BaseException as error:
        traceback.print_exc()
        rows.failed(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that something has left behind would be waited for
