"""Remote shards: the samples, order and batches of local ones, each fetched once, whatever the server does."""

import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time

import numpy as np
import pytest

from common.record import encode_json
from common.shard_index import ShardError, build_index, dump_index
from common.stores import open_store
from tests.faulty_server import FaultyServer
from tests.index_files import index_path, load_index
from tests.processes.client import Process
from tests.train.data.test_order import equal
from tests.train.data.test_reading import stream_of
from train.data.sources import LocalSource, RangeSource, SourceConfig, open_source
from train.data.sources.cache import Cache
from train.data.sources.table import neighbours

CAMERA_MEMBERS = ["sample.json", "cameras.npy.zst", "boxes.npy.zst"]
QUICK = {"pause_s": 0.01, "stall_s": 1.0, "retry_minutes": 0.0}


def members_of(source, *kinds):
    names = source.indexes[0].members
    return CAMERA_MEMBERS + [n for n in names if any(n.startswith(k) or n.endswith(k) for k in kinds)]


@pytest.fixture(scope="module")
def http(synth_shards):
    """A server of the shards, without faults until a test gives it some."""
    server = FaultyServer(synth_shards)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _no_faults(request):
    yield
    if "http" in request.fixturenames:
        request.getfixturevalue("http").reset()


def test_shards_written_to_a_bucket_are_those_of_the_folder(s3_shards, synth_shards):
    store = open_store(s3_shards)
    names = [p.name for p in synth_shards.iterdir() if not p.name.startswith(".")]
    assert store.list() == sorted(names)
    for name in names:
        assert store.read(name) == (synth_shards / name).read_bytes()


@pytest.mark.parametrize("form", ["/", "/train-<000..099>.tar", "/train-*.tar", "/train.manifest.json"])
def test_a_bucket_is_the_same_set_as_the_folder(s3_shards, synth_shards, form):
    local, remote = LocalSource(f"{synth_shards}/train-*.tar"), open_source(s3_shards + form, split="train")
    assert isinstance(remote, RangeSource)
    assert remote.keys == local.keys and remote.tokens == local.tokens
    assert remote.samples_sha256 == local.samples_sha256 and (remote.scene_of == local.scene_of).all()
    windows = [[i] for i in range(len(local))]
    assert (remote.order(windows, 3, 1, True) == local.order(windows, 3, 1, True)).all()


def test_batches_from_a_bucket_are_those_of_the_folder(s3_shards, synth_shards):
    for a, b in zip(stream_of(f"{s3_shards}/"), stream_of(f"{synth_shards}/train-*.tar"), strict=True):
        equal(a, b)


@pytest.mark.parametrize(
    "scheme, endpoint, account", [("gs", "base_url", {}), ("az", "endpoint", {"account_name": "account"})]
)
def test_google_s_and_azure_s_clients_read_what_lies_in_the_folder(synth_shards, tmp_path, scheme, endpoint, account):
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "shards").symlink_to(synth_shards)
    server = FaultyServer(tmp_path)
    options = {endpoint: server.address, "skip_signature": True, **account}
    try:
        remote = open_source(f"{scheme}://box/shards/train.manifest.json", SourceConfig(store_options=options, **QUICK))
        local = LocalSource(f"{synth_shards}/train-*.tar")
        members = members_of(local, ".jpg", "radar")
        assert remote.samples_sha256 == local.samples_sha256
        server.faults[:] = ["503"]
        assert remote.read(3, members) == local.read(3, members) and not server.faults
        server.lasting = "changed"
        with pytest.raises(ShardError, match="has changed"):
            remote.read(4, members)
    finally:
        server.close()


def test_members_side_by_side_take_one_request_and_others_two(http):
    source = open_source(f"{http.address}/train.manifest.json")
    for kinds, most in ((("radar", ".jpg"), 1), (("radar.00", "CAM_FRONT.jpg", "lidar.00"), 2)):
        members, made, read = members_of(source, *kinds), source.requests_made, source.bytes_read
        out = source.read(2, members)
        assert list(out) == members and source.requests_made - made <= most
        if most == 1:
            assert source.bytes_read - read <= 1.1 * sum(map(len, out.values()))


def test_a_member_of_the_shard_may_be_named_with_its_layer(http, synth_shards):
    named, layer = [("", "sample.json"), ("", "CAM_BACK.jpg")], ("maps", "drivable.npy.zst")
    for source in (LocalSource(f"{synth_shards}/train-*.tar"), open_source(f"{http.address}/train.manifest.json")):
        out = source.read(4, [*named, layer])
        plain = source.read(4, [member for _, member in named])
        assert out == dict(zip(named, plain.values(), strict=True))
        assert source.lacks(layer) == source.indexes[0].tar and source.lacks(named[0]) is None


def test_gaps_are_read_through_where_they_are_small():
    wanted = [(0, 10), (1 << 10, 10), (1 << 20, 10), (1 << 21, 10)]
    assert [len(g) for g in neighbours(wanted)] == [2, 1, 1]
    assert [len(g) for g in neighbours(wanted, 2)] == [3, 1]


def test_transient_faults_cost_time_only(http, synth_shards):
    remote = open_source(f"{http.address}/train-000.tar", SourceConfig(**QUICK))
    local = LocalSource(f"{synth_shards}/train-000.tar")
    members = members_of(local, ".jpg")
    for fault in ("503", "reset", "half", "wrong range", "stall"):
        http.faults[:] = [fault]
        assert remote.read(3, members) == local.read(3, members), fault
        assert not http.faults


@pytest.mark.parametrize(
    "fault, reason",
    [("503", "given up after 3 tries"), ("reset", "given up"), ("half", "given up"), ("404", "is not there"),
     ("403", "access is refused"), ("changed", "has changed"), ("ignores ranges", "--reader stream")],
)  # fmt: skip
def test_lasting_faults_end_in_one_line(http, fault, reason):
    source = open_source(f"{http.address}/train-000.tar", SourceConfig(attempts=3, **QUICK))
    http.lasting = fault
    started = time.monotonic()
    with pytest.raises(ShardError) as caught:
        source.read(3, members_of(source, ".jpg"))
    message = str(caught.value)
    assert time.monotonic() - started < 5
    assert reason in message and "train-000.tar" in message and source.keys[3] in message and "\n" not in message


def test_a_server_that_is_gone_ends_in_one_line(synth_shards):
    server = FaultyServer(synth_shards)
    source = open_source(f"{server.address}/train-000.tar", SourceConfig(attempts=2, **QUICK))
    server.close()
    with pytest.raises(ShardError, match="given up after 2 tries"):
        source.read(0, CAMERA_MEMBERS)


def test_interrupted_pauses_end_at_once(http):
    source = open_source(f"{http.address}/train-000.tar", SourceConfig(pause_s=60.0))
    http.lasting = "503"
    source.interrupt()
    started = time.monotonic()
    with pytest.raises(ShardError, match="closed"):
        source.read(0, CAMERA_MEMBERS)
    assert time.monotonic() - started < 5


def test_what_comes_next_is_fetched_ahead(http, synth_shards):
    local = LocalSource(f"{synth_shards}/train-*.tar")
    source = open_source(f"{http.address}/train.manifest.json", SourceConfig(requests=4))
    members = members_of(local, ".jpg")
    frames = [3, 1, 3, 7, 19, 0, 5, 6, 2, 8]
    source.begin(frames, [members] * len(frames))
    assert [source.read(f, members) for f in frames] == [local.read(f, members) for f in frames]
    assert source.requests_made == len(frames)
    source.begin(frames, [CAMERA_MEMBERS] * len(frames))
    assert source.read(3, members) == local.read(3, members)
    source.close()


def cached(http, folder, **options):
    return open_source(f"{http.address}/train.manifest.json", SourceConfig(cache_dir=str(folder), **options))


def read_all(source, members):
    return [source.read(i, members) for i in range(len(source))]


def used(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "used"))


def test_the_cache_holds_what_was_used_and_is_asked_first(http, synth_shards, tmp_path, capsys):
    source, local = cached(http, tmp_path), LocalSource(f"{synth_shards}/train-*.tar")
    members = members_of(local, "CAM_FRONT.jpg")
    first = read_all(source, members)
    assert first == read_all(local, members)
    assert used(tmp_path) == sum(len(data) for record in first for data in record.values())
    again, bytes_before = cached(http, tmp_path), http.bytes_sent
    assert read_all(again, members) == first and again.bytes_read == 0
    assert again.cache.hit_rate == 1.0
    more = [*members, "CAM_BACK.jpg"]
    assert read_all(again, more) == read_all(local, more)
    needed = sum(len(record["CAM_BACK.jpg"]) for record in read_all(local, more))
    assert again.bytes_read == needed and http.bytes_sent - bytes_before < needed + (1 << 20)
    again.close()
    assert "50 % of this process's 40 train keyframes came from the cache" in capsys.readouterr().err


def test_the_cache_serves_nothing_spoilt(http, tmp_path):
    members = CAMERA_MEMBERS
    first = read_all(cached(http, tmp_path), members)
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.parent.parent.parent.name == "v1")
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(bytes(files[1].stat().st_size))
    files[2].write_bytes(files[2].read_bytes() + b"x")
    again = cached(http, tmp_path)
    assert read_all(again, members) == first
    assert again.cache.misses == 3 and read_all(cached(http, tmp_path), members) == first


def rewritten(tar, out):
    """A copy of a shard, in the folder `out` with its index, whose scenes are described otherwise."""
    with tarfile.open(tar) as old, tarfile.open(out / tar.name, "w") as new:
        for member in old:
            data = old.extractfile(member).read()
            if member.name.endswith("sample.json"):
                sample = json.loads(data)
                data = encode_json(sample | {"scene": sample["scene"] | {"description": "rewritten"}})
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    index_path(out / tar.name).write_bytes(dump_index(build_index(out / tar.name)))


def test_the_cache_serves_nothing_of_a_set_that_was_rewritten(synth_shards, tmp_path):
    folder = shutil.copytree(synth_shards, tmp_path / "set")
    server = FaultyServer(folder)
    config = SourceConfig(cache_dir=str(tmp_path / "cache"))
    try:
        before = read_all(open_source(f"{server.address}/train-000.tar", config), CAMERA_MEMBERS)
        rewritten(synth_shards / "train-000.tar", folder)
        (folder / "train.manifest.json").unlink()
        source = open_source(f"{server.address}/train-000.tar", config)
        after = read_all(source, CAMERA_MEMBERS)
        assert source.cache.hits == 0 and after != before
        assert after == read_all(LocalSource(f"{folder}/train-000.tar"), CAMERA_MEMBERS)
    finally:
        server.close()


def test_the_cache_is_bounded_and_removes_its_own_files_only(http, synth_shards, tmp_path):
    local = LocalSource(f"{synth_shards}/train-*.tar")
    sizes = [sum(map(len, record.values())) for record in read_all(local, CAMERA_MEMBERS)]
    foreign = tmp_path / "v1" / ("0" * 32) / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    limit = sum(sizes) // 2
    small = cached(http, tmp_path, cache_gb=limit / 1e9)
    read_all(small, CAMERA_MEMBERS)
    assert limit / 2 < used(tmp_path) - 4 <= limit and foreign.exists()
    held = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert read_all(small, CAMERA_MEMBERS) and small.cache.hits > 0
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == held  # a set that is too large does not drive itself out
    for path in held - {foreign}:
        os.utime(path, (1, 1))
    later = cached(http, tmp_path, cache_gb=limit / 1e9)
    later.read(len(sizes) - 1, CAMERA_MEMBERS)
    assert used(tmp_path) - 4 <= limit and later.cache.misses == 1
    assert cached(http, tmp_path).read(len(sizes) - 1, CAMERA_MEMBERS) and foreign.exists()


_READER = """
import sys
from train.data.sources import SourceConfig, open_source
source = open_source(sys.argv[1], SourceConfig(cache_dir=sys.argv[2]))
members = source.indexes[0].members
source.read(0, members)
assert list(source.cache.root.glob("*/*/*"))
print("ready", flush=True)
while True:
    for i in range(len(source)):
        source.read(i, members)
    source.cache.root.joinpath("used").exists()
    for path in source.cache.root.glob("*/*/*"):
        path.unlink(missing_ok=True)
"""


def test_a_killed_reader_leaves_nothing_torn(http, synth_shards, tmp_path):
    local = LocalSource(f"{synth_shards}/train-*.tar")
    members = local.indexes[0].members
    for pause in (0.05, 0.15):
        process = Process("-c", _READER, f"{http.address}/train.manifest.json", tmp_path, stdout=subprocess.PIPE)
        assert process.stdout.readline() == "ready\n"
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    for path in tmp_path.glob("v1/*/*/[!.]*"):
        index = load_index(f"{synth_shards}/train-000.tar")
        if not index.tar_sha256.startswith(path.parent.parent.name):
            index = load_index(f"{synth_shards}/train-001.tar")
        wanted = index.sizes[int(path.parent.name)][[c for c in range(len(members)) if int(path.name, 16) >> c & 1]]
        assert path.stat().st_size == int(wanted.sum(dtype=np.int64))
    assert read_all(cached(http, tmp_path), members) == read_all(local, members)


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="--cache_dir cannot be made"):
        Cache(tmp_path / "file", 1000)


def test_a_cache_without_locks_says_so_once_and_works(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    cache = Cache(tmp_path, 100)
    assert cache._reserve(60) and cache._reserve(30)
    [note] = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: {tmp_path}: its file system knows no locks")
