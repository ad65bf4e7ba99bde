"""What befalls shards, caches and loaders under a run: it is noticed, or costs speed alone."""

import os
import resource
import shutil
import threading
import time

import pytest

from common.shard_index import ShardError, dump_index
from common.shard_set import find_shards
from tests.faulty_server import FaultyServer
from tests.index_files import index_path, load_index
from tests.train.data.test_order import equal
from tests.train.data.test_reading import stream_of
from train.data.sources import LocalSource, PipeSource, SourceConfig, open_source
from train.data.sources import cache as cache_file
from train.data.sources.cache import Cache
from train.data.sources.open_files import OpenFiles
from train.errors import DataError

MEMBERS = ["sample.json", "CAM_FRONT.jpg"]


@pytest.fixture
def folder(small_shards, tmp_path):
    """A copy of the shards to change."""
    return shutil.copytree(small_shards, tmp_path / "shards")


@pytest.fixture
def server(folder):
    server = FaultyServer(folder)
    yield server
    server.close()


def tars(folder):
    return sorted(folder.glob("train-*.tar"))


def exchanged(path):
    """Another tar takes a name, as when a set is made anew."""
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes()[512:] + bytes(512))
    os.replace(new, path)


def overwritten(path):
    data = path.read_bytes()
    path.write_bytes(data[512:] + bytes(512))


def cut_short(path):
    os.truncate(path, 2000)


@pytest.mark.parametrize("change", [exchanged, overwritten, cut_short])
@pytest.mark.parametrize("opened", [False, True])
def test_a_tar_that_changes_under_a_run_is_noticed(folder, change, opened):
    source = LocalSource(f"{folder}/train-*.tar")
    whole = source.read(0, MEMBERS)
    if not opened:
        source.close()
    change(tars(folder)[0])
    if opened and change is exchanged:
        assert source.read(0, MEMBERS) == whole  # of the file that it holds open
        source.close()
    with pytest.raises(ShardError, match=r"train-000.tar: .*(exchanged|changed) after it was opened; start again"):
        source.read(0, MEMBERS)


def test_a_tar_that_was_copied_anew_under_a_run_is_read_on(folder):
    source = LocalSource(f"{folder}/train-*.tar")
    whole = source.read(0, MEMBERS)
    for tar in tars(folder):
        tar.write_bytes(tar.read_bytes())
        os.utime(tar, (1, 1))
    assert source.read(0, MEMBERS) == whole


def test_more_files_than_descriptors(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}").write_bytes(b"%02d" % number)
    paths = [tmp_path / f"{number}" for number in range(40)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd"))

    def read(files, number):
        with files.use(number) as file:
            return os.pread(file, 2, 0)

    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 8, hard))
        for most in (None, 1000):  # few enough from the start, and as many as there are
            files = OpenFiles(paths, most)
            assert [read(files, number) for number in range(40)] == [b"%02d" % number for number in range(40)]
            assert len(files) < 20
            files.close()
            assert len(files) == 0 and len(os.listdir("/proc/self/fd")) <= taken + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(FileNotFoundError):
        read(OpenFiles([tmp_path / "none"]), 0)


def test_a_descriptor_in_use_is_not_closed_and_its_number_means_no_other_file(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    files = OpenFiles([tmp_path / "a", tmp_path / "b"], 1)
    with files.use(0) as first:
        files.close()
        with files.use(1) as second, files.use(0) as again:
            assert len({first, second, again}) == 3
            assert [os.pread(file, 1, 0) for file in (first, second, again)] == [b"a", b"b", b"a"]
    files.close()
    for descriptor in (first, second, again):
        with pytest.raises(OSError):
            os.fstat(descriptor)


def test_an_error_does_not_wait_for_what_later_batches_wait_for(server):
    """One read is refused for good; the one behind it is of a store that is waited for in minutes."""
    loader = stream_of(f"{server.address}/train-000.tar", nworkers=1, requests=1, retry_minutes=7.0)
    assert loader.reader.shards.retry.minutes == 7.0
    server.faults, server.lasting = ["403"], "503"
    began = time.monotonic()
    with pytest.raises(DataError, match="access is refused"):
        next(iter(loader))
    assert time.monotonic() - began < 20


def test_one_batch_may_be_asked_for_while_epochs_end(folder):
    """Reads of one thread go on where another one closes the shards, and read no other file."""
    source = LocalSource(f"{folder}/train-*.tar")
    want = [source.read(n, MEMBERS) for n in range(len(source))]
    ended, wrong = threading.Event(), []

    def read():
        while not ended.is_set():
            wrong.extend(n for n in range(len(source)) if source.read(n, MEMBERS) != want[n])

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        source.close()
        os.close(os.open(os.devnull, os.O_RDONLY))  # takes a number that was freed
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reads_of_another_thread_outlive_an_epoch_that_is_ended(server):
    source = open_source(f"{server.address}/train.manifest.json", SourceConfig(requests=2))
    frames = list(range(len(source)))
    want = [source.read(n, MEMBERS) for n in frames]
    with server.hold(".tar", 50):  # nothing is answered before the epoch has ended
        source.begin(frames, [MEMBERS] * len(frames))
        got = []
        reader = threading.Thread(target=lambda: got.append(source.read(frames[-1], MEMBERS)))
        late = threading.Thread(target=lambda: got.append(source.read(frames[3], MEMBERS)))
        for thread in (reader, late):
            thread.start()
        time.sleep(0.2)
        threading.Timer(0.3, lambda: server._held[2].set()).start()
        source.close()
    for thread in (reader, late):
        thread.join(20)
    assert sorted(map(len, got)) == [2, 2] and all(one in want for one in got)


@pytest.mark.parametrize("nworkers", [0, 2])
def test_a_new_iterator_of_a_loader_ends_the_last_one(folder, nworkers):
    options = {"bsz": 2, "nworkers": nworkers, "nsweeps": 1, "shuffle": False}
    loader, straight = (stream_of(f"{folder}/train-*.tar", **options) for _ in range(2))
    want = list(straight)
    first = iter(loader)
    equal(next(first), want[0])
    second = iter(loader)
    equal(next(second), want[1])
    with pytest.raises(RuntimeError, match="iterated anew"):
        next(first)
    equal(next(second), want[2])
    del first
    assert len(list(second)) == len(want) - 3 and loader.epoch == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_a_stream_keeps_what_was_asked_for_alone(folder):
    source = PipeSource(f"{folder}/train-*.tar")
    windows = [[n] for n in range(len(source))]
    order = source.order(windows, 0, 0, False)
    source.begin(order.tolist(), [MEMBERS] * len(order))
    deadline = time.monotonic() + 20
    while len(source._session.records) < len(order) and time.monotonic() < deadline:
        time.sleep(0.01)
    held = sum(len(data) for record in source._session.records.values() for data in record.values())
    local = LocalSource(f"{folder}/train-*.tar")
    assert held == sum(len(data) for n in order for data in local.read(int(n), MEMBERS).values())
    assert source.read(0, MEMBERS) == local.read(0, MEMBERS)
    with pytest.raises(ShardError, match="CAM_BACK.jpg was not asked for"):
        source.read(1, [*MEMBERS, "CAM_BACK.jpg"])
    source.close()


def test_a_stream_waits_for_a_store_that_is_away(server):
    config = SourceConfig("stream", pause_s=0.01, stall_s=0.3, retry_minutes=1.0)
    source = open_source(f"{server.address}/train.manifest.json", config)
    windows = [[n] for n in range(len(source))]
    frames = source.order(windows, 0, 0, False).tolist()
    server.faults[:] = ["503"] * 8  # for longer than stall_s
    source.begin(frames, [MEMBERS] * len(frames))
    assert len(source.read(0, MEMBERS)) == 2
    source.close()


def test_a_stream_names_the_member_of_a_tar_that_is_not_its_index_s(folder):
    index = load_index(tars(folder)[0])
    index.sizes = index.sizes.copy()
    index.sizes[1, index.members.index("CAM_FRONT.jpg")] -= 1
    index_path(tars(folder)[0]).write_bytes(dump_index(index))
    source = PipeSource(tars(folder)[0])
    frames = source.order([[n] for n in range(len(source))], 0, 0, False).tolist()
    source.begin(frames, [MEMBERS] * len(frames))
    with pytest.raises(ShardError, match=r"train-000.tar: CAM_FRONT.jpg of \S+_0001 .* copy both anew"):
        source.read(1, MEMBERS)
    source.close()


def test_a_damaged_member_is_named_with_its_file_and_what_to_do(folder):
    tar = tars(folder)[0]
    index = load_index(tar)
    with open(tar, "r+b") as file:
        file.seek(int(index.offsets[0, index.members.index("CAM_FRONT.jpg")]) + 9)
        file.write(b"\0\0\0")
    source = LocalSource(tar, verify_reads=True)
    with pytest.raises(
        ShardError, match=r"train-000.tar: the file is damaged: CAM_FRONT.jpg of \S+_0000 .*copy the file anew"
    ):
        source.read(0, MEMBERS)


def test_shards_of_other_options_are_named_with_what_differs(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    for place in (folder, other):
        (place / "train.manifest.json").unlink()
    tar = tars(other)[0]
    index = load_index(tar)
    index.facts = {**index.facts, "lidar_columns": 4}
    index_path(tar).write_bytes(dump_index(index))
    for patterns in ([tars(folder)[0], tar], [tar, tars(folder)[0]]):
        with pytest.raises(ShardError, match="made with other options than .* differs in lidar_columns"):
            LocalSource(find_shards(list(map(str, patterns))))


# A node's cache.


def cached(server, folder, **options):
    return open_source(f"{server.address}/train.manifest.json", SourceConfig(cache_dir=str(folder), **options))


def test_a_cache_that_fails_costs_speed_alone(server, tmp_path, monkeypatch, capsys):
    want = [cached(server, tmp_path / "a").read(n, MEMBERS) for n in range(3)]

    def removed(source):
        shutil.rmtree(tmp_path / "a" / "v1")

    def a_file_instead(source):
        removed(source)
        (tmp_path / "a" / "v1").write_text("")

    def refused(source):
        def no(*_, **__):
            raise PermissionError(13, "Permission denied")

        for name in ("utime", "replace", "unlink", "mkdir"):
            monkeypatch.setattr(cache_file.os, name, no)

    for fault in (removed, a_file_instead, refused):
        shutil.rmtree(tmp_path / "a")
        source = cached(server, tmp_path / "a")
        assert source.read(0, MEMBERS) == want[0]
        file = next(p for p in (tmp_path / "a").glob("v1/*/0/*"))
        file.write_bytes(file.read_bytes()[:-1])  # torn besides
        capsys.readouterr()
        fault(source)
        assert [source.read(n, MEMBERS) for n in range(3)] == want
        said = [line for line in capsys.readouterr().err.splitlines() if "--cache_dir" in line]
        assert len(said) == 1 and "cannot be used" in said[0], fault
        monkeypatch.undo()


def test_a_cache_of_another_user_is_read_and_not_written(server, tmp_path, monkeypatch, capsys):
    first = cached(server, tmp_path)
    want = [first.read(n, MEMBERS) for n in (0, 1)]

    def no(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("touch", "write_bytes"):
        monkeypatch.setattr(cache_file.Path, name, no)
    monkeypatch.setattr(cache_file.os, "utime", no)
    source = cached(server, tmp_path)
    assert [source.read(n, MEMBERS) for n in (0, 1)] == want and source.cache.hits == 2
    assert "cannot be used (Permission denied)" in capsys.readouterr().err


def test_keyframes_without_the_member_count_neither_as_kept_nor_as_fetched(server, tmp_path):
    source = cached(server, tmp_path)
    for n in (0, 1):
        assert source.read(n, ["no-such.jpg"]) == {}
    assert (source.cache.hits, source.cache.misses) == (0, 0)


def test_a_cache_full_of_used_files_is_not_walked_again(server, tmp_path, monkeypatch):
    sizes = [len(b"".join(cached(server, tmp_path / "x").read(n, MEMBERS).values())) for n in (0, 1, 2)]
    clock, walks = [0.0], []
    monkeypatch.setattr(cache_file.time, "monotonic", lambda: clock[0])
    walk = Cache._scan
    monkeypatch.setattr(Cache, "_scan", lambda self: walks.append(1) or walk(self))
    source = cached(server, tmp_path / "y", cache_gb=(max(sizes) + 10) / 1e9)
    for _ in range(20):
        for n in (0, 1, 2):
            source.read(n, MEMBERS)
        clock[0] += 61.0
    assert len(walks) == 1 and source.cache.hits == 19


@pytest.mark.parametrize("what", ["a read", "a write", "opening"])
def test_a_cache_whose_disk_hangs_costs_speed_alone(server, tmp_path, monkeypatch, capsys, what):
    """A pipe that nobody writes to hangs whoever opens it, as a disk behind a network does; later it answers again."""
    monkeypatch.setattr(cache_file, "READ_S", 0.2)
    monkeypatch.setattr(cache_file, "WRITE_S", 0.2)
    want = [cached(server, tmp_path / "plain").read(n, MEMBERS) for n in range(3)]
    folder = tmp_path / "hanging"
    first = cached(server, folder)
    [first.read(n, MEMBERS) for n in range(2)]
    [kept] = (folder / "v1").glob("*/0/*")
    pipe = kept if what == "a read" else folder / "v1" / ".lock"
    aside = pipe.rename(tmp_path / "aside")
    os.mkfifo(pipe)
    source = first if what == "a write" else cached(server, folder)
    began = time.monotonic()
    assert [source.read(n, MEMBERS) for n in range(3)] == want
    assert time.monotonic() - began < 20  # a disk that hangs would hold it for good
    assert "no answer in 0.2 s" in capsys.readouterr().err
    patience = source.cache._reading if what == "a read" else source.cache._writing
    assert patience.hanging == 1
    os.close(os.open(pipe, os.O_RDWR))  # from now on it answers
    aside.rename(pipe)
    deadline = time.monotonic() + 5
    while patience.hanging and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.read(1, MEMBERS) == want[1] and source.cache.hits >= 1
