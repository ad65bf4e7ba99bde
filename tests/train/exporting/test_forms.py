"""Every form of an export, and every built-in network and encoder: the longer proofs."""

import json

import numpy as np
import pytest

from tests.conftest import call_module
from tests.train.exporting.tiny import write_run
from train.exporting.card import read_card
from train.exporting.runtime import open_file

pytestmark = pytest.mark.slow
PLAIN = {"model": "simple_bev", "use_radar": False, "use_metaradar": False, "use_lidar": False, "encoder_type": "effb0"}
PAST = PLAIN | {"model": "tests.train.exporting.tiny:build", "past": 2}


def exported(run, out, *words):
    call_module("train.export", run, "--out", out, *words)
    file = out / ("model.pt2" if "torch" in words else "model.onnx")
    card = read_card(file)
    assert card["precision"] != "fp32" or max(card["measured"]["difference"].values()) <= 1e-4
    return file, card


@pytest.mark.parametrize(
    "changes",
    [
        PLAIN,
        PLAIN | {"encoder_type": "effb4", "do_rgbcompress": False, "frame": "ego"},
        PLAIN | {"encoder_type": "res50", "true_times": True, "image_size": "64x96", "res_scale": 2.0},
        PLAIN | {"encoder_type": "res101", "use_radar": True},
        {"model": "pillars", "use_lidar": False, "use_radar": False, "use_metaradar": False, "encoder_type": "effb0"},
        PAST,
        PLAIN | {"model": "lift_splat", "frame": "ego", "image_size": "64x96", "res_scale": 2.0},
        PLAIN | {"encoder_type": "timm:resnet18.a1_in1k"},
    ],
    ids=["effb0", "effb4", "res50", "res101", "pillars", "past", "lift_splat", "timm"],
)
def test_every_network_and_encoder_is_exported(changes, small_shards, tmp_path):
    write_run(tmp_path / "run", small_shards, **changes)
    words = ()
    if changes.get("model") == "lift_splat":
        told = call_module("train.export", tmp_path / "run", check=False).stderr
        assert "sorts points by the cells that a calibration puts them into" in told
        words = ("--calibration", json.loads((small_shards / "val-000.idx.json").read_text())["keys"][0])
    file, card = exported(tmp_path / "run", tmp_path / "out", *words)
    if changes.get("model") == "pillars":
        assert {"lidar_cells", "lidar_features", "radar_cells", "radar_features"} < set(card["inputs"])
    elif changes.get("past"):
        assert card["inputs"]["past_features"]["shape"] == ["B", 2, 6, 8, 8, 14]
        assert card["outputs"]["features"]["shape"] == ["B", 6, 8, 8, 14]
    else:
        said = call_module("train.export", "--quick-check", file, small_shards).stderr
        assert " 0 of " in said
    call_module("train.evaluate", "--exported", file, "--pictures", 0)


@pytest.mark.parametrize(
    "words",
    [
        ("--calibration", "KEY"),
        ("--calibration", "KEY", "--precision", "int8"),
        ("--precision", "fp16"),
        ("--images", "network", "--points", "voxels"),
        ("--images", "network", "--format", "torch"),
        ("--calibration", "KEY", "--format", "torch"),
    ],
    ids=["baked", "baked-int8", "fp16", "voxels", "torch", "baked-torch"],
)
def test_every_form_is_checked(words, small_shards, tmp_path, made_once):
    run = made_once("exported-run", lambda folder: write_run(folder, small_shards))
    key = json.loads((small_shards / "val-000.idx.json").read_text())["keys"][1]
    file, card = exported(run, tmp_path / "out", *(key if word == "KEY" else word for word in words))
    if "KEY" in words:
        assert set(card["constants"]) == {"pix_T_cams", "ref_T_cams", "ref_T_ego"} and card["view"] in (
            "Tall",
            "Gathered",
        )
        assert not set(card["constants"]) & set(card["inputs"]) and set(card["views_s"]) == {"Tall", "Gathered"}
    if "int8" in words:
        assert set(card["quantisation"]["error"]) == {"none", "stem", "compressor", "heads"}
        assert card["operators"]["QuantizeLinear"] > 20
    if card["precision"] != "fp32":
        assert 0 < card["measured"]["difference"]["seg"] < 1
    if "voxels" in words:
        reference = np.load(tmp_path / "out" / "reference.npz")
        assert card["inputs"]["radar_voxels"]["shape"] == ["B", 16, 16, 2, 24] and len(reference["keys"]) == 3
        assert not (tmp_path / "out" / "run.py").exists() and open_file(file)
    else:
        call_module("train.export", "--quick-check", file, small_shards)
