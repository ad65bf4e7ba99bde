"""The loader: CPU a sample on each path, threads against one, and plain webdataset on the same shards."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from common.shard_index import dump_index, index_path, load_index
from tests.bench.measure import Row, best_ms, paired_ms
from train.data import Loader, make_frame_options
from train.data.draws import AugmentConfig
from train.data.sources import LocalSource
from train.data.windows import windows

GRID = ((0.0, 1.0, 0.0), (-50, 50, -5, 5, -50, 50), (200, 8, 200))


class NoStage:
    """Takes what the threads made and drops it: the loader alone is measured."""

    def __init__(self):
        import torch

        self.device = torch.device("cpu")

    def __call__(self, windows, draws, samples, epoch):
        return len(windows)


def loader(shards, nworkers, decode=True, lidar=True):
    options = make_frame_options(GRID, 3, lidar, lidar, False, "simple_bev", 1, ("vehicle",), decode_images=decode)
    reader = LocalSource(shards)
    return Loader(
        reader,
        windows(reader.scene_of),
        options,
        AugmentConfig((448, 800)),
        NoStage(),
        batch_size=4,
        nworkers=nworkers,
        is_train=True,
        shuffle=True,
        shuffle_cams=True,
        refcam_id=1,
        seed=0,
    )


def _epoch(source):
    return lambda: [None for _ in source]


def rows(full, small, unit):
    """full, small: lists of shards with the source JPEGs and with 540x960 ones. unit: one run of it."""
    out = []
    paths = [
        ("source JPEGs on the CPU", full, True, "<= 1.15"),
        ("540x960 shards", small, True, "<= 0.70"),
        ("encoded images left to the GPU", full, False, "<= 0.10"),
    ]
    for name, shards, decode, goal in paths:
        source = loader(shards, 1, decode)
        count = len(source) * source.batch_size
        cpu, ratio = paired_ms(_epoch(source), unit, count)
        out.append(Row(f"loader: {name}, CPU", cpu, decodes=ratio, goal=goal))
    one, two = (best_ms(_epoch(loader(full, n)), 3, count) for n in (1, 2))
    out.append(Row("loader: two threads over one, source JPEGs", one / two, "x", goal=">= 1.9"))
    plain, ratio = paired_ms(lambda: _plain(full), unit, count, 1)
    out.append(Row("plain webdataset + PIL decoding, no points", plain, decodes=ratio))
    return out


def _plain(shards):
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        for name, data in sample.items():
            if name.endswith("jpg"):
                np.asarray(Image.open(io.BytesIO(data)))


_OPEN = """
import os, sys, time
from train.data.sources import LocalSource

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

before, start = resident_mb(), time.perf_counter()
opened = LocalSource(sys.argv[1:])
print(time.perf_counter() - start, resident_mb() - before, len(opened))
"""


def opening(shard, folder, shards=100, samples=34_000):
    """Seconds and MB to open a set as large as v1.0-trainval; its tars are sparse files of the right size."""
    source = load_index(shard)
    per_shard = samples // shards
    names = []
    for n in range(shards):
        tar = Path(folder) / f"train-{n:03d}.tar"
        rows = np.arange(per_shard) % len(source.keys)
        scenes = [[f"scene-{n:03d}{i}", start, 0] for i, start in enumerate(range(0, per_shard, 40))]
        for scene in scenes:
            scene[2] = min(40, per_shard - scene[1])
        source.tar, source.scenes = tar, scenes
        source.keys = [f"{name}_{i:04d}" for name, _, count in scenes for i in range(count)]
        source.tokens = [f"{n:016d}{i:016d}" for i in range(per_shard)]
        picked = {k: getattr(source, k)[rows] for k in ("offsets", "sizes", "crc32")}
        vars(source).update(picked)
        with open(tar, "wb") as file:
            file.truncate(source.tar_bytes)
        index_path(tar).write_bytes(dump_index(source))
        names.append(str(tar))
    result = subprocess.run([sys.executable, "-c", _OPEN, *names], capture_output=True, text=True, check=True)
    seconds, megabytes, count = map(float, result.stdout.split())
    return [
        Row(f"opening {count:.0f} samples", seconds, "s", goal="<= 1"),
        Row(f"opening {count:.0f} samples, memory", megabytes, "MB", goal="<= 200"),
    ]
