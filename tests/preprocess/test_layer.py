"""Layers: added to finished shards, which keep their bytes; killed, damaged, of other shards."""

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import webdataset

from common.errors import ShardError
from common.record import RecordError, decode_array, encode_array
from common.shard_set import find_shards
from common.stores import LocalStore, open_store
from preprocess.errors import SourceError
from preprocess.index import rebuild
from preprocess.layer import write_layer
from preprocess.verify import verify
from tests.conftest import REPOSITORY
from train.data.sources import SourceConfig, open_source
from train.data.sources.layered import with_layers


def brightness(sample):
    """One number per camera, from the size of its image; and the sample's token."""
    sizes = [len(sample.image(camera["channel"])) for camera in sample.facts["cameras"]]
    return {"sizes.npy.zst": encode_array(np.array(sizes, np.float32)), "token.txt": sample.facts["token"].encode()}


def every_second(sample):
    return brightness(sample) if sample.facts["index"] % 2 else None


def slow(sample):
    time.sleep(0.2)
    return brightness(sample)


def digests(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file() and p.name[0] != "."
    }


@pytest.fixture
def shards(small_shards, tmp_path):
    """A copy of the small shards, to add to."""
    return shutil.copytree(small_shards, tmp_path / "shards")


def opened(shards, layers, split="train", config=None):
    config = config or SourceConfig()
    return with_layers(open_source(shards, config, split), layers, config, open_source)


def test_a_layer_leaves_the_shards_alone_and_is_read_beside_them(shards):
    before = digests(shards)
    assert write_layer(shards, "extra", brightness) == 12
    assert digests(shards) == before
    source = opened(shards, {"extra": ("sizes.npy.zst", "token.txt")})
    for number, token in enumerate(source.tokens):
        members = ["CAM_FRONT.jpg", ("extra", "sizes.npy.zst"), ("extra", "token.txt")]
        found = source.read(number, members)
        assert bytes(found["extra", "token.txt"]).decode() == token
        assert decode_array(found["extra", "sizes.npy.zst"], "sizes")[1] == len(found["CAM_FRONT.jpg"])
    samples = list(webdataset.WebDataset(str(shards / "layers" / "extra" / "train-000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == source.keys
    assert len(find_shards(shards)) == len(find_shards(shards, "train")) + len(find_shards(shards, "val"))


def test_the_same_call_gives_the_same_bytes_for_any_number_of_workers_and_goes_on(shards):
    write_layer(shards, "one", brightness)
    write_layer(shards, "two", brightness, workers=2)
    one, two = (shards / "layers" / name for name in ("one", "two"))
    assert (one / "train-000.tar").read_bytes().replace(b'"one"', b'"two"') == (two / "train-000.tar").read_bytes()
    kept = (one / "val-000.tar").stat().st_mtime_ns
    (one / "train-000.idx.json").unlink()
    before = digests(one)
    write_layer(shards, "one", brightness)
    assert before.items() < digests(one).items() and (one / "val-000.tar").stat().st_mtime_ns == kept
    with pytest.raises(SourceError, match="made with options.*--overwrite"):
        write_layer(shards, "one", brightness, options={"other": 1})
    write_layer(shards, "one", brightness, options={"other": 1}, overwrite=True)
    assert json.loads((one / "train.manifest.json").read_bytes())["options"]["options"] == {"other": 1}


def test_a_killed_run_leaves_no_half_part_and_goes_on(shards):
    code = (
        "from tests.preprocess.test_layer import slow; from preprocess.layer import write_layer; "
        f"write_layer({str(shards)!r}, 'extra', slow)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    folder = shards / "layers" / "extra"
    deadline = time.monotonic() + 60
    while not (folder.is_dir() and any(folder.glob(".*.tmp"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(folder.glob("*.idx.json")) or not list(folder.glob("*.manifest.json"))
    assert write_layer(shards, "extra", brightness) == 12
    assert not list(folder.glob(".*.tmp"))


def test_what_a_layer_lacks_is_an_error_unless_it_says_that_it_may(shards):
    with pytest.raises(SourceError, match="layer extra has nothing.*missing='empty'"):
        write_layer(shards, "extra", every_second)
    write_layer(shards, "extra", every_second, missing="empty")
    source = opened(shards, {"extra": ("token.txt",)})
    there = [bool(source.read(n, [("extra", "token.txt")])) for n in range(len(source))]
    assert there == [int(key[-4:]) % 2 == 1 for key in source.keys]
    source.begin(range(len(source)))
    source.close()


def test_layers_of_other_shards_and_missing_ones_are_refused(shards, synth_shards, tmp_path):
    with pytest.raises(ShardError, match="train-000.tar.*layer extra.*copy layers/extra/"):
        opened(shards, {"extra": ("token.txt",)})
    write_layer(shards, "extra", brightness)
    with pytest.raises(ShardError, match="no member nothing.txt; it has sizes.npy.zst, token.txt"):
        opened(shards, {"extra": ("nothing.txt",)})
    with pytest.raises(ValueError, match="streams.*reader auto or indexed"):
        opened(shards, {"extra": ("token.txt",)}, config=SourceConfig(reader="stream"))
    with pytest.raises(ShardError, match="is of layer extra; name the shards that it lies beside"):
        open_source(shards / "layers" / "extra")
    assert not any(tar.startswith(f"{shards}/layers") for tar in find_shards(f"{shards.parent}/**/*-000.tar"))
    other = shutil.copytree(synth_shards, tmp_path / "other")
    shutil.copytree(shards / "layers", other / "layers")
    (other / "train-001.tar").unlink()
    with pytest.raises(ShardError, match="belongs to another train-000.tar"):
        opened(str(other / "train-000.tar"), {"extra": ("token.txt",)}, None)


@pytest.mark.parametrize(
    "made, what", [({"../x": b""}, "no name of a member"), ({"a.npy": np.zeros(2)}, "is a ndarray, not bytes")]
)
def test_what_no_member_can_be_is_refused(shards, made, what):
    with pytest.raises(SourceError, match=what):
        write_layer(shards, "extra", functools.partial(_given, made=made))
    for name in ("", "a/b", "..", "x" * 65):
        with pytest.raises(ValueError, match="a name has up to 64"):
            write_layer(shards, name, brightness)


def _given(sample, made):
    return made


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float32), np.arange(6).reshape(2, 3), np.array(True)])
def test_arrays_come_back(array):
    out = decode_array(encode_array(array), "x")
    assert out.dtype == array.dtype and out.shape == array.shape and (out == array).all()


def test_arrays_of_objects_are_refused():
    with pytest.raises(ValueError):
        encode_array(np.array([{}], object))
    with pytest.raises(RecordError, match="^x: "):
        decode_array(encode_array(np.zeros(3))[:-4], "x")


def test_verify_finds_what_is_wrong_with_a_layer_and_index_mends_its_index(shards, synth_shards):
    write_layer(shards, "extra", brightness)
    assert verify(shards)[0] == []
    folder = shards / "layers" / "extra"
    index, tar = folder / "train-000.idx.json", folder / "train-000.tar"
    whole, right = tar.read_bytes(), index.read_bytes()
    index.unlink()
    [problem] = verify(shards)[0]
    assert str(tar) in problem and "index" in problem
    assert rebuild(LocalStore(folder), "train-000.tar") and index.read_bytes() == right
    place = whole.index(b"token.txt") + 512 - whole.index(b"token.txt") % 512
    for damaged, what in (
        (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], "SHA-256"),
        (whole[: len(whole) // 2], "bytes, its index says"),
    ):
        tar.write_bytes(damaged)
        [problem] = verify(shards)[0]
        assert str(tar) in problem and what in problem
    tar.write_bytes(whole)
    (folder / "train-007.tar").write_bytes(whole)
    [problem] = verify(shards)[0]
    assert "train-007.tar: no sound shard" in problem
    (folder / "train-007.tar").unlink()
    for name in ("train-000.tar", "train-000.idx.json"):
        shutil.copy(synth_shards / name, shards / name)
    (shards / "train.manifest.json").unlink()
    assert any(f"{tar}: belongs to another train-000.tar" in problem for problem in verify(shards)[0])


@pytest.fixture
def remote(s3, small_shards):
    """Address of a copy of the small shards in a bucket, to add to."""
    store = open_store(f"s3://{s3.bucket}/layered")
    for path in (path for path in small_shards.iterdir() if path.is_file() and path.name[0] != "."):
        store.write(path.name, path.read_bytes())
    return store.address


def test_layers_lie_in_buckets_as_in_folders_and_a_node_s_cache_holds_them(remote, shards, s3, tmp_path):
    own, layer = open_store(remote), open_store(f"{remote}/layers/extra")
    before = {name: own.read(name) for name in own.list()}
    assert write_layer(remote, "extra", brightness) == write_layer(shards, "extra", brightness) == 12
    local = {path.name: path.read_bytes() for path in (shards / "layers" / "extra").iterdir() if path.name[0] != "."}
    assert {name: layer.read(name) for name in layer.list()} == local
    assert {name: own.read(name) for name in own.list() if name in before} == before
    assert find_shards(remote, "train").shards == (f"{remote}/train-000.tar",) and verify(remote)[0] == []

    layers = {"extra": ("sizes.npy.zst", "token.txt")}
    members = ["sample.json", *(("extra", name) for name in layers["extra"])]
    want = [opened(shards, layers).read(n, members) for n in range(9)]
    config = SourceConfig(cache_dir=str(tmp_path / "cache"))

    def read():
        """What is there, and the requests for tars that it took: shards', then the layer's, which is fetched whole."""
        seen = [len(s3.requests(f"/layered/{part}train-000.tar ")) for part in ("", "layers/extra/")]
        source = opened(remote, layers, config=config)
        source.begin(range(9), [members] * 9)
        found = [source.read(n, members) for n in range(9)]
        source.close()
        now = [len(s3.requests(f"/layered/{part}train-000.tar ")) for part in ("", "layers/extra/")]
        return found, [b - a for a, b in zip(seen, now, strict=True)]

    (first, fetched), (second, again) = read(), read()
    assert first == second == want and [a - b for a, b in zip(fetched, again, strict=True)] == [9, 1]
    [kept] = (tmp_path / "cache" / "v1").glob(f"{json.loads(local['train-000.idx.json'])['tar_sha256'][:32]}/4/*")
    kept.write_bytes(bytes(kept.stat().st_size))
    assert read()[0] == want

    tar = local["train-000.tar"]
    place = tar.index(want[2]["extra", "token.txt"])
    layer.write("train-000.tar", tar[:place] + bytes([tar[place] ^ 1]) + tar[place + 1 :])
    source = opened(remote, layers, config=SourceConfig(verify_reads=True))
    with pytest.raises(ShardError, match=r"layers/extra/train-000.tar.*the file is damaged: token.txt"):
        source.read(2, members)
    assert "layers/extra/train-000.tar: its SHA-256" in verify(remote)[0][0]
    assert rebuild(layer, "train-000.tar") and open_store(remote).read("train-000.tar") == before["train-000.tar"]
