"""Training and looking at shards in a bucket, through the commands: nothing differs from the same shards on the disk."""

import json
import os
import re
import signal
import threading
import time

import pytest
import torch
from click.testing import CliRunner

from common.stores import open_store
from preprocess import run as preprocess_run
from preprocess import show as preprocess_show
from preprocess.verify import verify
from tests.conftest import run_module, split_file
from tests.faulty_server import FaultyServer
from tests.train.data.test_order import CONF, GRID, equal
from tests.train.test_resume import SMALL, UNHURRIED, assert_same, run_folder, start, wait_for
from train import checkpoint, show
from train.data import compile_data
from train.jobs.evaluation_options import read_options
from train.jobs.training import check_samples, note_other_order
from train.options import Options
from train.setup import make_loaders

TINY = [*SMALL, "--nsweeps", 2, "--val_freq", 5, "--max_iters", 10, "--save_freq", 2, "--keep_latest", 9]


def words(shards, out, *more):
    return ["train.run", "--shards", shards, "--log_dir", out / "logs", "--ckpt_dir", out / "ckpt", *TINY, *more]


def killed(process, out, step):
    """Kill a run once its checkpoint of `step` is there; the newest one's step."""
    wait_for(out, step, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    return checkpoint.read(run_folder(out))["step"]


@pytest.fixture(scope="module")
def local_run(synth_shards, made_once):
    """Folder of a run of 10 updates, two epochs, from the disk."""
    return run_folder(made_once("local-run", lambda out: run_module(*words(f"{synth_shards}/train-*.tar", out))))


def test_a_run_from_a_bucket_is_the_one_from_the_disk_wherever_it_goes_on(local_run, s3_shards, synth_shards, tmp_path):
    """From the bucket, killed; from the bucket, killed; from the disk, killed; and from the bucket to its end."""
    step = killed(start(*words(f"{s3_shards}/", tmp_path, *UNHURRIED)), tmp_path, 2)
    folder = run_folder(tmp_path)
    for where in ([], ["--shards", synth_shards], ["--shards", f"{s3_shards}/train-<000..099>.tar"]):
        resume = ["train.run", "--resume", folder, *where]
        if step < 6:
            step = killed(start(*resume), tmp_path, step + 2)
        else:
            run_module(*resume)
    there = [checkpoint.read(folder, step) for step in range(2, 11, 2)]
    for content in there:
        assert_same(content, checkpoint.read(local_run, content["step"]))
    assert len({content["samples_sha256"] for content in there}) == 1 and "val_samples_sha256" in there[0]


def test_a_list_of_other_samples_is_refused_wherever_it_lies(local_run, s3_shards, synth_shards):
    content = checkpoint.read(local_run)
    options = {"nsweeps": 2, "batch_size": 2, "res_scale": 0.25, "nworkers": 0, "nworkers_val": 0}
    for shards in (synth_shards, s3_shards):
        tars = [f"{shards}/train-00{number}.tar" for number in (0, 1)]
        train, val, _ = make_loaders(Options(shards=tuple(tars), **options), torch.device("cpu"))
        check_samples(local_run, content, train, "")
        check_samples(local_run, content, val, "val_")
        other, _, _ = make_loaders(Options(shards=tuple(tars[::-1]), **options), torch.device("cpu"))
        with pytest.raises(ValueError, match="trained on other samples than these shards', although as many"):
            check_samples(local_run, content, other, "")


def test_a_stream_takes_the_list_and_says_that_its_order_is_another(local_run, synth_shards, capsys):
    options = {"nsweeps": 2, "batch_size": 2, "res_scale": 0.25, "nworkers": 0, "do_val": False}
    content = checkpoint.read(local_run, 2)  # in the middle of the first epoch
    for reader, notes in (("stream", 1), ("auto", 0)):
        train, _, _ = make_loaders(Options(shards=(str(synth_shards),), reader=reader, **options), torch.device("cpu"))
        check_samples(local_run, content, train, "")
        train.load_state_dict(content["loader"])
        note_other_order(content, train)
        assert capsys.readouterr().err.count("note: shards that are streamed have an order of their own") == notes


@pytest.fixture
def access(s3, tmp_path, monkeypatch):
    """A file with --store_options, which alone say where the bucket is."""
    names = {"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"}
    names |= {"AWS_ENDPOINT_URL": "endpoint", "AWS_DEFAULT_REGION": "region"}
    options = {option: os.environ[variable] for variable, option in names.items()}
    for variable in names:
        monkeypatch.delenv(variable)
    path = tmp_path / "access.json"
    path.write_text(json.dumps(options))
    return path


def test_two_processes_fetch_each_sample_once(s3, s3_shards, access, tmp_path):
    """Two epochs of cameras, one request per keyframe; in the second all is in the cache, whichever process put it there."""
    cameras = ["--use_radar", "False", "--use_lidar", "False", "--do_val", "False", "--device_ids", "0,1"]
    more = ["--max_iters", 10, "--store_options", access, "--cache_dir", tmp_path / "cache"]
    before = len(s3.requests('.tar HTTP/1.1" 206'))
    result = run_module(*words(f"{s3_shards}/train-*.tar", tmp_path, *cameras, *more))
    assert len(s3.requests('.tar HTTP/1.1" 206')) - before == 20 + 1  # and a look at the categories of one
    told = re.findall(r"(\d+ % of this process's \d+) train keyframes came from the cache", result.stderr)
    assert told[-2:] == ["0 % of this process's 10", "100 % of this process's 10"] and len(told) <= 3
    assert not any(b"secret_access" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != access)
    given = {"init_dir": str(run_folder(tmp_path)), "store_options": str(access)}
    assert read_options(given).val_shards == (f"{s3_shards}/val-000.tar",)


def invoke(command, *arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_a_bucket_is_written_counted_and_drawn_with_store_options_alone(s3, small_world, access, tmp_path):
    shared = ["--version", "v1.0-mini", "--dataroot", small_world, "--sweeps", 2, "--workers", 2, "--train-shards", 2]
    shared += split_file(tmp_path, small_world)
    there, here = f"s3://{s3.bucket}/with-options", tmp_path / "here"
    for out in (there, here):
        result = invoke(preprocess_run.main, *shared, "--out", out, "--store-options", access)
        assert result.exit_code == 0, result.output
    store = open_store(there, json.loads(access.read_text()))
    assert {name: store.read(name) for name in store.list()} == {p.name: p.read_bytes() for p in here.glob("[!.]*")}
    assert verify(there, options=store.options)[0] == []
    store.write("layers/maps/val-000.tar", bytes(1024))
    (here / "layers" / "maps").mkdir(parents=True)
    (here / "layers" / "maps" / "val-000.tar").write_bytes(bytes(1024))
    shown = [invoke(preprocess_show.main, out, "--json", "--store-options", access) for out in (there, here)]
    assert shown[0].exit_code == 0 and shown[0].stdout == shown[1].stdout, shown[0].output
    assert json.loads(shown[0].stdout)["layers"] == {"maps": {"shards": 1, "bytes": 1024}}
    for out, name in ((there, "there.png"), (here, "here.png")):
        drawn = invoke(show.main, out, 4, "--out", tmp_path / name, "--width", 400, "--store-options", access)
        assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    part = invoke(preprocess_show.main, f"{there}/train-000.tar", "--store-options", access)
    assert f"of the 9 samples of {there}/train.manifest.json" in part.stderr


def test_a_pattern_that_leaves_samples_out_is_told_once(synth_shards, capsys):
    options = {"nsweeps": 2, "batch_size": 2, "res_scale": 0.25, "nworkers": 1}
    make_loaders(Options(shards=(f"{synth_shards}/train-001.tar",), **options), torch.device("cpu"))
    told = [line for line in capsys.readouterr().err.splitlines() if "samples" in line]
    assert len(told) == 1 and told[0].startswith("note: 8 of the 20 samples of ")


@pytest.fixture(scope="module")
def server(synth_shards):
    server = FaultyServer(synth_shards)
    yield server
    server.close()


def test_a_server_that_fails_for_good_ends_a_run_in_one_line(synth_shards, tmp_path):
    server = FaultyServer(synth_shards)
    try:
        process = start(
            *words(f"{server.address}/train.manifest.json", tmp_path, "--do_val", "False", "--retry_minutes", 0)
        )
        while process.poll() is None and not any(".tar" in path and kind for _, path, kind in server.requests):
            time.sleep(0.02)
        server.lasting = "reset"
        text = process.communicate(timeout=120)[1]
    finally:
        server.close()
    [line] = [line for line in text.splitlines() if line.startswith("error:")]
    assert process.returncode == 1 and "Traceback" not in text
    assert re.match(
        rf"error: {server.address}/train-00[01].tar: given up after 5 tries: .*\(sample scene-\d+_\d+\)$", line
    )


def test_a_folder_means_its_val_split_to_an_evaluation(synth_shards):
    options = Options(shards=(str(synth_shards),), nsweeps=2, batch_size=2, res_scale=0.25, nworkers=0)
    train, val, _ = make_loaders(options, torch.device("cpu"), want_train=False)
    assert train is None and val.reader.facts["split"] == "val" and len(val.reader) == 4


def test_as_many_requests_are_in_flight_as_asked_for_whatever_the_cores(server):
    """--nworkers asks for as many, although no more threads than cores decode; indexes are read side by side too."""
    options = {"nsweeps": 2, "batch_size": 20, "res_scale": 0.25, "do_val": False, "use_lidar": False}
    shards = (f"{server.address}/train.manifest.json",)
    with server.hold(".idx.json", 2):
        train, _, _ = make_loaders(Options(shards=shards, requests=4, nworkers=12, **options), torch.device("cpu"))
    assert server.most_at_once >= 2  # the server still counts one whose answer the client has already
    with server.hold(".tar", 12):
        for _ in train:
            pass
    assert server.most_at_once >= 12 and train.nworkers <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("ncams, seqlen", [(1, 1), (3, 2), (6, 1)])
def test_what_is_drawn_is_fetched_ahead_and_nothing_else(server, synth_shards, ncams, seqlen):
    """As many requests and bytes with threads that fetch ahead as without, and the batches of local shards."""
    options = {**GRID, "bsz": 4, "seed": 3, "seqlen": seqlen, "temporal_aug": seqlen > 1}
    shards = {"local": f"{synth_shards}/train-*.tar", "ahead": f"{server.address}/train.manifest.json"}
    shards["alone"] = shards["ahead"]
    loaders = {
        name: compile_data(where, None, {**CONF, "ncams": ncams}, nworkers=0 if name == "alone" else 3, **options)[0]
        for name, where in shards.items()
    }
    for _ in range(2):
        for local, ahead, alone in zip(*loaders.values(), strict=True):
            assert any(thread.name.startswith("source") for thread in threading.enumerate())
            equal(local, ahead)
            equal(local, alone)
    ahead, alone = loaders["ahead"].reader, loaders["alone"].reader
    assert ahead.requests_made == alone.requests_made and ahead.bytes_read == alone.bytes_read
