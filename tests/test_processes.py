"""The processes that tests fork: nothing of them is left when whoever started them is gone."""

import os
import socket
import subprocess
import sys
import time

from tests.processes import client
from tests.processes.client import Process

SERVER = """
import sys
from tests.processes import server
server.IMPORTED = ("numpy",)  # what takes seconds is not the subject
server.main()
"""
FAMILY = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)  # the one that sleeps has lost its parent
time.sleep(600)
"""


def there(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_server_has_forked_ends_when_its_pytest_does(tmp_path, monkeypatch):
    monkeypatch.setenv(client.ADDRESS, str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        number = listener.fileno()
        words = [sys.executable, "-c", SERVER, str(number)]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "pass_fds": [number]}
        server = subprocess.Popen(words, cwd=client.REPOSITORY, env=environment, **pipes)
    family = Process("-c", FAMILY, stdout=subprocess.PIPE)
    orphan = int(family.stdout.readline())
    assert there(family.pid) and there(orphan)
    server.stdin.close()  # as a kill of pytest's process closes it
    assert server.wait(20) == 0
    deadline = time.monotonic() + 5
    while (there(family.pid) or there(orphan)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not there(family.pid) and not there(orphan)
