"""Processes of multiprocessing's start method "spawn", forked from the one that starts them, without what it imported of ours.

A new interpreter would import torch once more for each rank of a training run. What is sent to the new process goes through
pickle here too, its module __main__ and the project's modules are made anew, and no signal handler, open file or exit function
of its parent's is kept. A parent that has threads by then, which a fork would lose, starts a new interpreter as ever; but for
the thread of the store by which ranks find each other, which belongs to the launcher alone and is idle until they do.
"""

import atexit
import io
import os
import signal
import sys
import threading
import types
from multiprocessing import popen_spawn_posix, resource_tracker, spawn
from multiprocessing.context import reduction, set_spawning_popen
from pathlib import Path

STORE_THREAD = "pt_tcpstore_uv"  # of torch's TCPStore
OURS = ("common", "preprocess", "train", "bevshards", "tests")


def fork_instead():
    """From now on, in this process and those that it forks."""
    popen_spawn_posix.Popen._launch = _launch
    popen_spawn_posix.Popen.duplicate_for_child = _duplicate_for_child


def _duplicate_for_child(self, file):
    """A number of the file's that no object of the parent's will close in the new process."""
    copies = vars(self).setdefault("copies", [])
    copies.append(os.dup(file))
    self._fds.append(copies[-1])
    return copies[-1]


def _launch(self, process, plain=popen_spawn_posix.Popen._launch):
    try:
        if _threads() - {STORE_THREAD}:
            plain(self, process)
        else:
            _fork(self, process)
    finally:
        for file in vars(self).get("copies", ()):
            os.close(file)


def _threads():
    """Names of this process's threads besides the main one."""
    return {
        Path(f"/proc/self/task/{n}/comm").read_text().strip()
        for n in os.listdir("/proc/self/task")
        if int(n) != os.getpid()
    }


def _fork(self, process):
    resource_tracker.ensure_running()
    sent = io.BytesIO()
    set_spawning_popen(self)
    try:
        reduction.dump(spawn.get_preparation_data(process._name), sent)
        reduction.dump(process, sent)
    finally:
        set_spawning_popen(None)
    parents, childs = os.pipe()  # each is told by it that the other one has ended
    alive, ours = os.pipe()
    self.pid = os.fork()
    if self.pid == 0:
        _begin(sent, alive, {alive, childs, resource_tracker.getfd(), *self._fds})
    for file in (childs, alive):
        os.close(file)
    self.sentinel = parents
    self.finalizer = popen_spawn_posix.util.Finalize(self, popen_spawn_posix.util.close_fds, (parents, ours))


def _begin(sent, alive, kept):
    """The life of the new process."""
    code = 1
    try:
        atexit._clear()
        _let_go_of_files(kept)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        sys.modules["__main__"] = types.ModuleType("__main__")
        reader = os.memfd_create("sent")
        os.write(reader, sent.getbuffer())
        os.lseek(reader, 0, os.SEEK_SET)
        code = spawn._main(reader, alive)
        threading._shutdown()
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _let_go_of_files(kept):
    """Put /dev/null in the place of each file that an exec would close: whoever still holds its number closes no other."""
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        file = int(name)
        try:
            if file > 2 and file not in kept and not os.get_inheritable(file):
                os.dup2(null, file, inheritable=False)
        except OSError:  # of the listing itself, which is closed by now
            continue
