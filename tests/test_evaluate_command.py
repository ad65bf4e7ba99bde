"""train.evaluate, train.compare and train.report as people run them, on a tiny run."""

import json
import os
import signal

import cv2
import pytest
import torch

from tests.conftest import run_module
from tests.test_resume import arguments, run_folder, start
from train.data import compile_data, make_vox_util
from train.data.config import LabelSpec
from train.distributed import World
from train.evaluate import _check_folder
from train.evaluation.referee import referee
from train.evaluation.robustness import CORRUPTIONS, robustness, with_moved_cameras, without_camera
from train.gallery import chosen_rows
from train.model.interface import Needs


@pytest.fixture(scope="module")
def run(synth_shards, tmp_path_factory):
    """Folder of a run of one update."""
    out = tmp_path_factory.mktemp("evaluated")
    run_module(*arguments(synth_shards, out, "--max_iters", 1, "--do_val", "False"))
    return run_folder(out)


def test_one_command_evaluates_compares_and_reports(run, tmp_path):
    shown = run_module("train.evaluate", run, "--pictures", 3)
    assert shown.stdout.startswith("step 1; 4 samples; IoU 0.") and "Traceback" not in shown.stderr
    assert "protocol simple_bev; grid 24x2x24; fp32 on 1 x cpu" in shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 79 + len(str(run))
    content = json.loads((run / "eval" / "eval.json").read_text())
    assert content["about"]["samples"] == "4 of 4" and len(content["about"]["samples_sha256"]) == 64
    by = {(f["group"], f["label"]): f for f in content["figures"] if f["name"] == "all"}
    assert {label for group, label in by if group == "iou"} == {"simple_bev", "visibility >= 1", "visibility >= 2"}
    assert f"IoU {by['iou', 'simple_bev']['value']:.4f}" in shown.stdout.splitlines()[0]
    pictures = sorted((run / "eval").glob("*.jpg"))
    assert len(pictures) == 3 and all(cv2.imread(str(path)) is not None for path in pictures)

    # Two processes count what one does; only the network's own arithmetic may depend on the batch.
    again = run_module(
        "train.evaluate", run, "--pictures", 0, "--out", tmp_path / "two", "--device", "cpu", "--device_ids", "0,1"
    )
    assert "2 x cpu" in again.stderr
    other = json.loads((tmp_path / "two" / "eval.json").read_text())
    assert other["scenes"] == content["scenes"] and other["samples"] == 4
    truth = {f["label"]: f["denominator"] for f in other["figures"] if (f["group"], f["name"]) == ("recall", "all")}
    assert truth == {label: by["recall", label]["denominator"] for label in truth}

    compared = run_module("train.compare", run, tmp_path / "two").stdout
    assert "1 scenes in common" in compared and max(map(len, compared.splitlines())) <= 79 + len(str(run))
    page = tmp_path / "report.html"
    run_module("train.report", run, "--out", page)
    assert f"IoU {by['iou', 'simple_bev']['value']:.4f}" in page.read_text() and page.stat().st_size < 5_000_000


def test_ctrl_c_ends_an_evaluation_in_one_line(run):
    """It reaches two processes and their launcher, while these go through their batches again and again."""
    words = ["--robustness", "--pictures", 0, "--device", "cpu", "--device_ids", "0,1", "--out", run / "never"]
    process = start("train.evaluate", run, *words)
    opening = next(line for line in process.stderr if line.startswith("protocol"))
    assert "2 x cpu" in opening
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130 and said == ["stopped by SIGINT"], said


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path):
    _check_folder(tmp_path / "new" / "out")
    assert not list((tmp_path / "new" / "out").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{tmp_path}/file/out: cannot be written .*; give another --out"):
        _check_folder(tmp_path / "file" / "out")


def test_options_that_override_the_run_are_noted_and_shards_are_found(run, synth_shards):
    shown = run_module("train.evaluate", run, "--pictures", 0, "--min_visibility", 2)
    assert "note: --protocol min_visibility; the run was trained with simple_bev" in shown.stderr
    assert "visibility >= 2                IoU" in shown.stdout and "<- headline" in shown.stdout
    failed = run_module("train.evaluate", run, "--target_categories", "vehicles", check=False)
    assert failed.returncode == 1 and "vehicle.car" in failed.stderr


class Oracle(torch.nn.Module):
    """A network that knows the labels where camera 0 sees bright pixels."""

    needs = Needs(lidar=False, radar=False)

    def forward(self, batch, grid):
        seen = (batch.imgs.mean() > 0.02) & (batch.intrins[..., 2].abs().max() < 1e5)
        return {"seg": (batch.seg_bev[:, 0] * 8 - 4) * (1.0 if seen else -1.0)}


CONF = {"final_dim": (28, 50), "resize_lim": [1.0, 1.0], "crop_offset": 0, "ncams": 6}
GRID = dict(centroid=(0, 1, 0), bounds=(-50, 50, -5, 5, -50, 50), res_3d=(50, 2, 50))


@pytest.fixture(scope="module")
def loader(synth_shards):
    labels = (LabelSpec("simple_bev"), LabelSpec("visibility >= 1", protocol="min_visibility"))
    options = {"bsz": 2, "nworkers": 0, "nworkers_val": 0, "use_radar": False, "use_lidar": False, "labels": labels}
    return compile_data(None, f"{synth_shards}/val-*.tar", CONF, **GRID, **options)[1]


def test_robustness_is_a_table_against_the_clean_run(loader):
    grid, world = make_vox_util((GRID["centroid"], GRID["bounds"], GRID["res_3d"])), World(0, 1, torch.device("cpu"))
    clean = referee(Oracle(), loader, grid, world)
    made = []

    def again(name, change):
        made.append(name)
        return referee(Oracle(), loader, grid, world, change=change)

    table = robustness(again, None, clean, ("CAM_FRONT", "CAM_BACK"), (), seed=1)
    rows = {row["name"]: row for row in table["rows"]}
    assert (
        table["clean_iou"] == 1.0 and rows["black CAM_BACK"]["iou"] == 1.0 and rows["without CAM_FRONT"]["iou"] == 0.0
    )
    assert len(made) == 2 + 2 + 4 + 3 * len(CORRUPTIONS) == len(rows)
    assert 0 < table["mRR"] <= 100 and set(table["resilience"]) == set(CORRUPTIONS)
    with pytest.raises(ValueError, match="without --robustness"):
        robustness(again, {"figures": []}, clean, (), ())


def test_damage_leaves_the_reference_camera_and_the_labels(loader):
    batch = next(iter(loader))
    moved = with_moved_cameras(batch, 2.0, 0.1, seed=3)
    assert torch.equal(moved.rots[:, :, 0], batch.rots[:, :, 0]) and torch.equal(moved.seg_bev, batch.seg_bev)
    turn = moved.rots[:, :, 1:].transpose(-1, -2) @ batch.rots[:, :, 1:]
    cosine = (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    torch.testing.assert_close(cosine.clamp(-1, 1).acos().rad2deg(), torch.full_like(cosine, 2.0), rtol=0, atol=0.05)
    away = (moved.trans - batch.trans)[:, :, 1:].norm(dim=-1)
    torch.testing.assert_close(away, torch.full_like(away, 0.1), rtol=0, atol=1e-4)
    grid = make_vox_util((GRID["centroid"], GRID["bounds"], GRID["res_3d"]))
    camera = batch.cams[0][2]
    intrins = without_camera(batch, camera).intrins
    slots = torch.tensor([[name == camera for name in names] for names in batch.cams])
    assert (intrins[:, 0][~slots] == batch.intrins[:, 0][~slots]).all()
    cam_T_ref = torch.eye(4)[None]
    pix_T_ref = intrins[:, 0][slots][:1] @ cam_T_ref
    assert not grid.sampling_grid(pix_T_ref, cam_T_ref, (28, 50))[1].any()


def test_the_gallery_holds_the_worst_the_median_and_the_best():
    class Row:
        def __init__(self, key, both):
            import numpy as np

            self.key, self.counts = key, {"a": np.array([[both, 10, 10]])}

    rows = [Row(f"{i:02d}", i) for i in range(10)]
    chosen = chosen_rows(rows, "a", 6)
    assert [(kind, row.key) for kind, row, _ in chosen] == [
        *(("worst", "00"), ("worst", "01")),
        *(("median", "04"), ("median", "05")),
        *(("best", "08"), ("best", "09")),
    ]
    assert [row.key for _, row, _ in chosen_rows(rows[:2], "a", 2)] == ["00", "01"] and not chosen_rows(rows, "a", 0)
