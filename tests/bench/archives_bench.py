"""Shards from archives against unpacking them first: time, and how much of the disk each takes at its fullest."""

import subprocess
import tarfile
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

from common.stores import open_store
from preprocess.archives.reading import members
from tests.bench.measure import Row, best_ms
from tests.conftest import run_module

WATCH_S = 0.05
PIECE = 1 << 20


def rows(world, version, folder):
    """Rows of a generated world, packed as nuScenes is: tables, keyframes, and sweeps of each kind of sensor."""
    folder.mkdir()
    archives = _packed(world, version, folder)
    one, total = max(archives, key=lambda path: path.stat().st_size), sum(p.stat().st_size for p in archives)
    size_mb = _unpacked_mb(one)
    gunzip = [
        (name, size_mb / best_ms(lambda m=module: _gunzip(one, m), 3, clock=time.process_time) * 1e3)
        for name, module in _gunzips()
    ]
    plain, seconds = {}, {}
    options = ["--version", version, "--sweeps", 3, "--workers", 1, "--train-shards", 4, "--val-shards", 1]
    with _watched(folder / "unpack") as most:
        start = time.perf_counter()
        for archive in archives:
            subprocess.run(["tar", "-xzf", archive, "-C", folder / "unpack"], check=True)
        here = ["--dataroot", folder / "unpack", "--out", folder / "unpack" / "shards"]
        run_module("preprocess.run", *options, *here, timeout=3600)
        seconds["unpack"] = time.perf_counter() - start
    plain["unpack"] = most[0]
    with _watched(folder / "direct") as most:
        start = time.perf_counter()
        here = ["--dataroot", folder / "none", "--archives", ",".join(map(str, archives)), "--out", folder / "direct"]
        run_module("preprocess.run", *options, *here, timeout=3600)
        seconds["direct"] = time.perf_counter() - start
    plain["direct"] = most[0]
    return [
        *(Row(f"archives: gunzip by {name}, unpacked MB/s of one core", speed, "MB/s") for name, speed in gunzip),
        Row("archives: shards from them over unpacking first", seconds["direct"] / seconds["unpack"], "x"),
        Row("archives: unpacked first, peak of disk over archives", plain["unpack"] / total, "x"),
        Row("archives: not unpacked, peak of disk over archives", plain["direct"] / total, "x", goal="wanted + shards"),
    ]


def _packed(world, version, folder):
    names = [str(p.relative_to(world)) for p in sorted(Path(world).rglob("*")) if p.is_file()]
    kinds = {
        "meta": lambda n: n.startswith(version),
        "keyframes": lambda n: n.startswith("samples/"),
        "blobs_lidar": lambda n: n.startswith("sweeps/LIDAR"),
        "blobs_radar": lambda n: n.startswith("sweeps/RADAR"),
    }
    out = []
    for kind, test in kinds.items():
        out.append(folder / f"{version}_{kind}.tgz")
        with tarfile.open(out[-1], "w:gz", compresslevel=6) as archive:
            for name in filter(test, names):
                archive.add(Path(world) / name, name)
    return out


def _gunzips():
    yield "zlib", zlib
    try:
        from isal import isal_zlib
    except ImportError:
        return
    yield "isal", isal_zlib


def _gunzip(path, module):
    unpacker = module.decompressobj(wbits=31)
    with open(path, "rb") as file:
        while chunk := file.read(PIECE):
            while chunk:
                unpacker.decompress(chunk, PIECE)
                chunk = unpacker.unconsumed_tail


def _unpacked_mb(path):
    return sum(member.size for member in members(open_store(path.parent), path.name)) / 1e6


@contextmanager
def _watched(folder):
    """A new folder, and a list of the most bytes that it held while the block ran."""
    folder.mkdir()
    most, ended = [0], threading.Event()

    def watch():
        while not ended.wait(WATCH_S):
            most[0] = max(most[0], _bytes_of(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
        most[0] = max(most[0], _bytes_of(folder))


def _bytes_of(folder):
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # it went meanwhile
    return total
