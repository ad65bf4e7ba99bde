"""Fixtures: the real keyframe and the golden arrays where they lie beside the checkout, small worlds and their shards."""

import fcntl
import importlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.processes import client
from tests.processes.client import REPOSITORY, Process

SHARED = REPOSITORY.parent / "shared"
# Of v1.0-mini: the first in its train split, and the first in its val split.
TRAIN_SCENES = ("scene-0061", "scene-0553", "scene-0655", "scene-0757", "scene-0796")
VAL_SCENE = "scene-0103"

# OpenMP reads these once, when torch is imported, here and in the processes that tests start. Tests that run side by side
# have more threads than there are cores: one that spins while it waits for another takes the core which that one needs
# (two training runs at once took 53 s of CPU, 23 s without). Networks this small gain nothing from a second thread.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    """Start the server of processes before pytest's workers, which share it; without workers it starts when it is needed."""
    workers = getattr(config.option, "numprocesses", None) or 0
    if not hasattr(config, "workerinput") and workers:
        client.begin_server(**({"OMP_NUM_THREADS": "1"} | os.environ if workers > 1 else {}))


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Of torch; it is imported here, not above, since pytest's own process needs none of it where it has workers."""
    import torch

    torch.set_num_threads(2)


def run_module(*arguments, check=True, timeout=300, **options):
    """Run `python -m ...` in the repository; the finished process with its text. options: see tests.processes.client."""
    return client.run("-m", *arguments, check=check, timeout=timeout, **options)


def call_module(name, *arguments, check=True):
    """run_module in this process, for what is not about processes.

    An exception that would be a traceback there is raised here.
    """
    import torch

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

    import numpy as np

    def load(name):
        path = SHARED / "golden" / name
        return np.load(path) if path.suffix == ".npz" else path.read_text()

    return load


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Function (name, make) to the folder that make(folder) has filled, once for all of pytest's workers."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder_of(name, make):
        folder = root / f"session-{name}"
        with open(root / f".{name}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other worker waits, then finds it
            if not os.fstat(lock.fileno()).st_size:
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed half-way
                folder.mkdir()
                make(folder)
                lock.write("made")
        return folder

    return folder_of


def split_file(folder, dataroot):
    """--split-file, and a file in `folder` that splits the v1.0-mini of `dataroot` as the devkit does, which is not asked."""
    names = [row["name"] for row in json.loads((dataroot / "v1.0-mini" / "scene.json").read_text())]
    path = folder / "splits.json"
    path.write_text(json.dumps({"train": sorted(set(names) - {VAL_SCENE}), "val": sorted({VAL_SCENE} & set(names))}))
    return "--split-file", path


def preprocess(dataroot, out, *options):
    """Shards of a v1.0-mini, whether nuscenes-devkit is installed or not."""
    with tempfile.TemporaryDirectory() as folder:
        splits = split_file(Path(folder), dataroot)
        run_module("preprocess.run", "--version", "v1.0-mini", "--dataroot", dataroot, "--out", out, *splits, *options)


@pytest.fixture(scope="session")
def real_shards(realframe, made_once):
    """Folder with train-000.tar and val-000.tar of the real keyframes."""
    return made_once("real-shards", lambda out: preprocess(realframe, out, "--workers", 1))


@pytest.fixture(scope="session")
def small_world(made_once):
    """nuScenes folder of four small scenes of three keyframes with one sweep between; the last is a val scene."""

    def make(out):
        from preprocess.synth.folder import Folder

        folder = Folder(out, "v1.0-mini", 5, image_hw=(90, 160))
        for number, name in enumerate((*TRAIN_SCENES[:3], VAL_SCENE)):
            folder.add_scene(number, name, 3, 1)
        folder.close()

    return made_once("small-world", make)


@pytest.fixture(scope="session")
def small_shards(small_world, made_once):
    """Folder of shards of the small world: nine train samples and three val samples, whose images cost next to nothing."""
    options = "--sweeps 2 --train-shards 1 --workers 1".split()
    return made_once("small-shards", lambda out: preprocess(small_world, out, *options))


@pytest.fixture(scope="session")
def synth_world(made_once):
    """nuScenes folder of the generated world: five train scenes and a val scene of four keyframes, two sweeps between."""
    words = "--version v1.0-mini --scenes 6 --samples 4 --sweeps 2".split()

    def make(out):
        splits = out / "splits.json"
        splits.write_text(json.dumps({"train": TRAIN_SCENES, "val": [VAL_SCENE]}))
        run_module("preprocess.synth", "--out", out, *words, "--split-file", splits)
        splits.unlink()

    return made_once("synth-world", make)


@pytest.fixture(scope="session")
def synth_shards(synth_world, made_once):
    """Two train shards and one val shard of the generated world, three sweeps each."""
    options = "--sweeps 3 --train-shards 2 --val-shards 1 --workers 1".split()
    return made_once("synth-shards", lambda out: preprocess(synth_world, out, *options))


@pytest.fixture(scope="session")
def yard(made_once):
    """Folder with own.py, the program of the page on one's own data, and shards/yard, which it wrote."""
    page = REPOSITORY / "preprocess" / "own_data.md"

    def make(folder):
        [program] = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
        (folder / "own.py").write_text(program)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        subprocess.run([sys.executable, "own.py"], cwd=folder, check=True, env=environment, timeout=120)

    return made_once("yard", make)


class S3Server:
    """A moto server in a process of its own: bucket, and the requests that it has answered."""

    bucket = "bevshards"

    def __init__(self, folder):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._log = folder / "requests.log"
        port = self.endpoint.rpartition(":")[2]
        with open(self._log, "wb") as log:
            self.process = Process("-m", "moto.server", "-H", "127.0.0.1", "-p", port, stdout=log, stderr=log)
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
    preprocess(synth_world, out, *"--sweeps 3 --train-shards 2 --val-shards 1 --workers 2".split())
    return out
