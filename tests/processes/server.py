"""python -m tests.processes.server SOCKET: forks a process for each connection to a listening socket, until stdin is closed.

SOCKET is the number of an inherited file. A connection sends the length of a JSON text in 4 bytes, with the three files of the
new process beside them, and the text: argv, cwd, env, file_bytes. It is answered with two lines: the process's id, then its
exit code, negative for a signal, once it has ended. Between this process and each new one stands one more, which waits for it.
Whoever has lost its parent becomes a child of this process, and nobody outlives it: tests that are killed leave nothing behind.

Only what others have written is imported here. The project's own modules are imported by each process anew, so that what they
set up is as fresh as it is in a process of its own.
"""

import ctypes
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

IMPORTED = (
    *(
        "torch",
        "torch.distributed",
        "torch.utils.tensorboard",
        "torchvision",
        "efficientnet_pytorch",
        "cv2",
        "click",
        "tqdm",
    ),
    *("yaml", "webdataset", "zstandard", "simplejpeg", "nuscenes.nuscenes", "pyquaternion", "moto.server", "jinja2"),
    *("tensorboard.backend.event_processing.event_accumulator", "obstore"),
)
LENGTH_BYTES = 4
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def import_all():
    """Import what is installed of IMPORTED. Threads do not survive a fork, so that nothing of it may have begun one."""
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except ImportError:  # of an extra; whoever needs it will say so
            continue
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"an import has started {len(threads) - 1} threads, which a fork would lose"


def serve(listener):
    """What one connection asks for, with its files, in the new process; None in this one, when stdin is closed."""
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return None
        connection, _ = listener.accept()
        with connection:
            if os.fork() == 0:
                listener.close()
                return _fork_and_wait(connection)


def end_all():
    """Kill what descends from this process, until nothing does: children of whoever is killed become its own."""
    while pids := Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        for pid in pids:
            with suppress(ProcessLookupError):  # reaped meanwhile
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)


def _fork_and_wait(connection):
    """The request in the new process. The one that stands between tells how it ends, and ends itself."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_with_parent()
    first, files, _, _ = socket.recv_fds(connection, LENGTH_BYTES, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(first, "little")))
    in_session, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        end_with_parent()
        os.setsid()
        os.close(in_session)
        os.close(begun)
        return request | {"files": files}
    os.close(begun)
    os.read(in_session, 1)  # whoever is told its id may signal its group
    for file in files:
        os.close(file)
    try:
        connection.sendall(b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connection.sendall(b"%d\n" % code)
    except BrokenPipeError:  # nobody waits for it any more
        pass
    os._exit(0)


def end_with_parent():
    """Have the kernel kill this process when its parent ends, however that does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def become(request, path):
    """Give this process all that an exec would give it. path: sys.path but for its first entry."""
    if request["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    own = [folder for folder in request["env"].get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [*own, *path]
    sys.modules["numpy"].random.seed()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())


def run(argv):
    """Run `-m MODULE …`, `-c CODE …` or `FILE …` as the interpreter does."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        sys.path.insert(0, "")
        exec(compile(argv[1], "<string>", "exec"), vars(main))
    else:
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))
        runpy.run_path(argv[0], run_name="__main__")


def main():
    listener = socket.socket(fileno=int(sys.argv[1]))
    path = sys.path[1:]  # the first is the folder that this was started in
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for those that stand between
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    import_all()
    request = serve(listener)
    if request is None:
        end_all()
    else:
        from tests.processes import spawned

        become(request, path)
        spawned.fork_instead()
        run(request["argv"])


if __name__ == "__main__":
    main()
