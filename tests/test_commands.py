"""Options as people spell them, Simple-BEV's own commands, its checkpoints, backbone weights from a file."""

import json
import re
import subprocess
import sys

import pytest
import torch
import torchvision
from efficientnet_pytorch import EfficientNet

from tests.conftest import REPOSITORY, run_module
from tests.test_resume import arguments, run_folder
from tests.test_trainer import fails
from train import checkpoint
from train.command import options_command
from train.model import Segnet
from train.model.backbone import load_backbone
from train.options import GROUPS, Options, as_dict, coerce
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
        "6 cameras": dict(ncams=7),
        "--seed -1": dict(seed=-1),
        "--Z 0": dict(Z=0),
    }
    for remedy, values in wrong.items():
        with pytest.raises(ValueError, match=re.escape(remedy)):
            Options(**values).validate()


# The README of Simple-BEV, smaller; what it says of cameras, radar and evaluation.
TRAIN = (
    "train.run --exp_name=rgb_mine --max_iters=1 --log_freq=1000 --dset=mini --batch_size=2 --grad_acc=2 "
    "--use_scheduler=True --data_dir={shards} --log_dir={out}/logs_nuscenes --ckpt_dir={out}/ckpt --res_scale=0.25 "
    "--ncams=6 --encoder_type=res50 --do_rgbcompress=True --device_ids=[0] {more}"
)
RADAR = "--nsweeps=3 --use_radar=True --use_metaradar=True --use_radar_filters=False"
EVAL = (
    "train.evaluate --batch_size=2 --data_dir={shards} --log_dir={out}/logs_eval --init_dir={init} --res_scale=0.25 "
    "--device_ids=[0,1] {more}"
)
OURS = "--device=cpu --no_pretrained --nworkers=2 --nworkers_val=2 --Z=24 --Y=2 --X=24 --latent_dim=16"


@pytest.mark.parametrize("sensors", ["", RADAR], ids=["camera", "metaradar"])
def test_commands_of_the_lineage_and_its_checkpoints(synth_shards, tmp_path, sensors):
    run_module(*TRAIN.format(shards=synth_shards, out=tmp_path, more=f"{OURS} {sensors}").split())
    folder = run_folder(tmp_path)
    assert re.fullmatch(r"2x2_3e-4s_rgb_mine_\d\d:\d\d:\d\d", folder.name)
    shown = run_module(*EVAL.format(shards=synth_shards, out=tmp_path, init=folder, more="--device=cpu").split()).stdout
    assert "step 1; 4 samples; IoU 0." in shown
    if not sensors:
        return
    # Saved as the lineage does: names without options, no scheduler.
    content = checkpoint.read(folder)
    kept = {name: content[name] for name in ("model_state_dict", "optimizer_state_dict")}
    theirs = tmp_path / "8x5_5e-4_rad_22:43:46"
    theirs.mkdir()
    torch.save(kept, theirs / "model-000000007.pth")
    line = EVAL.format(shards=synth_shards, out=tmp_path, init=theirs, more=f"{OURS} {sensors}").split()
    with_nearest = run_module(*line, "--encoder_type=res50").stdout
    assert with_nearest.startswith("step 7; 4 samples; IoU 0.")
    assert "does not fit the model: missing" in fails(*line)  # the default encoder is another
    more = f"{OURS} {sensors} --init_dir={theirs} --load_step=True --load_optimizer=True --max_iters=8"
    result = run_module(*TRAIN.format(shards=synth_shards, out=tmp_path / "again", more=more).split())
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
    load_backbone(model, options)
    state = [value for value in model.encoder.state_dict().values()]
    for weight in (first, deep):
        assert any(value.shape == weight.shape and torch.equal(value, weight) for value in state)
    other = Options(encoder_type="res101", backbone_weights=str(path))
    with pytest.raises(ValueError, match="not those of res101"):
        load_backbone(make_network(other)[0], other)
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="not readable weights"):
        load_backbone(model, options)


@pytest.mark.parametrize("encoder_type", ["res50", "effb0"])
def test_weights_that_cannot_be_downloaded_end_in_one_line(tmp_path, monkeypatch, encoder_type):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="--backbone_weights FILE or --no_pretrained"):
        load_backbone(Segnet(8, 2, 8, encoder_type=encoder_type), Options(encoder_type=encoder_type))


PEAK = """
import resource, sys, torch
from common.vox import VoxUtil
from train.model.camera_mean import camera_mean
cameras = int(sys.argv[1])
vox = VoxUtil(128, 8, 128, torch.tensor([[0.0, 1.0, 0.0]]), (-50, 50, -5, 5, -50, 50))
pix_T_cam = torch.eye(4).repeat(1, cameras, 1, 1)
pix_T_cam[..., :2, 2] = 8.0
feats = torch.rand((1, cameras, 64, 16, 16), requires_grad=True)
camera_mean(feats, pix_T_cam, torch.eye(4).repeat(1, cameras, 1, 1), vox).square().sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_peak_memory_of_training_through_the_camera_mean_does_not_grow_by_the_camera():
    """Four more cameras cost less than one volume, sampled features and what is kept for the backward pass included."""
    peaks = []
    for cameras in (2, 6):
        command = [sys.executable, "-c", PEAK, str(cameras)]
        peaks.append(int(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout))
    volume = 64 * 128 * 8 * 128 * 4
    assert peaks[1] - peaks[0] < volume
