"""Options as people spell them, Simple-BEV's own commands, its checkpoints, backbone weights from a file."""

import hashlib
import importlib
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import pytest
import torch
import torchvision
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import url_map

from tests.conftest import REPOSITORY, call_module, run_module
from tests.train.test_resume import arguments, run_folder
from tests.train.test_trainer import fails
from train import checkpoint, demo
from train.command import options_command
from train.data import compile_data
from train.data.categories import FEW, _spread, check_categories
from train.evaluation.files import evaluation_file
from train.jobs import demo as demo_job
from train.model import Segnet
from train.model.backbone import load_backbone
from train.options import GROUPS, Options, as_dict, coerce
from train.processes.distributed import count_processes
from train.runs import find_run, folder_name, new_folder
from train.samples import network_of
from train.setup import make_network


def given(*words):
    """What a command's function gets of these words."""
    out = {}

    @options_command()
    def main(options):
        out.update(options)

    sys_argv, sys.argv = sys.argv, ["command", *words]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = sys_argv
    return out if ended.value.code == 0 else ended.value.code


@pytest.mark.parametrize(
    "words,want",
    [
        (["--use_radar"], {"use_radar": True}),
        (["--use-radar", "--exp-name", "a"], {"use_radar": True, "exp_name": "a"}),
        (["--use_radar=True", "--use_scheduler=False"], {"use_radar": True, "use_scheduler": False}),
        (["--use_radar", "False", "--lr", "3e-4"], {"use_radar": False, "lr": 3e-4}),
        (["--device_ids=[0,1]"], {"device_ids": (0, 1)}),
        (["--device-ids", "0,1"], {"device_ids": (0, 1)}),
        (["--device_ids=[]", "--ignore_load=['a','b']"], {"device_ids": (), "ignore_load": ("a", "b")}),
        (["--shards", "a.tar", "b.tar", "--Z", "100", "--Y=4"], {"shards": ("a.tar", "b.tar"), "Z": 100, "Y": 4}),
        (
            ["--use-radar_filters", "--val-shards", "a.tar", "b.tar"],
            {"use_radar_filters": True, "val_shards": ("a.tar", "b.tar")},
        ),
        (["--shards", "a.tar,b.tar"], {"shards": ("a.tar", "b.tar")}),
        (["--shards=[s3://b/<0..9>.tar,x/*.tar]"], {"shards": ("s3://b/<0..9>.tar", "x/*.tar")}),
        (["--shards", "pipe:cat a.tar,b.tar"], {"shards": ("pipe:cat a.tar,b.tar",)}),
        (["--shards", "a,b/train-*.tar"], {"shards": ("a,b/train-*.tar",)}),
        (["--run_name"], {"run_name": "dated"}),
        (["--run-name", "mine", "--use_lidar"], {"run_name": "mine", "use_lidar": True}),
        (["--min_visibility", "2"], {"min_visibility": 2, "protocol": "min_visibility"}),
        (["--min_visibility", "2", "--protocol", "simple_bev"], 1),
        (["--protocol", "simple_bev"], {"protocol": "simple_bev", "min_visibility": 1}),
        (["--min_visibility", "40"], 1),
        (["--bounds=-50,50,-5,5,-50,50"], {"bounds": (-50.0, 50.0, -5.0, 5.0, -50.0, 50.0)}),
        (["--max_iters", "1.5"], 1),
        (["--use_radar", "maybe"], 1),
        (["--learning_rate", "1"], 2),
    ],
)
def test_spellings(words, want):
    assert given(*words) == want


def test_every_option_survives_a_config_file():
    options = Options(device_ids=(0, 1), ignore_load=("head",), shards=("a", "b"))
    again = {name: coerce(name, value) for name, value in json.loads(json.dumps(as_dict(options))).items()}
    assert Options(**again) == options
    assert coerce("lr", "3e-4") == 3e-4  # YAML reads it as a text


def test_help_lists_every_option_in_its_group_within_80_columns():
    result = subprocess.run(
        [sys.executable, "-m", "train.run", "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={"COLUMNS": "80", "PATH": ""},
    )
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Usage: python -m train.run") and max(map(len, lines)) <= 80
    assert [line[:-1] for line in lines if line in {f"{title}:" for title in GROUPS.values()}] == list(GROUPS.values())
    for name in as_dict(Options()):
        assert f"  --{name} " in result.stdout


def test_impossible_values_are_told_with_the_remedy():
    wrong = {
        "--use_radar": dict(use_metaradar=True),
        "res101": dict(encoder_type="vgg"),
        "0.25": dict(res_scale=0.2),
        "bf16 or fp32": dict(precision="fp16"),
        "number or all": dict(val_batches="0"),
        "--use_lidar": dict(do_rgbcompress=False, use_lidar=True),
        "6 numbers": dict(bounds=(1.0,)),
        "lower and a higher": dict(bounds=(5.0, -5.0, -5.0, 5.0, -5.0, 5.0)),
        "--lr": dict(lr=0.0),
        "--ncams -1": dict(ncams=-1),
        "--seed -1": dict(seed=-1),
        "--Z 0": dict(Z=0),
        "--min_visibility 2 belongs to": dict(min_visibility=2),
        "--min_visibility 40: it is 1 to 4": dict(min_visibility=40, protocol="min_visibility"),
    }
    for remedy, values in wrong.items():
        with pytest.raises(ValueError, match=re.escape(remedy)):
            Options(**values).validate()


COMMANDS = ("run", "verify", "index", "show", "synth.__main__")
COMMANDS = [
    *(f"preprocess.{name}" for name in COMMANDS),
    *(f"train.{name}" for name in "demo show compare report".split()),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_underscores_and_hyphens(name):
    command = importlib.import_module(name).main
    with command.make_context("it", [], resilient_parsing=True) as context:
        for option in command.params:
            for word in (w for w in option.opts if w.startswith("--")):
                for spelling in (word, "--" + word[2:].replace("-", "_"), "--" + word[2:].replace("_", "-")):
                    words = [spelling] if option.is_flag else [spelling, "1"]
                    assert option.name in command.make_parser(context).parse_args(args=words)[0], spelling


@pytest.mark.parametrize("name", ["run", "evaluate"])
def test_every_option_of_training_is_taken_with_underscores_and_hyphens(monkeypatch, capsys, name):
    """The help, which ends the command, comes last: all words before it were understood."""
    names = [f.name for f in fields(Options)]
    values = {name: "1" for name in names} | {"model": "simple_bev"}  # whose own options the help shows
    words = [word for own in names for word in (f"--{own}={values[own]}", f"--{own.replace('_', '-')}={values[own]}")]
    for more, code in (([], 0), (["--learning-rate=1"], 2)):
        monkeypatch.setattr(sys, "argv", ["command", *words, *more, "--help"])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"train.{name}").main()
        assert ended.value.code == code, capsys.readouterr().err


def test_make_takes_folders_of_any_name():
    shown = subprocess.run(
        ["make", "-n", "shards", "OUT=o  [u]*, t", "DATAROOT=~/a ~/b"], cwd=REPOSITORY, capture_output=True, text=True
    )
    words = shlex.split(shown.stdout.replace("\\\n", " "))
    assert [words[words.index(name) + 1] for name in ("--dataroot", "--out")] == ["~/a ~/b", "o  [u]*, t"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working folder with the runs a and b in checkpoints, logs of a, and a run that ended early."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        checkpoint.save(tmp_path / "checkpoints" / name, 1, torch.nn.Linear(1, 1))
    os.utime("checkpoints/a", (0, 0))
    (tmp_path / "checkpoints" / "early").mkdir()
    (tmp_path / "checkpoints" / "early" / "config.yaml").touch()
    for name in ("logs/a/t/events.1", "logs/gone/t/events.1", "elsewhere/x/model-1.pth", "other/logs/c/v/events.1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    checkpoint.save(tmp_path / "other" / "saved" / "c", 1, torch.nn.Linear(1, 1))
    return tmp_path


def test_runs_are_found_where_they_lie(runs):
    for text, want in (
        ("a", "checkpoints/a"),
        ("checkpoints/b", "checkpoints/b"),
        ("checkpoints/a/model-000000001.pth", "checkpoints/a/model-000000001.pth"),
        ("logs/a", "checkpoints/a"),
        ("other/logs/c", str(runs / "other" / "saved" / "c")),
        ("elsewhere", "elsewhere/x"),
    ):
        assert find_run(text, "checkpoints") == want
    for text, told in (
        ("checkpoints", "2 runs are there; name one, the newest is checkpoints/b"),
        ("nowhere", "no such file or folder; the newest run is checkpoints/b"),
        ("early", "begin it again with --config checkpoints/early/config.yaml"),
        ("logs/gone", "no checkpoint is there; give its checkpoints, under --ckpt_dir"),
        ("logs", "no checkpoint is there; give a run's folder"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            find_run(text, "checkpoints")


def test_evaluations_and_networks_are_found_as_runs_are(runs):
    for name in ("a", "b"):
        Path("checkpoints", name, "eval").mkdir()
        Path("checkpoints", name, "eval", "eval.json").touch()
    os.utime("checkpoints/a", (0, 0))
    for text in ("a", "checkpoints/a", "checkpoints/a/eval", "checkpoints/a/model-000000001.pth", "logs/a"):
        assert evaluation_file(text) == Path("checkpoints/a/eval/eval.json"), text
    for text, told in (
        ("checkpoints", "2 runs are there; name one, the newest is checkpoints/b"),
        ("nowhere", "no such file or folder; the newest run is checkpoints/b"),
        ("elsewhere/x", "holds no evaluation; python -m train.evaluate elsewhere/x makes it"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            evaluation_file(text)
    for text, told in (
        ("logs/a", "checkpoints/a/model-000000001.pth: records no options"),
        ("nowhere", "--run nowhere: there is no such file or folder; the newest run is checkpoints/b"),
        ("checkpoints", "--run checkpoints: 2 runs are there"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            network_of(text, "cpu")
    Path("checkpoints/a/model-000000002.pth").write_bytes(b"cut")
    remedy = "the newest sound one: python -m train.show … --run checkpoints/a/model-000000001.pth"
    with pytest.raises(ValueError, match=remedy):
        network_of("a", "cpu")


def test_evaluation_takes_the_run_alone(runs):
    assert "give a run's folder or a checkpoint file: python -m train.evaluate RUN" in fails("train.evaluate")
    assert "leave one out" in fails("train.evaluate", "a", "--init_dir", "b")
    assert "name one, the newest is" in fails("train.evaluate", runs / "checkpoints")


def test_names_that_are_no_names_are_told():
    for option in ("--exp_name", "--run_name"):
        assert f"write {option} a_b" in fails("train.run", option, "a/b")


def test_folders_hold_a_date_where_that_is_asked_for(tmp_path):
    now = datetime(2026, 1, 2, 17, 45, 58)
    assert folder_name(Options(run_name="dated"), now) == "2026-01-02_17-45-58_8x5_3e-4s_debug"
    assert folder_name(Options(), now) == "8x5_3e-4s_debug_17:45:58"
    options = Options(run_name="mine", ckpt_dir=str(tmp_path))
    assert new_folder(options) == new_folder(options) == tmp_path / "mine"  # nothing was saved in it
    (tmp_path / "mine" / "model-000000001.pth").touch()
    with pytest.raises(ValueError, match="is there already; --resume it"):
        new_folder(options)
    for name in ("..", ".", "a/b"):
        with pytest.raises(ValueError, match=f"--run_name {name}: it names one folder in --ckpt_dir"):
            new_folder(Options(run_name=name, ckpt_dir=str(tmp_path / "inner")))
    assert not (tmp_path / "inner").exists()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_demo_takes_one_device_of_many(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    options = demo_job.on_one_device(demo.options_of(demo.WHOLE, "shards", "out"))
    assert options.device == "cuda:0" and count_processes(options.device, options.device_ids) == 1
    options.validate(count_processes(options.device, options.device_ids))
    assert count_processes("", ()) == count


def test_categories_that_match_nothing_are_told_with_those_that_are_there(synth_shards, tmp_path):
    for command in (["train.evaluate", tmp_path], arguments(synth_shards, tmp_path / "out")):
        if command[0] == "train.evaluate":
            checkpoint.save(tmp_path, 1, torch.nn.Linear(1, 1))
        words = ["--shards", f"{synth_shards}/val-*.tar"] if command[0] == "train.evaluate" else []
        told = fails(*command, *words, *OURS.split(), "--target_categories", "vehicle.car,vehicles")
        if command[0] == "train.run":
            assert told.startswith("error: --target_categories vehicles: no box") and "vehicle.car" in told
        told = fails(*command, *words, *OURS.split(), "--target_categories", "car")
        assert "error: --target_categories car: no box" in told and "vehicle.car" in told


def test_categories_are_looked_for_in_a_few_keyframes():
    """One look is enough where the category is common; the whole set is read only where it is missing."""

    class Source(list):
        is_stream, looked = False, 0

        def read(self, number, members):
            self.looked += 1
            return {members[0]: json.dumps({"boxes": {"category": self[number]}}).encode()}

        def begin(self, frames, members):
            assert len(frames) == len(list(members)) == len(self) - FEW

        def close(self):
            pass

    common = Source([["vehicle.car"]] * 1000)
    check_categories(common, ("vehicle",), all_of_them=True)
    assert common.looked == 1
    late = Source([["animal"]] * 999 + [["vehicle.car", "human"]])
    check_categories(late, ("vehicle", "human"), all_of_them=True)
    check_categories(late, ("vehicle", "plane"), all_of_them=False)
    with pytest.raises(ValueError, match="^--target_categories plane: no box .* they have animal, human, vehicle.car$"):
        check_categories(late, ("vehicle", "plane"), all_of_them=True)
    assert {len(set(_spread(n))) - n for n in (1, 2, 3, 8, 999, 1000)} == {0}


def test_the_grid_has_a_middle_without_being_told(synth_shards):
    conf = {"final_dim": (28, 50), "resize_lim": [1.0, 1.0], "crop_offset": 0, "ncams": 6}
    given, told = (
        compile_data(
            None, f"{synth_shards}/val-*.tar", conf, centroid, Options.bounds, (4, 2, 4), 1, 0, nworkers_val=0
        )[1]
        for centroid in (None, torch.tensor([[0.0, 1.0, 0.0]]))
    )
    points = torch.rand(1, 5, 3)
    assert torch.equal(given.stage.vox_util.ref_to_mem(points), told.stage.vox_util.ref_to_mem(points))
    assert torch.equal(next(iter(given)).seg_bev, next(iter(told)).seg_bev)


def test_weights_with_another_hash_are_refused(tmp_path, monkeypatch):
    """As a file that was exchanged on its way would be: its name holds the hash."""
    (tmp_path / "efficientnet-b0-00000000.pth").write_bytes(b"exchanged")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(url_map, "efficientnet-b0", (tmp_path / "efficientnet-b0-00000000.pth").as_uri())
    with pytest.raises(ValueError, match="invalid hash value"):
        load_backbone(Segnet(8, 2, 8, encoder_type="effb0").encoder, Options(encoder_type="effb0"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "other"))
    evil = tmp_path / "evil.pth"
    torch.save({"a": Path("x")}, evil)
    named = tmp_path / f"efficientnet-b0-{hashlib.sha256(evil.read_bytes()).hexdigest()[:8]}.pth"
    evil.rename(named)
    monkeypatch.setitem(url_map, "efficientnet-b0", named.as_uri())
    with pytest.raises((ValueError, pickle.UnpicklingError), match="[Ww]eights"):
        load_backbone(Segnet(8, 2, 8, encoder_type="effb0").encoder, Options(encoder_type="effb0"))


# The README of Simple-BEV, smaller; what it says of cameras, radar and evaluation.
TRAIN = (
    "train.run --exp_name=rgb_mine --max_iters=1 --log_freq=1000 --dset=mini --batch_size=2 --grad_acc=2 "
    "--use_scheduler=True --data_dir={shards} --log_dir={out}/logs_nuscenes --ckpt_dir={out}/ckpt --res_scale=0.25 "
    "--ncams=6 --encoder_type=effb0 --do_rgbcompress=True --device_ids=[0] {more}"
)
RADAR = "--nsweeps=3 --use_radar=True --use_metaradar=True --use_radar_filters=False"
EVAL = (
    "train.evaluate --batch_size=2 --data_dir={shards} --log_dir={out}/logs_eval --init_dir={init} --res_scale=0.25 "
    "--device_ids=[0,1] {more}"
)
ALONE = "--device_ids=[]"  # after EVAL's: in this process
OURS = "--device=cpu --no_pretrained --nworkers=2 --nworkers_val=2 --Z=24 --Y=2 --X=24 --latent_dim=16"


@pytest.mark.parametrize("sensors", ["", RADAR], ids=["camera", "metaradar"])
def test_commands_of_simple_bev_and_its_checkpoints(synth_shards, tmp_path, sensors):
    call_module(*TRAIN.format(shards=synth_shards, out=tmp_path, more=f"{OURS} {sensors}").split())
    folder = run_folder(tmp_path)
    assert re.fullmatch(r"2x2_3e-4s_rgb_mine_\d\d:\d\d:\d\d", folder.name)
    line = EVAL.format(shards=synth_shards, out=tmp_path, init=folder, more="--device=cpu").split()
    if not sensors:
        assert "step 1; 4 samples; IoU 0." in run_module(*line).stdout  # of two processes
        return
    assert "step 1; 4 samples; IoU 0." in call_module(*line, ALONE).stdout
    # Saved as Simple-BEV does: names without options, no scheduler.
    content = checkpoint.read(folder)
    kept = {name: content[name] for name in ("model_state_dict", "optimizer_state_dict")}
    theirs = tmp_path / "8x5_5e-4_rad_22:43:46"
    theirs.mkdir()
    torch.save(kept, theirs / "model-000000007.pth")
    line = EVAL.format(shards=synth_shards, out=tmp_path, init=theirs, more=f"{OURS} {sensors}").split()
    with_nearest = call_module(*line, "--encoder_type=effb0", ALONE).stdout
    assert with_nearest.startswith("step 7; 4 samples; IoU 0.")
    assert "does not fit the model: missing" in fails(*line, ALONE)  # the default encoder is another
    more = f"{OURS} {sensors} --init_dir={theirs} --load_step=True --load_optimizer=True --max_iters=8"
    result = call_module(*TRAIN.format(shards=synth_shards, out=tmp_path / "again", more=more).split())
    assert "step 000008/8" in result.stdout and "--interpolation nearest" in result.stderr
    again = checkpoint.read(run_folder(tmp_path / "again"))
    assert again["step"] == 8 and again["options"]["interpolation"] == "nearest"
    moments = again["optimizer_state_dict"]["state"]
    assert {int(entry["step"]) for entry in moments.values()} == {2}
    assert again["scheduler_state_dict"]["last_epoch"] == 8


def test_a_modality_that_the_shards_lack_is_refused(synth_shards, tmp_path):
    assert "sweeps" in fails(*arguments(synth_shards, tmp_path, "--nsweeps", 9))


@pytest.mark.parametrize("encoder_type", ["res50", "effb0"])
def test_backbone_weights_from_a_file(tmp_path, encoder_type):
    """The published names of torchvision and efficientnet-pytorch find their places; a classifier on top is left out."""
    torch.manual_seed(1)
    if encoder_type == "res50":
        source = torchvision.models.resnet50()
        first, deep = source.conv1.weight, source.layer3[5].conv3.weight
    else:
        source = EfficientNet.from_name("efficientnet-b0")
        first, deep = source._conv_stem.weight, source._blocks[10]._project_conv.weight
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    options = Options(encoder_type=encoder_type, backbone_weights=str(path))
    model, _ = make_network(options)
    load_backbone(model.encoder, options)
    state = [value for value in model.encoder.state_dict().values()]
    for weight in (first, deep):
        assert any(value.shape == weight.shape and torch.equal(value, weight) for value in state)
    other = Options(encoder_type="res101", backbone_weights=str(path))
    with pytest.raises(
        ValueError,
        match="weights.pth: not ImageNet weights in the layout of res101: .* are missing or of another shape",
    ):
        load_backbone(make_network(other)[0].encoder, other)
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="not readable weights"):
        load_backbone(model.encoder, options)


@pytest.mark.parametrize("encoder_type", ["res50", "effb0"])
def test_weights_that_cannot_be_downloaded_end_in_one_line(tmp_path, monkeypatch, encoder_type):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="--backbone_weights FILE or --no_pretrained"):
        load_backbone(Segnet(8, 2, 8, encoder_type=encoder_type).encoder, Options(encoder_type=encoder_type))
