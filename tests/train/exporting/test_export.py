"""train.export as people run it, on a tiny run: the file, its folder, other runtimes, evaluation in the network's place."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from tests.conftest import call_module
from tests.train.exporting.tiny import write_run
from train.exporting.card import read_card
from train.exporting.operators import check_operators
from train.exporting.runtime import open_file

# Runs a file where importing torch or this project fails.
BARE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "train", "common", "preprocess", "bevshards"):
            raise AssertionError(f"imports {name}")

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def run(small_shards, made_once):
    return made_once("exported-run", lambda folder: write_run(folder, small_shards))


@pytest.fixture(scope="module")
def exported(run, made_once):
    """Folder of the run's export, and what was said."""

    def make(folder):
        said = call_module("train.export", run, "--out", folder / "e")
        (folder / "said").write_text(said.stderr)

    folder = made_once("exported", make)
    return folder / "e", (folder / "said").read_text()


def test_the_file_is_checked_and_its_folder_says_all(run, exported, small_shards):
    folder, said = exported
    assert {path.name for path in folder.iterdir()} == {
        *("model.onnx", "card.json", "README.md", "run.py", "reference.npz"),
    }
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert check_operators(model, 18)["GridSample"] == 6
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in (*model.graph.input, *model.graph.output)] == [
        "batch"
    ] * 11
    card = read_card(folder / "model.onnx")
    inputs = {name: (one["dtype"], one["shape"]) for name, one in card["inputs"].items()}
    assert inputs == {
        "images": ("uint8", ["B", 6, 90, 160, 3]),
        "pix_T_cams": ("float32", ["B", 6, 4, 4]),
        "ref_T_cams": ("float32", ["B", 6, 4, 4]),
        "radar_points": ("float32", ["B", "P", 19]),
        "radar_count": ("int64", ["B"]),
        "lidar_points": ("float32", ["B", "P", 3]),
        "lidar_count": ("int64", ["B"]),
        "ref_T_ego": ("float32", ["B", 4, 4]),
    }
    assert card["classes"] == ["vehicle", "human"] and card["outputs"]["seg"]["shape"] == ["B", 2, 16, 24]
    measured = card["measured"]
    assert measured["bound"] == 1e-4
    assert max(measured["difference"].values()) <= 1e-4 and max(measured["batches"].values()) <= 1e-4
    assert set(measured["batches"]) == {"2", "3"} and measured["samples"] == measured["of"] == 3
    assert measured["cells_other"] == measured["cells_near"] and "licence" in (folder / "README.md").read_text()
    assert set(measured["iou_of_classes"]["exported"]) == {"iou", "iou_vehicle", "iou_human"}
    assert card["checkpoint"]["step"] == 7 and "CC BY-NC-SA" in card["data"]["licence"]
    [tar] = card["data"]["shards"]
    assert Path(tar) == small_shards / "val-000.tar"
    assert re.search(r"model.onnx: \d+\.\d MB, fp32, opset 18, \d+ operators, view Sampled; exported in \d+ s", said)
    assert "batches of 2: " in said and "IoU 0." in said


def test_a_file_further_from_pytorch_than_the_bound_is_refused_with_pytorchs_own_rounding_beside_it(run, tmp_path):
    words = ["--out", tmp_path / "e", "--format", "torch", "--samples", 1, "--bound", 1e-9]
    said = call_module("train.export", run, *words, check=False)
    assert said.returncode == 1 and len(said.stderr.strip().splitlines()[-1:]) == 1
    line = said.stderr.strip().splitlines()[-1]
    found, own = (
        float(value) for value in re.search(r"by up to (\S+), more.*without oneDNN, by (\S+):", line).groups()
    )
    assert 1e-9 < found < 1e-4 and 0 < own < 1e-4 and "--bound" in line
    assert not list((tmp_path / "e").iterdir())


def test_a_map_is_drawn_without_torch_and_without_this_project(exported, small_shards, tmp_path):
    folder, _ = exported
    done = subprocess.run(
        [sys.executable, "-c", BARE, folder / "run.py", small_shards / "val-000.tar"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    [picture] = tmp_path.iterdir()
    key = np.load(folder / "reference.npz")["keys"][0]
    assert picture.name == f"{key}.png" and cv2.imread(str(picture)).shape == (16, 48, 3)
    lines = [line for line in (folder / "run.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 40


def test_quick_check_compares_anywhere(exported, small_shards, tmp_path):
    folder, _ = exported
    said = call_module("train.export", "--quick-check", folder / "model.onnx", small_shards).stderr
    assert re.search(
        r"model.onnx: 3 samples; largest difference seg \d\.\de-0\d, .* 0 of \d+ cells predicted otherwise", said
    )
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    reference = dict(np.load(other / "reference.npz"))
    np.savez(other / "reference.npz", **reference | {"seg": reference["seg"] + 0.01})
    told = call_module("train.export", "--quick-check", other / "model.onnx", small_shards, check=False)
    assert told.returncode == 1 and "seg differs by 1.0e-02 from what PyTorch said, more than 1.0e-03" in told.stderr
    (other / "card.json").unlink()
    told = call_module("train.export", "--quick-check", other / "model.onnx", small_shards, check=False)
    assert told.returncode == 1 and "card.json: not the card of an export" in told.stderr


def test_openvino_says_the_same(exported, small_shards):
    pytest.importorskip("openvino")
    folder, _ = exported
    program = runpy.run_path(str(folder / "run.py"))
    arrays = program["inputs"](program["read"](small_shards / "val-000.tar")[1])
    want, got = (open_file(folder / "model.onnx", backend)(arrays) for backend in ("onnxruntime", "openvino"))
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-4)


def test_evaluation_takes_the_file_in_the_networks_place(run, exported, tmp_path):
    folder, _ = exported
    own = call_module("train.evaluate", run, "--pictures", 0, "--out", tmp_path / "own")
    other = call_module("train.evaluate", "--exported", folder / "model.onnx", "--pictures", 0, "--out", tmp_path / "e")
    cells = re.search(r"(\d+) of (\d+) cells predicted otherwise than by the checkpoint, (\d+) of them", other.stdout)
    assert cells[1] == cells[3] and int(cells[2]) == 3 * 2 * 16 * 24
    first, second = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("own", "e"))
    assert second["about"]["exported"]["precision"] == "fp32" and first["about"]["exported"] is None
    # The loader rounds resized images to whole levels, the graph does not.
    ious = [{f["label"]: f["value"] for f in one["figures"] if f["group"] == "iou"} for one in (first, second)]
    assert ious[1] == pytest.approx(ious[0], abs=0.01)
    assert own.stdout.splitlines()[0].startswith("step 7; 3 samples; IoU ")
    shutil.copytree(folder, tmp_path / "damaged")
    with open(tmp_path / "damaged" / "model.onnx", "ab") as file:
        file.write(b"\\0")
    told = call_module("train.evaluate", "--exported", tmp_path / "damaged" / "model.onnx", check=False)
    assert told.returncode == 1 and "not the file that its card was written for" in told.stderr


def test_what_cannot_be_exported_is_told(run, small_shards, tmp_path):
    def told(*words):
        done = call_module("train.export", *words, check=False)
        assert done.returncode == 1, done.stderr
        return done.stderr

    assert "give a run's folder or a checkpoint file" in told()
    assert "--samples 0: it is a positive number or all" in told(run, "--samples", 0)
    assert "--format torch is fp32" in told(run, "--format", "torch", "--precision", "int8")
    assert "--calibration nobody: no key of these 3 samples" in told(run, "--calibration", "nobody", "--out", tmp_path)
    write_run(tmp_path / "plain", small_shards, model="tests.train.two_layers:TwoLayers")
    assert "TwoLayers has no infer; a network that is exported has" in told(tmp_path / "plain")
    assert not list(tmp_path.glob("*.onnx"))
