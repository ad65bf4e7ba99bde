"""Fixtures: the real keyframe and the golden arrays where they lie beside the checkout."""

import importlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

# OpenMP reads these once, when torch is imported, here and in the processes that tests start. Tests that run side by side
# have more threads than there are cores: one that spins while it waits for another takes the core which that one needs
# (two training runs at once took 53 s of CPU, 23 s without). Networks this small gain nothing from a second thread.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from preprocess.synth.folder import Folder  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"

torch.set_num_threads(2)


def run_module(*arguments, check=True, timeout=300):
    """Run `python -m ...` in the repository; the finished process with its text."""
    result = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if check and result.returncode:
        raise AssertionError(f"{arguments}: exit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def call_module(name, *arguments, check=True):
    """run_module in this process, for what is not about processes: importing torch anew takes four seconds of CPU.

    An exception that would be a traceback there is raised here.
    """
    module, deterministic = importlib.import_module(name), torch.are_deterministic_algorithms_enabled()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", [module.__file__, *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            module.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            torch.use_deterministic_algorithms(deterministic)
    result = subprocess.CompletedProcess([name, *arguments], code, out.getvalue(), err.getvalue())
    if check and code:
        raise AssertionError(f"{result.args}: exit {code}\n{result.stdout}\n{result.stderr}")
    return result


@pytest.fixture(scope="session")
def realframe():
    """nuScenes folder with real keyframes."""
    folder = SHARED / "realframe"
    if not folder.is_dir():
        pytest.skip("../shared/realframe is not there")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Function from a file name to its golden arrays, made with the public Simple-BEV code."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden is not there")

    def load(name):
        path = SHARED / "golden" / name
        return np.load(path) if path.suffix == ".npz" else path.read_text()

    return load


@pytest.fixture(scope="session")
def real_shards(realframe, tmp_path_factory):
    """Folder with train-000.tar and val-000.tar of the real keyframes."""
    out = tmp_path_factory.mktemp("real-shards")
    run_module("preprocess.run", "--version", "v1.0-mini", "--dataroot", realframe, "--out", out, "--workers", 1)
    return out


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """nuScenes folder of four small scenes of three keyframes with one sweep between; the last is a val scene."""
    folder = Folder(tmp_path_factory.mktemp("small-world"), "v1.0-mini", 5, image_hw=(90, 160))
    for number, name in enumerate(("scene-0061", "scene-0553", "scene-0655", "scene-0103")):
        folder.add_scene(number, name, 3, 1)
    folder.close()
    return folder.out


@pytest.fixture(scope="session")
def small_shards(small_world, tmp_path_factory):
    """Folder of shards of the small world: nine train samples and three val samples, whose images cost next to nothing."""
    out = tmp_path_factory.mktemp("small-shards")
    options = "--sweeps 2 --train-shards 1 --workers 1".split()
    run_module("preprocess.run", "--version", "v1.0-mini", "--dataroot", small_world, "--out", out, *options)
    return out


@pytest.fixture(scope="session")
def synth_world(tmp_path_factory):
    """nuScenes folder of the generated world: five train scenes and a val scene of four keyframes, two sweeps between."""
    out = tmp_path_factory.mktemp("world")
    run_module("preprocess.synth", "--out", out, "--version", "v1.0-mini", *"--scenes 6 --samples 4 --sweeps 2".split())
    return out


@pytest.fixture(scope="session")
def synth_shards(synth_world, tmp_path_factory):
    """Two train shards and one val shard of the generated world, three sweeps each."""
    out = tmp_path_factory.mktemp("synth-shards")
    options = "--sweeps 3 --train-shards 2 --val-shards 1 --workers 1".split()
    run_module("preprocess.run", "--version", "v1.0-mini", "--dataroot", synth_world, "--out", out, *options)
    return out


class S3Server:
    """A moto server in a process of its own: bucket, and the requests that it has answered."""

    bucket = "bevshards"

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._log = folder / "requests.log"
        port = self.endpoint.rpartition(":")[2]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                bucket = urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")
                urllib.request.urlopen(bucket, timeout=5).read()
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.1)

    def requests(self, text):
        """Lines of the log, such as `"GET /bevshards/a.tar HTTP/1.1" 206 -`, that hold a text."""
        plain = re.sub(r"\x1b\[[\d;]*m", "", self._log.read_text())  # the server colours them
        return [line for line in plain.splitlines() if text in line]


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """S3Server whose endpoint and credentials are in the environment, as users have them."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    wanted = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    yield server
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="session")
def s3_shards(s3, synth_world):
    """Address of the shards of synth_shards, written by preprocess.run."""
    out = f"s3://{s3.bucket}/shards"
    options = "--sweeps 3 --train-shards 2 --val-shards 1 --workers 2".split()
    run_module("preprocess.run", "--version", "v1.0-mini", "--dataroot", synth_world, "--out", out, *options)
    return out
