"""Starts processes from the one that has imported what takes long; see tests.processes.server."""

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.processes.server import LENGTH_BYTES

REPOSITORY = Path(__file__).parents[2]
ADDRESS = "BEVSHARDS_TESTS_SERVER"  # variable with the path of the server's socket, for pytest's workers


def begin_server(**environment):
    """Start the server of this process and of pytest's workers that it starts; it ends when this process does."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[ADDRESS] = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[ADDRESS])
        listener.listen(64)
        ours = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.server", str(listener.fileno())],
            cwd=REPOSITORY,
            env={"OPENBLAS_NUM_THREADS": "1", **os.environ, **environment},  # whose threads begin while it is imported
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    atexit.register(ours.communicate)  # which closes its stdin


class Process:
    """A new process in a session of its own, with subprocess.Popen's attributes and methods as far as tests need them.

    Args:
        words: "-m", module and arguments; "-c", code and arguments; or a file and arguments.
        stdin, stdout, stderr: as Popen takes them; with subprocess.PIPE the two latter are files to read text from.
        cwd, env: its folder and variables. Those that libraries read while they are imported (OMP_…, TRITON_…) change nothing.
        file_bytes: no file that it writes may grow larger; None for no limit.
    """

    def __init__(
        self,
        *words,
        stdin=subprocess.DEVNULL,
        stdout=None,
        stderr=None,
        cwd=REPOSITORY,
        env=None,
        file_bytes=None,
    ):
        if ADDRESS not in os.environ:
            begin_server()
        self.args, self.returncode = list(map(str, words)), None
        opened = []
        files = [_opened(file, number, opened) for number, file in enumerate((stdin, stdout, stderr))]
        self.stdout, self.stderr = (mine for _, mine in files[1:])
        request = {"argv": self.args, "cwd": str(cwd), "file_bytes": file_bytes}
        request["env"] = {name: str(value) for name, value in (os.environ if env is None else env).items()}
        text = json.dumps(request).encode()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ[ADDRESS])
        socket.send_fds(self._connection, [len(text).to_bytes(LENGTH_BYTES, "little")], [theirs for theirs, _ in files])
        self._connection.sendall(text)
        for file in opened:
            os.close(file)
        self._answers = self._connection.makefile("rb", buffering=0)
        self.pid = int(self._answers.readline())

    def poll(self):
        """Its exit code, negative for a signal, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        """Its exit code. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def communicate(self, timeout=None):
        """(stdout, stderr) to their ends, then wait. Raises TimeoutExpired."""
        texts, ending = {}, None if timeout is None else time.monotonic() + timeout
        readers = []
        for name in ("stdout", "stderr"):
            if file := getattr(self, name):
                readers.append(threading.Thread(target=lambda n=name, f=file: texts.update({n: f.read()}), daemon=True))
                readers[-1].start()
        for reader in readers:
            reader.join(None if ending is None else max(0, ending - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if ending is None else max(0, ending - time.monotonic()))
        for file in (self.stdout, self.stderr):
            if file:
                file.close()
        return texts.get("stdout"), texts.get("stderr")

    def send_signal(self, number):
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _opened(file, number, opened):
    """(file for the new process, text file to read what it writes or None); what is to be closed here joins `opened`."""
    if file is None:
        return number, None
    if file == subprocess.PIPE:
        ours, theirs = os.pipe()
        opened.append(theirs)
        return theirs, os.fdopen(ours, "r")
    if file == subprocess.DEVNULL:
        opened.append(os.open(os.devnull, os.O_RDWR))
        return opened[-1], None
    return file if isinstance(file, int) else file.fileno(), None


def run(*words, check=False, timeout=300, **options):
    """As subprocess.run with captured text: CompletedProcess of Process(*words, **options).

    Raises:
        TimeoutExpired, after the process was killed. AssertionError: check, and the exit code is not 0.
    """
    process = Process(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        stdout, stderr = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    result = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    if check and result.returncode:
        raise AssertionError(f"{result.args}: exit {result.returncode}\n{stdout}\n{stderr}")
    return result
