"""Stores, manifests, and what --shards may be: the same set however it is written, and nothing missing in silence."""

import errno
import fcntl
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest

from common import addresses
from common.errors import Missing, ShardError, StoreError
from common.files import Busy, flush_folder, locked, write_atomically
from common.manifest import Manifest, ManifestShard, dump_manifest, parse_manifest
from common.shard_index import dump_sealed
from common.shard_set import find_beside, find_shards, load_indexes
from common.stores import find, local_copy, open_store, parse_options
from common.stores.retries import Retry
from preprocess.index import main as index_main
from preprocess.verify import verify
from tests.conftest import REPOSITORY
from tests.faulty_server import FaultyServer
from train.data.sources import open_source

QUICK = Retry(attempts=2, pause_s=0.01, stall_s=1.0, minutes=0)


def made(folder, train=3, val=1, listed=None):
    """A folder of empty tars with manifests; `listed` train shards in the manifest."""
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}-{i:03d}.tar" for i in range(count)]
        for name in names:
            (folder / name).write_bytes(b"")
        if listed is not None:
            shards = [f"{split}-{i:03d}.tar" for i in range(listed)] if split == "train" else names
            entries = tuple(ManifestShard(name, 10, ["scene-1"], 0, "0" * 64) for name in shards)
            (folder / f"{split}.manifest.json").write_bytes(dump_manifest(Manifest(split, "v1.0-mini", entries)))
    return folder


def names_of(shards):
    return [addresses.split(s)[1] for s in shards]


ALL = ["train-000.tar", "train-001.tar", "train-002.tar"]
FORMS = [
    "",
    "/",
    "/train.manifest.json",
    "/train-*.tar",
    "/train-<000..099>.tar",
    "/train-{000..002}.tar",
    "/train-00[0-2].tar",
]


@pytest.mark.parametrize("listed", [None, 3])
@pytest.mark.parametrize("name", ["out", "out [x]", "o*t", "a,b", "what?", "r {1..3}"])
def test_every_form_means_the_same_shards(tmp_path, name, listed):
    folder = made(tmp_path / name, listed=listed)
    for form in FORMS if listed else [f for f in FORMS if "manifest" not in f]:
        found = find_shards(f"{folder}{form}", "train")
        assert names_of(found) == ALL, form
        assert len(found.notes) == (not listed) and all("no such manifest" in note for note in found.notes)
        assert all(addresses.split(s)[0].rstrip("/") == str(folder) for s in found)
    whole = find_shards(folder)
    assert names_of(whole) == [*ALL, "val-000.tar"]
    assert names_of(find_beside(find_shards(f"{folder}/train-*.tar"), "val")) == ["val-000.tar"]
    assert names_of(find_shards(folder / "train-001.tar")) == ["train-001.tar"]


def test_lists_with_commas_and_several_patterns(tmp_path):
    folder = made(tmp_path / "out", listed=3)
    listed = find_shards(f"{folder}/train-000.tar,{folder}/train-002.tar")
    assert names_of(listed) == ["train-000.tar", "train-002.tar"]
    again = find_shards([f"{folder}/train-002.tar", f"{folder}/train-*.tar"])
    assert names_of(again) == ["train-002.tar", "train-000.tar", "train-001.tar"]
    assert find_shards(again) is again


def test_a_missing_shard_is_an_error_and_a_left_out_one_is_said(tmp_path):
    folder = made(tmp_path / "out", listed=4)
    for form in ("/train-*.tar", "/train-<000..099>.tar", "/train-003.tar"):
        with pytest.raises(ShardError, match="train-003.tar: its manifest lists it.*preprocess.run again"):
            find_shards(f"{folder}{form}", "train")
    assert names_of(find_shards(f"{folder}/train-*.tar", strict=False)) == ALL
    some = find_shards(f"{folder}/train-00<0..1>.tar")
    assert len(some.notes) == 1 and "20 of the 40 samples" in some.notes[0] and some.listed == 40
    (folder / "train-003.tar").write_bytes(b"")
    (folder / "train-004.tar").write_bytes(b"")
    assert "train-004.tar" in find_shards(f"{folder}/train-*.tar").notes[0]
    assert names_of(find_shards(folder, "train")) == [*ALL, "train-003.tar"]


@pytest.mark.parametrize(
    "pattern", ["none-*.tar", "train-<7..9>.tar", "x/", "empty", "test.manifest.json", "train-009.tar"]
)
def test_what_matches_nothing_is_an_error(tmp_path, pattern):
    folder = made(tmp_path / "out")
    (folder / "empty").mkdir()
    with pytest.raises(ShardError):
        find_shards(f"{folder}/{pattern}", "train")
    with pytest.raises(ShardError, match="no shards given"):
        find_shards([])
    with pytest.raises(ValueError, match="runs backwards"):
        find_shards(f"{folder}/train-<9..0>.tar")


def test_a_shard_that_is_not_the_listed_one_is_refused(synth_shards, tmp_path):
    folder = shutil.copytree(synth_shards, tmp_path / "out")
    for name in ("train-000.tar", "train-000.idx.json"):
        shutil.copy(folder / name.replace("train", "val"), folder / name)
    index = (folder / "train-000.idx.json").read_bytes()
    assert b"val-000" in index
    with pytest.raises(ShardError, match="train-000.tar: is not the shard that its manifest lists"):
        load_indexes(find_shards(f"{folder}/train-*.tar"))
    (folder / "train.manifest.json").unlink()
    assert len(load_indexes(find_shards(f"{folder}/train-*.tar"))) == 2


def test_verify_of_a_pattern_names_a_listed_shard_that_is_gone_and_says_what_was_left_out(
    synth_shards, tmp_path, capsys
):
    folder = shutil.copytree(synth_shards, tmp_path / "out")
    assert verify(f"{folder}/train-001.tar") == ([], 8, 1)
    assert "note: 8 of the 20 samples of" in capsys.readouterr().err
    (folder / "train-000.tar").unlink()
    for pattern in ("train-*.tar", "train-<000..099>.tar"):
        problems, keyframes, shards = verify(f"{folder}/{pattern}")
        assert (keyframes, shards) == (8, 1) and len(problems) == 1
        assert f"{folder}/train-000.tar: its manifest lists it" in problems[0]
        assert "samples of" not in capsys.readouterr().err  # the pattern names it: nothing was left out


def test_one_flipped_byte_of_a_manifest_is_found(synth_shards):
    raw = (synth_shards / "train.manifest.json").read_bytes()
    manifest = parse_manifest(raw, "m")
    assert dump_manifest(manifest) == raw and manifest.keyframes == 20
    for place in range(0, len(raw), 7):
        with pytest.raises(ShardError):
            parse_manifest(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :], "m")


def test_a_manifest_without_its_digest_or_that_does_not_add_up_is_damaged(synth_shards):
    body = json.loads((synth_shards / "train.manifest.json").read_bytes())
    del body["body_sha256"]
    with pytest.raises(ShardError, match="^m: damaged manifest .*copy it anew"):
        parse_manifest(json.dumps(body).encode(), "m")
    with pytest.raises(ShardError, match="^m: damaged manifest .*keyframes"):
        parse_manifest(dump_sealed(body | {"keyframes": 3}), "m")
    first, second = body["shards"]
    for name in ("../x", "a\\x", second["name"]):
        with pytest.raises(ShardError, match="^m: damaged manifest .*twice, or one in another folder"):
            parse_manifest(dump_sealed(body | {"shards": [first | {"name": name}, second]}), "m")


@pytest.fixture
def memory():
    """Address of an empty folder of fsspec's memory."""
    import fsspec

    fsspec.filesystem("memory").store.clear()
    yield "memory://set"
    fsspec.filesystem("memory").store.clear()


def kinds(tmp_path, memory, s3):
    return [str(tmp_path / "local [x]"), f"file://{tmp_path}/file", memory, f"s3://{s3.bucket}/stores/a [x]"]


def test_every_store_does_the_same(tmp_path, memory, s3):
    for address in kinds(tmp_path, memory, s3):
        store = open_store(address)
        with store.locked():
            store.write("a.json", b"0123456789")
            with store.new_file("b.tar") as file:
                file.write(b"x" * 3_000_000)
            with pytest.raises(KeyError), store.new_file("c.tar") as file:
                file.write(b"half")
                raise KeyError
        store = pickle.loads(pickle.dumps(store)) if store.remote else store
        assert store.list() == sorted([*[".lock"] * (not store.remote), "a.json", "b.tar"]), address
        assert store.exists("a.json") and not store.exists("c.tar")
        assert store.read("a.json") == b"0123456789" and store.stat("b.tar").size == 3_000_000
        data, etag = store.read_range("a.json", 3, 4)
        assert bytes(data) == b"3456" and b"".join(store.chunks("b.tar")) == b"x" * 3_000_000
        assert bytes(store.read_range("a.json", 0, 1, etag)[0]) == b"0"
        with pytest.raises(StoreError, match="a.json"):
            store.read_range("a.json", 8, 4)
        with pytest.raises(StoreError, match="a.json"):
            store.read("a.json", limit=5)
        with pytest.raises(Missing, match="none.tar"):
            store.read("none.tar")
        store.write("a.json", b"another one")
        if etag:
            with pytest.raises(StoreError, match="has changed"):
                store.read_range("a.json", 0, 4, etag)
        with local_copy(store, "a.json") as path:
            assert path.read_bytes() == b"another one"
        store.remove("a.json")
        store.remove("a.json")
        assert not store.exists("a.json")


def test_globs_of_a_bucket(s3):
    for name in ("x/train-000.tar", "x/train-001.tar", "x/notes.txt", "y/train-002.tar", "y/deep/train-003.tar"):
        open_store(f"s3://{s3.bucket}/globs").write(name, b"")
    at = f"s3://{s3.bucket}/globs"
    assert find(f"{at}/x/train-*.tar") == [f"{at}/x/train-000.tar", f"{at}/x/train-001.tar"]
    assert names_of(find_shards(f"{at}/*/train-00?.tar")) == ALL
    assert names_of(find_shards(f"{at}/x/")) == ALL[:2] == names_of(find_shards(f"{at}/x", "train"))
    with pytest.raises(ShardError, match="no shard matches"):
        find_shards(f"{at}/x/val-*.tar")


def test_an_http_server_is_read_through_the_manifest(tmp_path):
    folder = made(tmp_path / "out", listed=3)
    server = FaultyServer(tmp_path)
    at = f"{server.address}/out"
    try:
        for form in ("/", "", "/train-*.tar", "/train-<000..099>.tar", "/train.manifest.json"):
            shards = find_shards(at + form, "train", retry=QUICK)
            assert names_of(shards) == ALL
            assert names_of(find_beside(shards, "val")) == ["val-000.tar"]
        (folder / "train.manifest.json").unlink()
        assert names_of(find_shards(f"{at}/train-<000..099>.tar", retry=QUICK)) == ALL
        with pytest.raises(ShardError, match="does not list"):
            find_shards(f"{at}/train-*.tar", retry=QUICK)
    finally:
        server.close()


def test_the_query_of_a_signed_address_goes_with_every_request(synth_shards):
    server = FaultyServer(synth_shards)
    server.query = "signature=a%2Fb%3D&until=2030"
    try:
        with pytest.raises(ShardError, match="refused.*signed address needs its query"):
            find_shards(f"{server.address}/train-*.tar", retry=QUICK)
        signed = find_shards(f"{server.address}/train-*.tar?{server.query}", retry=QUICK)
        assert list(signed) == [f"{server.address}/train-00{i}.tar?{server.query}" for i in (0, 1)]
        source, local = open_source(signed), open_source(f"{synth_shards}/train-*.tar")
        members = local.indexes[0].members
        assert [source.read(n, members) for n in (0, 13)] == [local.read(n, members) for n in (0, 13)]
        assert {path.partition("?")[0] for _, path, _ in server.requests} >= {
            "/train.manifest.json",
            "/train-001.idx.json",
            "/train-001.tar",
        }
        with pytest.raises(ShardError) as caught:
            open_source(f"{server.address}/train-000.tar?signature=hush-hush")
        assert "hush-hush" not in str(caught.value)
    finally:
        server.close()


def test_secrets_are_never_shown(s3, tmp_path):
    options = {
        "secret_access_key": "hush-hush",
        "endpoint": "http://127.0.0.1:9",
        "client_options": {"user_agent": "whoami"},
    }
    store = open_store("s3://bucket/x", options, QUICK)
    shards = find_shards(f"{made(tmp_path / 'out')}/train-*.tar", options=options)
    texts = [repr(store), repr(shards)]
    signed = open_store("http://user:pass@127.0.0.1:9/d?token=hush-hush", None, QUICK)
    for one in (store, signed):
        with pytest.raises(StoreError) as caught:
            one.read("a.json")
        texts.append(str(caught.value))
    texts.append(repr(signed))
    with pytest.raises(StoreError) as caught:
        open_store("s3://bucket/x", {"nonsense": "hush-hush"}, QUICK).read("a.json")
    texts.append(str(caught.value))
    with pytest.raises(ValueError) as caught:
        parse_options('{"secret": "hush-hush"')
    texts.append(str(caught.value))
    for text in texts:
        assert "hush-hush" not in text and "user:pass" not in text and "\n" not in text
    assert parse_options('{"a": 1}') == {"a": 1} and parse_options("") is None


_FORKED = """
import os, sys
from common.stores import open_store
store = open_store(sys.argv[1])
store.list()
child = os.fork()
if not child:
    try:
        store.list()
    except ValueError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_google_s_and_azure_s_addresses_become_their_stores():
    from obstore.store import AzureStore, GCSStore

    azure = {"account_key": "a2V5"}
    account = {"account_name": "account", **azure}
    cases = [
        ("gs://box/a/b", {"skip_signature": True}, GCSStore, "bucket"),
        ("az://box/a/b", account, AzureStore, "container_name"),
    ]
    cases += [("abfs://box@account.dfs.core.windows.net/a/b", azure, AzureStore, "container_name")]
    for address, options, kind, box in cases:
        store = open_store(address, options)
        client, path = store._client("train-000.tar")
        assert isinstance(client, kind) and client.config[box] == "box" and client.prefix == "a/b"
        assert path == "train-000.tar" and "a2V5" not in f"{store!r}{store.path(path)}"
        if kind is AzureStore:
            assert client.config["account_name"] == "account"


def test_a_store_that_was_used_before_a_fork_says_so(s3):
    result = subprocess.run(
        [sys.executable, "-c", _FORKED, f"s3://{s3.bucket}/"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert "forked after its first use" in result.stdout, result.stderr


def test_verify_and_index_take_an_address(s3_shards, synth_shards, tmp_path):
    from click.testing import CliRunner

    assert verify(s3_shards) == ([], 24, 3)
    assert verify([f"{s3_shards}/val-*.tar"]) == ([], 4, 1)
    store = open_store(f"{s3_shards}-damaged")
    for name in ("val-000.tar", "val-000.idx.json", "val.manifest.json"):
        store.write(name, (synth_shards / name).read_bytes())
    tar = bytearray(store.read("val-000.tar"))
    tar[3_000] ^= 1
    store.write("val-000.tar", bytes(tar))
    problems, _, _ = verify(store.address)
    assert any(f"{store.address}/val-000.tar" in problem for problem in problems)
    store.write("val-000.tar", (synth_shards / "val-000.tar").read_bytes())
    store.write("val-000.idx.json", b"{}")
    assert "damaged index" in verify(store.address)[0][0]
    result = CliRunner().invoke(index_main, [f"{store.address}/val-000.tar"])
    assert result.exit_code == 0 and "rebuilt" in result.output
    assert verify(store.address)[0] == []
    damaged = bytearray(store.read("val.manifest.json"))
    damaged[40] ^= 1
    store.write("val.manifest.json", bytes(damaged))
    assert "damaged manifest" in " ".join(verify(store.address)[0])


def test_verify_takes_a_manifest_and_index_a_folder_or_a_pattern(synth_shards, tmp_path):
    from click.testing import CliRunner

    assert verify(f"{synth_shards}/val.manifest.json") == ([], 4, 1)
    folder = shutil.copytree(synth_shards, tmp_path / "out")
    for argument, lost in ((folder, "val-000"), (f"{folder}/train-*.tar", "train-001")):
        index = folder / f"{lost}.idx.json"
        before = index.read_bytes()
        index.unlink()
        result = CliRunner().invoke(index_main, [str(argument)])
        assert result.exit_code == 0 and index.read_bytes() == before
        assert re.findall(r"([\w-]+).idx.json: rebuilt", result.output) == [lost]


def test_atomic_files_and_locks_on_file_systems_that_refuse_part(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", b"one")
    assert flush_folder(tmp_path)
    with locked(tmp_path / "lock") as held:
        assert held
        with pytest.raises(Busy), locked(tmp_path / "lock", wait=False):
            pass

    def refuse(number):
        def call(*_):
            raise OSError(number, os.strerror(number))

        return call

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with locked(tmp_path / "lock") as held:
        assert not held
    with open_store(tmp_path).locked() as held:
        assert not held
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    assert not flush_folder(tmp_path)
    with pytest.raises(OSError, match=f"{tmp_path}/a'$"):
        write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one" and not list(tmp_path.glob(".*.tmp"))
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError):
        flush_folder(tmp_path)
