"""Sources: shards in an S3 server on loopback against the same on the disk, and the cache."""

import itertools
import random
import statistics
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.shard_index import ABSENT, build_index, dump_index
from common.stores import open_store
from preprocess.layer import write_layer
from preprocess.nuscenes import CAMERAS
from tests.bench.measure import Row, best_ms, paired_ms
from tests.conftest import S3Server
from tests.index_files import index_path, load_index
from train.data import compile_data
from train.data.sources import SourceConfig, open_source
from train.data.sources.layered import with_layers

LARGEST_TAR = 10 << 20  # the server reads a whole object for each range of it, and is the slower side in any case
THREADS = 4
CONF = {"final_dim": (224, 400), "resize_lim": [0.8, 1.2], "cams": list(CAMERAS), "ncams": 6, "crop_offset": 0}
GRID = {"centroid": [[0.0, 1.0, 0.0]], "bounds": (-50, 50, -5, 5, -50, 50), "res_3d": (200, 8, 200)}


def rows(shards, folder, unit):
    """shards: tars, cut to LARGEST_TAR bytes. folder: for those, server and cache. unit: one run of the unit."""
    folder = Path(folder) / "sources"
    folder.mkdir()
    shards = [_beginning(s, folder) for s in shards]
    server = S3Server(folder)
    options = {"endpoint": server.endpoint, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}
    try:
        store = open_store(f"s3://{server.bucket}/shards", options)
        for path in (p for s in shards for p in (Path(s), Path(s.removesuffix(".tar") + ".idx.json"))):
            store.write(path.name, path.read_bytes())
        remote = f"{store.address}/train-*.tar"
        return (
            _fetching(remote, options, unit)
            + _layered(remote, options)
            + _cached(remote, shards, options, folder / "cache")
        )
    finally:
        server.process.kill()
        server.process.wait()


def _beginning(shard, folder):
    """A tar of the first keyframes of a shard, with its index; its path."""
    index, out = load_index(shard), folder / Path(shard).name
    ends = np.where(index.sizes == ABSENT, 0, index.offsets + index.sizes).max(axis=1)
    end = -(-int(ends[ends <= LARGEST_TAR].max()) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    with open(shard, "rb") as whole, open(out, "wb") as file:
        file.write(whole.read(end) + bytes(2 * tarfile.BLOCKSIZE))
    index_path(out).write_bytes(dump_index(build_index(out)))
    return str(out)


def _fetching(remote, options, unit):
    source = open_source(remote, SourceConfig(store_options=options))
    members = [m for m in source.indexes[0].members if not m.startswith("lidar")]
    keyframes = list(range(len(source))) * 3
    count = len(keyframes)

    def fetch():
        with ThreadPoolExecutor(THREADS) as pool:
            return [sum(map(len, out.values())) for out in pool.map(lambda i: source.read(i, members), keyframes)]

    before = source.bytes_read
    needed = sum(fetch())
    over = (source.bytes_read - before) / needed
    wall = best_ms(fetch, 3, count, time.perf_counter)
    cpu, ratio = paired_ms(fetch, unit, count)
    return [
        Row("S3 on loopback: fetched by four threads", 1e3 / wall, "1/s", goal=">= 200"),
        Row("S3 on loopback: cameras and radar, CPU", cpu, decodes=ratio, goal="<= 0.12"),
        Row("S3 on loopback: bytes fetched over needed", over, "", goal="<= 1.10"),
    ]


def _layered(remote, options):
    """How many keyframes per second come with a layer beside the shards, over how many come without: pairs in turn."""
    write_layer(remote, "bench", _member, store_options=options)
    config = SourceConfig(store_options=options)
    alone = open_source(remote, config)
    layered = with_layers(open_source(remote, config), {"bench": ("map.bin",)}, config, open_source)
    members = [m for m in alone.indexes[0].members if not m.startswith("lidar")]
    keyframes = list(range(len(alone))) * 3

    def fetch(source, wanted):
        """As the loader does: it says what comes next."""
        source.begin(keyframes, itertools.repeat(wanted, len(keyframes)))
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda number: source.read(number, wanted), keyframes))
        source.close()

    both = ((alone, members), (layered, [*members, ("bench", "map.bin")]))
    pairs = [
        [best_ms(lambda own=own: fetch(*own), 1, len(keyframes), time.perf_counter) for own in both] for _ in range(5)
    ]
    ratio = statistics.median(without / beside for without, beside in pairs)
    return [Row("S3 on loopback: rate with a layer over without", ratio, "x", goal=">= 0.9")]


def _member(sample):
    """As many bytes as the map around a keyframe takes."""
    return {"map.bin": random.Random(sample.key).randbytes(6000)}


def _cached(remote, shards, options, folder):
    shared = {**GRID, "bsz": 4, "nworkers": 1, "use_lidar": False}
    cached, _ = compile_data(remote, None, CONF, **shared, cache_dir=str(folder), store_options=options)
    local, _ = compile_data(shards, None, CONF, **shared)
    list(cached)  # fills the cache
    pairs = [
        [best_ms(lambda s=s: list(s), 1, len(s) * 4, time.perf_counter) for s in (cached, local)] for _ in range(3)
    ]
    ratio = sorted(a / b for a, b in pairs)[1]
    return [Row("second epoch from the cache over local, batch in hand", ratio, "x", goal="<= 1.2")]
