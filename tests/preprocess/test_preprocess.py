"""Preprocessing: interrupted, distributed, verified, and on every kind of bad input."""

import errno
import fcntl
import gzip
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from click.testing import CliRunner

from common.shard_index import build_index
from common.stores import open_store
from preprocess import pool
from preprocess.errors import SourceError
from preprocess.layer import write_layer
from preprocess.layers import depth
from preprocess.nuscenes import RADARS
from preprocess.plan import Options, Planner
from preprocess.pointclouds import DROPPED, parse_radar
from preprocess.verify import verify
from tests.conftest import call_module, run_module
from tests.index_files import load_index
from tests.preprocessing import command, contents, fails, rewrite, run_here, table
from tests.processes.client import Process
from train.data import compile_data

SCENES = {"scene-0061": 3, "scene-0553": 3, "scene-0655": 3, "scene-0103": 3}  # the last is a val scene


@pytest.fixture(scope="session")
def world(small_world):
    return small_world


@pytest.fixture
def copy(world, tmp_path):
    """A copy of the world to damage."""
    return shutil.copytree(world, tmp_path / "copy")


@pytest.fixture(scope="module")
def shards(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("small-shards")
    call_module(*command(world, out, "--workers", 1))
    return out


def test_worker_count_changes_no_byte(world, shards, tmp_path):
    run_module(*command(world, tmp_path, "--workers", 3))
    assert contents(tmp_path) == contents(shards)
    assert set(contents(shards)) >= {"train-002.tar", "val-000.idx.json", "train.manifest.json"}


def test_killed_again_and_again_it_ends_with_the_same_bytes(world, shards, tmp_path):
    rng = random.Random(1)
    killed = 0
    for _ in range(6):
        words = command(world, tmp_path, "--workers", 2)
        process = Process("-m", *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        if killed % 2:  # once the first shard is being written, not while Python starts
            while not any(tmp_path.glob("*train*")) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))
        os.killpg(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for tar in tmp_path.glob("*.idx.json"):
            index = load_index(tar.with_name(tar.name.replace(".idx.json", ".tar")), verify=True)
            assert build_index(index.tar).tar_sha256 == index.tar_sha256
    assert killed
    run_module(*command(world, tmp_path, "--workers", 2))
    assert contents(tmp_path) == contents(shards)


def interrupted(words, when):
    """Exit code and stderr of a command that Ctrl-C reaches, as from a terminal all its processes, once `when` is true."""
    process = Process("-m", *words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=60)[1]
    return process.returncode, text


def test_ctrl_c_ends_workers_in_silence_and_leaves_nothing_half_written(world, tmp_path):
    code, text = interrupted(command(world, tmp_path, "--workers", 2), lambda: any(tmp_path.glob("*train*")))
    assert code == 130 and "Traceback" not in text
    assert text.splitlines()[-1] == "error: interrupted; the same command continues"
    assert not list(tmp_path.glob(".*.tmp"))


def test_ctrl_c_ends_a_command_in_one_line(tmp_path):
    words = ["preprocess.synth", "--out", tmp_path / "world", "--version", "v1.0-trainval", "--scenes", 400]
    code, text = interrupted(words, (tmp_path / "world").exists)
    assert (code, text) == (130, "stopped by SIGINT\n")


def test_other_options_or_source_are_refused_and_nothing_is_overwritten(world, shards, tmp_path):
    out = shutil.copytree(shards, tmp_path / "out")
    assert "sweeps 2, now 1" in fails(*command(world, out), "--sweeps", 1)
    assert "image_size None, now [45, 80]" in fails(*command(world, out), "--image-size", "45x80")
    assert "other scenes or tables" in fails(*command(world, out, "--train-shards", 2))
    assert contents(out) == contents(shards)
    kept = call_module(*command(world, out))
    assert "were there already and were kept" in kept.stdout
    call_module(*command(world, out, "--image-size", "45x80", "--overwrite"))
    train, _ = loaders(out)
    assert load_index(out / "val-000.tar").facts["image_size"] == [45, 80]
    assert next(iter(train)).imgs.shape[-2:] == (28, 50)
    assert not verify(out)[0]


def test_two_runs_at_once(world, tmp_path):
    with open_store(tmp_path).locked():
        assert "another preprocess.run is writing there" in fails(*command(world, tmp_path))


def test_a_file_system_without_locks_is_told_once(world, shards, tmp_path, monkeypatch):
    out = shutil.copytree(shards, tmp_path / "out")

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    result = run_here(world, out)
    assert result.exit_code == 0 and result.output.count("note: ") == 1, result.output
    assert f"note: {out}: its file system knows no locks; run one preprocess.run at a time there" in result.output


def test_dry_run_says_the_size_and_writes_nothing(world, shards, tmp_path):
    result = call_module(*command(world, tmp_path / "none", "--dry-run"))
    assert "train: 3 shards, 9 keyframes" in result.stdout and "nothing was written" in result.stdout
    assert not (tmp_path / "none").exists()


def test_dask_cluster_writes_the_same_bytes(world, shards, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        scheduler = ("--scheduler", cluster.scheduler_address)
        call_module(*command(world, tmp_path / "out", *scheduler))
        damaged = shutil.copytree(world, tmp_path / "damaged")
        victim = sorted((damaged / "samples" / "CAM_BACK").glob("scene-0553*"))[1]
        victim.write_bytes(victim.read_bytes()[:-7])
        write_layer(tmp_path / "out", "depth", depth.make, scheduler=cluster.scheduler_address)
        monkeypatch.setattr(pool, "TASKS_A_THREAD", 1)  # three shards, two threads: one waits for its turn
        assert victim.name in fails(*command(damaged, tmp_path / "x", *scheduler))
        skip = call_module(*command(damaged, tmp_path / "skip", *scheduler, "--on-error", "skip"))
    assert "scene-0553: 1 of 3 samples left out" in skip.stdout
    layer = shutil.move(tmp_path / "out" / "layers", tmp_path / "layers") / "depth"
    assert contents(tmp_path / "out") == contents(shards)
    write_layer(tmp_path / "out", "depth", depth.make)
    assert contents(layer) == contents(tmp_path / "out" / "layers" / "depth")
    client = distributed.Client  # which is asked to wait for twenty seconds
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: client(address, timeout="1s"))
    assert "no Dask scheduler answers" in fails(*command(world, tmp_path / "x", "--scheduler", "tcp://127.0.0.1:9"))


def test_fsspec_address_gets_the_same_bytes(world, shards, tmp_path):
    import fsspec

    from preprocess.run import main

    run_module(*command(world, f"file://{tmp_path}/local", "--workers", 2))
    assert contents(tmp_path / "local") == contents(shards)
    arguments = command(world, "memory://shards", "--workers", 1)[1:]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    memory = fsspec.filesystem("memory")
    assert {f.rpartition("/")[2]: memory.cat_file(f) for f in memory.ls("/shards", detail=False)} == contents(shards)
    assert "error" in fails(*command(world, "nonsense://x"))


# What is wrong with a file, and how a sensor file gets it.
DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(1001)),
}


@pytest.mark.parametrize("sensor", ["CAM_BACK", "LIDAR_TOP", "RADAR_FRONT"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_sensor_file(copy, tmp_path, sensor, damage):
    victim = sorted((copy / "samples" / sensor).glob("scene-0553*"))[1]
    DAMAGE[damage](victim)
    message = fails(*command(copy, tmp_path / "out", "--workers", 1))
    assert victim.name in message and "scene-0553_0001" in message
    assert not list((tmp_path / "out").glob("*0553*")) and not list((tmp_path / "out").glob(".*.tmp"))
    assert len(list((tmp_path / "out").glob("*.tar"))) == len(list((tmp_path / "out").glob("*.idx.json")))


def test_points_that_are_not_finite(copy, tmp_path):
    victim = sorted((copy / "sweeps" / "LIDAR_TOP").iterdir())[0]
    points = np.fromfile(victim, "<f4")
    points[1] = np.inf
    points.tofile(victim)
    assert victim.name in fails(*command(copy, tmp_path / "out"))
    points[1] = np.nan  # by which a driver says that nothing came back
    points.tofile(victim)
    said = call_module(*command(copy, tmp_path / "out")).stdout
    assert f"1 {DROPPED}" in said


@pytest.mark.parametrize(
    "name", ["scene", "sample", "sample_data", "ego_pose", "sample_annotation", "calibrated_sensor"]
)
def test_bad_table(copy, name):
    def message():
        with pytest.raises(SourceError) as caught:
            planner = Planner(copy, "v1.0-mini", Options(2))
            planner.shards("train", list(SCENES), 2)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    whole = table(copy, name).read_bytes()
    table(copy, name).unlink()
    assert name in message() and "missing" in message()
    table(copy, name).write_bytes(whole[: len(whole) // 2])
    assert name in message() and "JSON" in message()
    table(copy, name).write_bytes(whole)
    rewrite(copy, name, lambda rows: rows.append(rows[0]))
    assert "occurs twice" in message()
    for field in [f for f in json.loads(whole)[0] if f not in UNUSED_FIELDS]:
        table(copy, name).write_bytes(whole)
        rewrite(copy, name, lambda rows, f=field: rows[0].pop(f))
        assert field in message()
        if field.endswith("_token"):
            table(copy, name).write_bytes(whole)
            rewrite(copy, name, lambda rows, f=field: rows[0].update({f: "dangling"}))
            assert "dangling" in message()
    table(copy, name).write_bytes(whole)


UNUSED_FIELDS = {
    *("last_sample_token", "scene_token", "next", "prev", "fileformat", "height", "width", "description"),
    *("num_lidar_pts", "num_radar_pts", "sample_token", "timestamp"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "north", None])
def test_numbers_that_are_none(copy, value):
    for name in ("ego_pose", "calibrated_sensor", "sample_annotation"):
        whole = table(copy, name).read_bytes()
        rewrite(copy, name, lambda rows: rows[0].update(translation=[1.0, value, 0.0]))
        with pytest.raises(SourceError, match="translation"):
            Planner(copy, "v1.0-mini", Options(2))
        table(copy, name).write_bytes(whole)


def drop_camera(folder):
    """Take CAM_BACK's keyframe from the second sample of scene-0553."""

    def change(rows):
        hit = [r for r in rows if r["is_key_frame"] and "/CAM_BACK/scene-0553" in r["filename"]]
        rows.remove(sorted(hit, key=lambda r: r["timestamp"])[1])

    rewrite(folder, "sample_data", change)


def test_sample_without_a_camera(copy, tmp_path):
    drop_camera(copy)
    assert "has no CAM_BACK keyframe" in fails(*command(copy, tmp_path / "out"))


@pytest.mark.parametrize("where", ["table", "file"])
@pytest.mark.parametrize("keep_sequences", [False, True])
def test_skip_leaves_out_samples_or_scenes_and_lists_them(copy, shards, tmp_path, where, keep_sequences):
    victim = sorted((copy / "samples" / "CAM_BACK").glob("scene-0553*"))[1]
    drop_camera(copy) if where == "table" else victim.unlink()
    options = ["--on-error", "skip", "--train-shards", 1] + ["--keep-sequences"] * keep_sequences
    result = call_module(*command(copy, tmp_path / "out", *options))
    assert "left out:" in result.stdout
    skipped = json.loads((tmp_path / "out" / "train.manifest.json").read_bytes())["skipped"]
    assert [s["key"] for s in skipped] == [f"scene-0553_{i:04d}" for i in (range(3) if keep_sequences else [1])]
    assert len(load_index(tmp_path / "out" / "train-000.tar").keys) == 9 - len(skipped)
    assert not verify(tmp_path / "out")[0]
    train, _ = loaders(tmp_path / "out", seqlen=2)  # two whole scenes have two windows each, the broken one none
    assert len(train.windows) == 4
    if where == "file":
        assert "--overwrite" in fails(*command(copy, tmp_path / "out", "--train-shards", 1))


def test_full_disk_leaves_nothing_half_written(world, tmp_path):
    result = run_module(*command(world, tmp_path / "out", "--workers", 1), check=False, file_bytes=20_000)
    assert result.returncode == 1 and "too large" in result.stderr and "Traceback" not in result.stderr
    assert not [p for p in (tmp_path / "out").iterdir() if p.name != ".lock"]


def test_unwritable_folder(world, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in fails(*command(world, tmp_path / "file" / "out"))


def test_scene_in_no_split_and_split_files(copy, tmp_path):
    rewrite(copy, "scene", lambda rows: rows[0].update(name="my-scene"))
    assert "my-scene" in fails(*command(copy, tmp_path / "out"))
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["my-scene", "scene-0553"], "val": ["scene-0103", "scene-0655"]}))
    shutil.move(copy / "v1.0-mini", copy / "v9-own")
    own = ["--version", "v9-own"]
    assert "--split-file" in fails(*command(copy, tmp_path / "out", *own))
    call_module(*command(copy, tmp_path / "out", *own, "--split-file", splits))
    assert json.loads((tmp_path / "out" / "val.manifest.json").read_bytes())["keyframes"] == 6
    splits.write_text(json.dumps({"train": ["absent"]}))
    assert "absent" in fails(*command(copy, tmp_path / "x", *own, "--split-file", splits, "--on-error", "skip"))


def test_sample_without_boxes(copy, tmp_path):
    first = {s["token"] for s in json.loads(table(copy, "sample").read_bytes())[:3]}
    rewrite(copy, "sample_annotation", lambda rows: rows.__setitem__(slice(None), [
        {**r, "prev": "", "next": ""} for r in rows if r["sample_token"] not in first]))  # fmt: skip
    call_module(*command(copy, tmp_path))
    train, _ = loaders(tmp_path, bsz=9)
    [batch] = list(train)
    assert (batch.num_boxes == 0).sum() == 3 and not batch.seg_bev[batch.num_boxes == 0].any()


def test_test_version_makes_shards_that_training_refuses(copy, tmp_path):
    shutil.move(copy / "v1.0-mini", copy / "v1.0-test")
    rename = dict(zip(SCENES, ["scene-0077", "scene-0078", "scene-0079", "scene-0080"], strict=True))
    path = copy / "v1.0-test" / "scene.json"
    rows = json.loads(path.read_bytes())
    path.write_text(json.dumps([{**r, "name": rename[r["name"]]} for r in rows]))
    for name in ("sample_annotation", "instance"):
        (copy / "v1.0-test" / f"{name}.json").unlink()
    call_module(*command(copy, tmp_path, "--version", "v1.0-test"))
    assert not verify(tmp_path)[0]
    with pytest.raises(ValueError, match="no annotations"):
        compile_data(f"{tmp_path}/test-*.tar", None, CONF, **GRID, bsz=1, nworkers=0)


def leave_out(copy, gone):
    """Take the channels `gone` out of the world's tables."""
    rewrite(copy, "sample_data", lambda rows: rows.__setitem__(slice(None), [
        r for r in rows if r["filename"].split("/")[1] not in gone]))  # fmt: skip
    sensors = {s["token"]: s["channel"] for s in json.loads(table(copy, "sensor").read_bytes())}
    rewrite(copy, "calibrated_sensor", lambda rows: rows.__setitem__(slice(None), [
        r for r in rows if sensors[r["sensor_token"]] not in gone]))  # fmt: skip


def test_fewer_cameras_and_radars(copy, tmp_path):
    leave_out(copy, ("CAM_BACK", "RADAR_FRONT", "RADAR_BACK_LEFT"))
    call_module(*command(copy, tmp_path))
    assert not verify(tmp_path, copy)[0]
    train, _ = loaders(tmp_path)
    batch = next(iter(train))
    assert batch.imgs.shape[2] == 5 and "CAM_BACK" not in batch.cams[0] and batch.num_radar.max() > 0


def test_training_with_a_sensor_that_the_shards_lack_is_refused_at_once(copy, tmp_path):
    leave_out(copy, RADARS)
    call_module(*command(copy, tmp_path))
    with pytest.raises(ValueError, match="train-000.tar: holds no radar; leave out use_radar"):
        loaders(tmp_path)
    assert next(iter(loaders(tmp_path, use_radar=False)[0])).radar_data is None


CONF = {"final_dim": (28, 50), "resize_lim": [0.8, 1.2], "crop_offset": 5}
GRID = dict(centroid=(0, 1, 0), bounds=(-50, 50, -5, 5, -50, 50), res_3d=(50, 2, 50))


def loaders(folder, **options):
    options = {"bsz": 1, "nworkers": 0, "nworkers_val": 0, "nsweeps": 1} | options
    return compile_data(f"{folder}/train-*.tar", f"{folder}/val-*.tar", CONF, **GRID, **options)


def test_verify_finds_any_flipped_byte(world, shards, tmp_path):
    assert verify(shards, world) == ([], 12, 4)
    assert "all is well" in call_module("preprocess.verify", shards, "--against", world).stdout
    out = shutil.copytree(shards, tmp_path / "out")
    rng = random.Random(0)
    for name in ("val-000.tar", "val-000.idx.json"):
        whole = (out / name).read_bytes()
        places = [0, len(whole) - 1, 100, 600] + [rng.randrange(len(whole)) for _ in range(12)]
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            (out / name).write_bytes(damaged)
            problems, _, _ = verify(out)
            assert problems and "val-000" in problems[0], (name, place)
        (out / name).write_bytes(whole)
    assert not verify(out)[0]


def test_verify_names_what_is_wrong(world, shards, copy, tmp_path):
    out = shutil.copytree(shards, tmp_path / "out")
    image = sorted((copy / "samples" / "CAM_FRONT").glob("scene-0103*"))[0]
    image.write_bytes(sorted((copy / "samples" / "CAM_FRONT").glob("scene-0103*"))[1].read_bytes())
    assert "scene-0103_0000: CAM_FRONT.jpg differs" in verify(out, copy)[0][0]
    (out / "val-000.idx.json").unlink()
    assert "rebuild it with python -m preprocess.index" in verify(out)[0][0]
    assert "rebuilt" in call_module("preprocess.index", out / "val-000.tar").stdout
    assert contents(out) == contents(shards)
    shutil.copy(out / "val-000.tar", out / "train-003.tar")
    call_module("preprocess.index", out / "train-003.tar")
    problems = verify(out)[0]
    assert any("is in train-003.tar too" in p for p in problems) and any("in no manifest" in p for p in problems)
    (out / "train-003.tar").unlink()
    assert any("is missing" in p for p in verify(out)[0])
    assert "error: " in call_module("preprocess.verify", out, check=False).stderr
    assert "no shard matches" in fails("preprocess.verify", tmp_path / "absent")


def test_radar_equals_the_devkit(world, realframe):
    from nuscenes.utils.data_classes import RadarPointCloud

    files = sorted(realframe.glob("samples/RADAR_*/*.pcd")) + sorted(world.glob("samples/RADAR_*/*.pcd"))[:5]
    RadarPointCloud.disable_filters()
    for path in files:
        theirs = RadarPointCloud.from_file(str(path)).points
        np.testing.assert_array_equal(
            parse_radar(path.read_bytes(), path).astype(np.float32), theirs.astype(np.float32)
        )


def _without(name):
    return lambda folder: (folder / name).unlink()


def _with(name, data):
    return lambda folder: (folder / name).write_bytes(data)


# How good shards get bad, and what show, index and verify say of them; None: nothing, since it is none of theirs.
BAD = {
    "no folder": (shutil.rmtree, *["check the path"] * 3),
    "an empty folder": (lambda folder: [p.unlink() for p in folder.iterdir()], *["no shards"] * 3),
    "no tar": (_without("val-000.tar"), *["val-000.tar: .*preprocess.run again"] * 3),
    "a tar of nothing": (
        _with("val-000.tar", b""), "its index says", "empty file.; copy it anew", "its index says"),
    "a compressed tar": (
        lambda folder: _with("val-000.tar", gzip.compress((folder / "val-000.tar").read_bytes()))(folder),
        "make it anew", "not a readable tar", "make it anew"),
    "no index": (_without("val-000.idx.json"), "rebuild it with", None, "rebuild it with"),
    "an index of nothing": (_with("val-000.idx.json", b"{"), "rebuild it with", None, "rebuild it with"),
    "a manifest of nothing": (_with("val.manifest.json", b"{"), "run .*preprocess.run again", None, "preprocess.run again"),
    "a list of nothing": (_with("val-000.skipped.json", b"{}"), "skipped.json: damaged", None, "remove val-000.idx.json"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_read_ends_every_command_in_one_line_with_the_remedy(shards, tmp_path, bad):
    change, *told = BAD[bad]
    for name, wanted in zip(("show", "index", "verify"), told, strict=True):
        folder = shutil.copytree(shards, tmp_path / name)
        change(folder)
        words = [str(folder), *(["--workers", "1"] if name == "verify" else [])]
        result = CliRunner().invoke(importlib.import_module(f"preprocess.{name}").main, words)
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert isinstance(result.exception, (SystemExit, type(None))) and bool(result.exit_code) == bool(wanted), (
            result.output
        )
        assert len(lines) == bool(wanted) or name == "verify", lines  # which goes on to what else is wrong
        assert not wanted or re.search(wanted, " ".join(lines)), lines


def test_files_that_cannot_be_written_are_named(shards, tmp_path):
    chart = tmp_path / "absent" / "chart.png"
    result = CliRunner().invoke(importlib.import_module("preprocess.show").main, [str(shards), "--chart", str(chart)])
    assert result.exit_code == 1 and result.stderr.splitlines()[-1].startswith(f"error: {chart}: No such file")
    (tmp_path / "file").touch()
    result = CliRunner().invoke(importlib.import_module("preprocess.synth.__main__").main, ["--out", tmp_path / "file"])
    assert result.exit_code == 1 and re.fullmatch(
        "error: .*file.*: Not a directory; choose another --out\n", result.stderr
    )
