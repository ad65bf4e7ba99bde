"""The two readers: the same batches, clear errors within seconds, nothing left behind."""

import functools
import gc
import http.server
import os
import re
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import torch

from common.shard_index import ShardError, build_index, dump_index
from common.shard_set import find_shards
from common.stores.retries import Retry
from tests.index_files import index_path
from tests.test_schema2 import SCHEMA_2
from tests.train.data.test_buffers import resident_mb
from tests.train.data.test_order import CONF, GRID, equal, loaders
from train.data import DataError, compile_data
from train.data.sources import RangeSource, SourceConfig, open_source
from train.data.sources.stream import PipeSource, stream_order

MEMBERS = ("imgs", "lidar_data", "radar_data", "seg_bev")


@pytest.fixture
def folder(synth_shards, tmp_path):
    """A copy of the shards to damage."""
    return shutil.copytree(synth_shards, tmp_path / "shards")


@pytest.fixture(scope="module")
def server(synth_shards):
    """Address of an HTTP server of the shards."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=synth_shards))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def test_a_command_that_hangs_on_an_index_ends_in_one_line(synth_shards):
    shards = find_shards(f"pipe:sleep 60; cat {synth_shards}/train-000.tar", retry=Retry(stall_s=0.1))
    started = time.monotonic()
    with pytest.raises(ShardError, match=r"index cannot be read: pipe:sleep 60.*nothing arrived for 0.4 s") as caught:
        PipeSource(shards)
    assert time.monotonic() - started < 20 and "\n" not in str(caught.value)


def stream_of(pattern, **options):
    options = {"bsz": 4, "nworkers": 2, "nsweeps": 2, "seed": 3} | options
    return compile_data(pattern, None, CONF, **GRID, **options)[0]


@pytest.mark.parametrize("kind", ["pipe", "http", "file", "memory", "local"])
def test_streams_give_the_records_that_files_give(synth_shards, server, kind):
    patterns = {
        "pipe": f"pipe:cat {synth_shards}/train-<000..001>.tar",
        "http": f"{server}/train-<000..001>.tar",
        "file": f"file://{synth_shards}/train-<000..001>.tar",
        "memory": "memory://stream/train-<000..001>.tar",
        "local": f"{synth_shards}/train-*.tar",
    }
    if kind == "memory":
        import fsspec

        fsspec.filesystem("memory").put(f"{synth_shards}/train-*", "/stream/")
    streamed = stream_of(patterns[kind], reader="auto" if kind == "pipe" else "stream", shuffle=False)
    indexed = stream_of(patterns["local"], shuffle=False)
    assert streamed.reader.is_stream and not indexed.reader.is_stream
    count = 0
    for a, b in zip(streamed, indexed, strict=True):
        equal(a, b)
        count += 1
    assert count == len(streamed) == 5


def test_streamed_epochs_are_permutations_and_resume_exactly(synth_shards):
    pattern = f"pipe:cat {synth_shards}/train-<000..001>.tar"
    straight = stream_of(pattern, seqlen=2)
    batches = [b for _ in range(2) for b in straight]
    per_epoch = len(straight)
    first, second = batches[:per_epoch], batches[per_epoch:]
    assert [b.indices for b in first] != [b.indices for b in second]
    assert len({i for b in first for i in b.indices}) == 4 * per_epoch
    stopped = stream_of(pattern, seqlen=2, nworkers=1)
    for _, a in zip(range(2), stopped, strict=False):
        assert a.tokens
    resumed = stream_of(pattern, seqlen=2)
    resumed.load_state_dict({"epoch": 0, "position": 2})
    for a, b in zip(batches[2:per_epoch], resumed, strict=True):
        equal(a, b)


BOXES_ALONE = {"use_cameras": False, "use_lidar": False, "use_radar": False}


@pytest.mark.parametrize(("form", "nworkers"), [("pipe:cat {}/train-<000..001>.tar", 2), ("{}/train-*.tar", 0)])
def test_categories_that_a_stream_does_not_have_end_its_first_epoch(synth_shards, form, nworkers):
    def batches(*categories, position=0, **options):
        options = {"reader": "stream", "target_categories": categories, "nworkers": nworkers} | BOXES_ALONE | options
        loader = stream_of(form.format(synth_shards), **options)
        loader.load_state_dict({"epoch": 0, "position": position})
        seen = []
        try:
            for _ in range(2):
                seen += loader
        except ValueError as error:
            return len(seen), str(error)
        return len(seen), ""

    count, told = batches("vehicle.car", "vehicles")
    assert count == 5 and told.startswith("--target_categories vehicles: no box of the epoch") and "vehicle.car" in told
    assert batches("vehicle.car", "human") == (10, "")
    assert batches("vehicles", position=3)[0] == 2 + 5  # what a resumed run reads first is no whole epoch
    assert batches("vehicle.car", "vehicles", world_size=2) == (10, "")  # the other rank may have met it
    assert batches("vehicles", world_size=2, rank=1)[0] == 5


def test_categories_that_the_shards_do_not_have_are_told_before_an_epoch(synth_shards):
    with pytest.raises(ValueError, match="--target_categories vehicles: no box of the shards .* vehicle.car"):
        stream_of(f"{synth_shards}/train-*.tar", target_categories=("vehicle.car", "vehicles"))
    assert stream_of(f"{synth_shards}/train-*.tar", target_categories=("vehicles",), rank=1, world_size=2)


def test_another_file_system_s_address_is_read_by_ranges(synth_shards):
    import fsspec

    fsspec.filesystem("memory").put(f"{synth_shards}/train*", "/ranges/")
    remote, local = stream_of("memory://ranges/", seqlen=2), stream_of(f"{synth_shards}/train-*.tar", seqlen=2)
    assert isinstance(remote.reader, RangeSource)
    for a, b in zip(remote, local, strict=True):
        equal(a, b)


def test_shards_of_schema_2_give_the_same_batches_as_a_stream():
    options = {"bsz": 2, "nworkers": 0, "nsweeps": 2, "shuffle": False}
    train, _ = compile_data(f"{SCHEMA_2}/train-*.tar", None, CONF, **GRID, **options)
    stream, _ = compile_data(f"{SCHEMA_2}/train-*.tar", None, CONF, **GRID, **options, reader="stream")
    for a, b in zip(stream, train, strict=True):
        equal(a, b)


def test_a_val_set_without_a_sample_is_refused(synth_shards):
    options = {"bsz": 2, "nworkers": 0, "nsweeps": 2, "seqlen": 5}
    with pytest.raises(ValueError, match="val shards hold no sample of 5 keyframes; lower seqlen"):
        compile_data(None, f"{synth_shards}/val-*.tar", CONF, **GRID, **options)


@pytest.mark.parametrize("buffer", [1, 5, 1000])
def test_stream_order_is_pure_and_complete(buffer):
    shard_of = np.repeat(np.arange(7), 9)
    windows = [[i] for i in range(63)]
    order, shards = stream_order(shard_of, windows, 1, 0, True, buffer)
    assert sorted(order) == list(range(63)) and sorted(shards) == list(range(7))
    again, _ = stream_order(shard_of, windows, 1, 0, True, buffer)
    other, _ = stream_order(shard_of, windows, 1, 1, True, buffer)
    assert (order == again).all() and (order != other).any()


@pytest.mark.parametrize("ahead", [1, 5])
def test_prefetch_depth_changes_nothing(synth_shards, ahead):
    plain, deep = stream_of(f"{synth_shards}/train-*.tar"), stream_of(f"{synth_shards}/train-*.tar")
    deep.batches_ahead = ahead
    for a, b in zip(plain, deep, strict=True):
        equal(a, b)


def run_out(loader):
    started = time.monotonic()
    with pytest.raises((DataError, ShardError)) as caught:
        list(loader)
    assert time.monotonic() - started < 20 and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["", "pipe:cat "])
def test_damaged_shards_are_named_within_seconds(folder, prefix):
    tar = folder / "train-001.tar"
    whole = tar.read_bytes()
    loader = stream_of(f"{prefix}{folder}/train-<000..001>.tar")
    with open(tar, "r+b") as file:
        file.truncate(len(whole) // 2)
    message = run_out(loader)
    assert "train-001.tar" in message and "scene-" in message
    tar.unlink()
    assert "train-001.tar" in run_out(stream_of_indexes(loader))
    tar.write_bytes(whole)
    index = build_index(tar)
    column = index.members.index("radar.00.planes.zst")
    damaged = bytearray(whole)
    damaged[int(index.offsets[2, column]) + 6] ^= 255
    tar.write_bytes(damaged)
    checked = stream_of(f"{prefix}{folder}/train-<000..001>.tar", verify_reads=True)
    message = run_out(checked)
    assert index.keys[2] in message and "radar.00" in message and "is damaged" in message


def stream_of_indexes(loader):
    """The loader again, at the start of its epoch: its indexes are known, its tars are opened anew."""
    loader.load_state_dict({"epoch": 0, "position": 0})
    return loader


def test_images_that_the_device_decodes_are_those_of_the_threads(synth_shards):
    for a, b in zip(every_camera(synth_shards, "device"), every_camera(synth_shards, "host"), strict=True):
        assert (a.imgs - b.imgs).abs().max() <= 1 / 255
        for name in ("intrins", "lidar_data", "radar_data", "seg_bev"):
            assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("decode", ["host", "device"])
def test_a_member_that_does_not_decode_names_shard_and_key(folder, decode):
    tar = folder / "train-000.tar"
    index = build_index(tar)
    column = index.members.index("CAM_FRONT.jpg")
    data = bytearray(tar.read_bytes())
    start = int(index.offsets[1, column])
    data[start : start + int(index.sizes[1, column])] = bytes(int(index.sizes[1, column]))
    tar.write_bytes(data)
    index_path(tar).write_bytes(dump_index(build_index(tar)))
    (folder / "train.manifest.json").unlink()  # it would tell already that this is another tar
    message = run_out(every_camera(folder, decode))
    assert "train-000.tar" in message and index.keys[1] in message and "CAM_FRONT.jpg" in message


def every_camera(folder, decode):
    conf = {**CONF, "ncams": 6}
    return compile_data(f"{folder}/train-*.tar", None, conf, **GRID, bsz=4, nworkers=2, decode=decode)[0]


def test_a_stalled_source_is_given_up(synth_shards):
    half = (synth_shards / "train-000.tar").stat().st_size // 2
    command = f"head -c {half} {synth_shards}/train-000.tar; sleep 600"
    loader = stream_of(f"{synth_shards}/train-000.tar", reader="stream")
    loader.reader.addresses[0], loader.reader.stall_s = f"pipe:{command}", 1.0
    started = time.monotonic()
    assert "nothing arrived" in run_out(loader)
    assert time.monotonic() - started < 10
    left = [t for t in threading.enumerate() if t.name in ("stream", "loader")]
    assert not left

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/train-000.tar"
        for reader in ("stream", "auto"):
            with pytest.raises(ShardError, match="given up after 2 tries"):
                open_source(address, SourceConfig(reader, attempts=2, pause_s=0.01, stall_s=0.3))


@pytest.mark.parametrize("form", ["command", "reader"])
def test_without_workers_a_stream_is_read_without_a_thread_and_as_with_one(synth_shards, form):
    shards = [f"{synth_shards}/train-00{n}.tar" for n in (0, 1)]
    shards = [f"pipe:cat {shard}" for shard in shards] if form == "command" else shards
    want = list(stream_of(shards, reader="stream"))
    before = threading.active_count()
    alone = stream_of(shards, reader="stream", nworkers=0)
    batches = iter(alone)
    for batch, other in zip(batches, want, strict=True):
        assert threading.active_count() == before
        assert batch.tokens == other.tokens and torch.equal(batch.imgs, other.imgs)
    if form == "command":
        alone.reader.addresses[0], alone.reader.stall_s = "pipe:sleep 600", 0.5
        assert "nothing arrived" in run_out(alone)
    descriptors = open_files()
    next(iter(stream_of(shards, reader="stream", nworkers=0)))  # and left
    assert open_files() <= descriptors + 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("false", "ended with exit code 1"),
        ("head -c 700000 {tar}; exit 22", "ended with exit code 22"),  # as curl where the server breaks off
        ("head -c 1536 {tar}; kill -9 $$", "ended with signal 9"),
        ("head -c 700000 {tar}", "scene-.*cut short|scene-.*unexpected end"),
        ("true", "scene-.*empty"),
    ],
)
def test_a_command_that_fails(synth_shards, command, said):
    """Named with its exit code, whatever the half that came looks like; what ended well, with the sample that it lacks."""
    loader = stream_of(f"{synth_shards}/train-000.tar", reader="stream", nworkers=0)
    command = f"pipe:{command.format(tar=synth_shards / 'train-000.tar')}"
    loader.reader.addresses[0] = command
    message = run_out(loader)
    assert command in message and re.search(said, message), message


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("cat nowhere.tar", "ended with exit code 1"),
        ("echo half: nowhere.tar", "the command gave no index"),
        ("true nowhere.tar", "the command gave no index"),
    ],
)
def test_a_command_that_gives_no_index(command, said):
    with pytest.raises(ShardError, match=said) as caught:
        stream_of(f"pipe:{command}")
    assert f"pipe:{command}".replace(".tar", ".idx.json") in str(caught.value)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def our_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("loader", "stream"))]


@pytest.mark.parametrize("reader", ["indexed", "stream"])
@pytest.mark.parametrize("end", ["exhausted", "abandoned", "exception", "interrupt"])
def test_nothing_is_left_behind(folder, reader, end):
    loader = stream_of(f"{folder}/train-*.tar", reader=reader)
    before = open_files()
    if end == "exhausted":
        list(loader)
    elif end == "abandoned":
        iterator = iter(loader)
        next(iterator)
        assert our_threads()
        del iterator
    elif end == "exception":
        with open(folder / "train-001.tar", "r+b") as file:
            file.truncate(5000)
        run_out(loader)
    else:
        with pytest.raises(KeyboardInterrupt):
            for _ in loader:
                raise KeyboardInterrupt
    gc.collect()
    deadline = time.monotonic() + 5
    while (our_threads() or open_files() > before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not our_threads() and open_files() <= before


def test_memory_stays_flat(synth_shards):
    loader = stream_of(f"{synth_shards}/train-*.tar")
    for _ in range(4):
        list(loader)
    before = resident_mb()
    for _ in range(12):
        for _batch in loader:
            pass
    assert resident_mb() - before < 60  # 240 samples of 27 MB of pixels each went through


def test_a_slow_consumer_keeps_its_buffers(synth_shards):
    loader = stream_of(f"{synth_shards}/train-*.tar")
    slow = []
    for batch in loader:
        time.sleep(0.2)
        slow.append(batch)
    for a, b in zip(slow, stream_of(f"{synth_shards}/train-*.tar"), strict=True):
        equal(a, b)
    assert all(torch.isfinite(getattr(slow[0], name)).all() for name in MEMBERS)


def test_wrong_readers_are_told(synth_shards):
    with pytest.raises(ValueError, match="auto, indexed, stream"):
        stream_of(f"{synth_shards}/train-*.tar", reader="magic")
    with pytest.raises(ValueError, match="only be streamed"):
        stream_of("pipe:cat train-000.tar", reader="indexed")
    with pytest.raises(ValueError, match="cache_dir"):
        stream_of(f"{synth_shards}/train-*.tar", reader="stream", cache_dir="x")
    train, _ = loaders(synth_shards, verify_reads=True)
    assert next(iter(train)).tokens
