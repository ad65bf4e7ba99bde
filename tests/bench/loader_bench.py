"""The loader: CPU per sample on each path, threads against one, and plain webdataset on the same shards."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from common.shard_index import dump_index
from tests.bench.measure import Row, best_ms, paired_ms
from tests.index_files import index_path, load_index
from train.data import make_loader
from train.data.config import AugmentConfig, DataConfig, DecodeConfig, Grid, OrderConfig, StageConfig
from train.data.images import decode_jpeg
from train.data.sources import LocalSource, SourceConfig

GRID = ((0.0, 1.0, 0.0), (-50, 50, -5, 5, -50, 50), (200, 8, 200))


class NoStage:
    """Takes what the threads made and drops it: the threads alone are measured."""

    def __init__(self, stage):
        self.device, self.config, self.pools = stage.device, stage.config, stage.pools

    def __call__(self, loaded):
        return len(loaded.windows)

    def ahead(self, loaded):
        return self(loaded), None

    def hand_over(self, batch, event):
        return batch


class NotResampled:
    """Decodes a frame's images one after the other into one buffer, and drops them."""

    def __init__(self, pools, frames, slots, stage):
        self.pool = pools.scratch

    def add(self, frame, encoded, cams, sizes_hw, resize_wh, crop_ltrb):
        pixels = self.pool.take((*sizes_hw[0], 3))
        for data, camera in zip(encoded, cams, strict=True):
            decode_jpeg(data, camera, pixels)
        self.pool.give([pixels])


def loader(shards, nworkers, decode="host", interpolation="bilinear"):
    """The whole path to batches of four in the hand: augmented, 448x800, three sweeps of lidar and radar."""
    decoding = DecodeConfig(Grid(*GRID), nsweeps=3)
    augment = AugmentConfig((448, 800), (0.8, 1.2), 89)
    stage = StageConfig(augment.final_hw, "cpu", interpolation, decode=decode)
    config = DataConfig(OrderConfig(4), decoding, augment, stage, SourceConfig())
    return make_loader(LocalSource(shards), config, nworkers)


def _epoch(source):
    def run():
        for _batch in source:
            pass

    return run


def rows(full, small, unit):
    """full, small: lists of shards with the source JPEGs and with 540x960 ones. unit: one run of it."""
    out = []
    for name, shards, interpolation, goal in (
        ("source JPEGs", full, "bilinear", "<= 1.75"),
        ("source JPEGs, nearest", full, "nearest", ""),
        ("540x960 shards", small, "bilinear", "<= 1.1"),
    ):
        source = loader(shards, 0, interpolation=interpolation)
        count = len(source) * 4
        cpu, ratio = paired_ms(_epoch(source), unit, count, 5)
        out.append(Row(f"loader: batch in hand, {name}, CPU", cpu, decodes=ratio, goal=goal))
    epochs = [_epoch(loader(full, n)) for n in (0, 1, 2)]
    none, one, two = map(min, zip(*([best_ms(e, 1, count) for e in epochs] for _ in range(5)), strict=True))
    out.append(Row("loader: two threads over none", none / two, "x", goal=">= 1.8"))
    out.append(Row("loader: two threads over one and the stage's", one / two, "x"))
    out += _parts(full, unit, count)
    plain, ratio = paired_ms(lambda: _plain(full), unit, count, 1)
    out.append(Row("plain webdataset + PIL decoding, no points", plain, decodes=ratio))
    return out


def _parts(full, unit, count):
    """What the loading threads take, without resampling the images and without images at all."""
    out = []
    for name, decode, goal in (
        ("loader: threads' part, without resampling, CPU", "host", "<= 1.15"),
        ("loader: encoded images left to a device, before it", "device", "<= 0.12"),
    ):
        source = loader(full, 0, decode)
        source.stage = NoStage(source.stage)
        if decode == "host":
            source.make_images = NotResampled
        cpu, ratio = paired_ms(_epoch(source), unit, count, 5)
        out.append(Row(name, cpu, decodes=ratio, goal=goal))
    return out


def _plain(shards):
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        for name, data in sample.items():
            if name.endswith("jpg"):
                np.asarray(Image.open(io.BytesIO(data)))


_OPEN = """
import os, sys, time
from train.data.sources import LocalSource, SourceConfig

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
