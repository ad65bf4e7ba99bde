"""train.evaluate, train.compare and train.report as people run them, on a tiny run."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import run_module
from tests.test_resume import arguments, run_folder
from train import checkpoint, evaluate
from train.data import compile_data, make_vox_util
from train.evaluation.robustness import CORRUPTIONS, robustness, with_moved_cameras, without_camera, without_points
from train.forward import with_voxels
from train.gallery import chosen_rows
from train.model.interface import Needs
from train.options import Options, as_dict


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
    curves = EventAccumulator(str(run.parent.parent / "logs" / run.name / "eval"))
    curves.Reload()
    assert {f"eval/{label}/{name}/all" for label in ("simple_bev", "visibility_>=_2") for name in ("iou", "recall")} < {
        *(tags := curves.Tags()["scalars"])
    } and {tag.split("/")[2] for tag in tags} >= {"precision", "iou_by_distance", "iou_by_light", "iou_by_weather"}
    for tag in tags:
        [event], (_, label, group, name) = curves.Scalars(tag), tag.replace("_", " ").split("/")
        [figure] = [
            f
            for f in content["figures"]
            if (f["group"], f["name"]) == (group, name) and f["label"].replace("_", " ") == label
        ]
        assert event.step == 1 and event.value == pytest.approx(figure["value"])
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


def test_options_that_override_the_run_are_noted_and_shards_are_found(run, synth_shards):
    shown = run_module("train.evaluate", run, "--pictures", 0, "--min_visibility", 2)
    assert "note: --protocol min_visibility; the run was trained with simple_bev" in shown.stderr
    assert "visibility >= 2                IoU" in shown.stdout and "<- headline" in shown.stdout
    failed = run_module("train.evaluate", run, "--target_categories", "vehicles", check=False)
    assert failed.returncode == 1 and "vehicle.car" in failed.stderr


CONF = {"final_dim": (28, 50), "resize_lim": [1.0, 1.0], "crop_offset": 0, "ncams": 6}
GRID = dict(centroid=(0, 1, 0), bounds=(-50, 50, -5, 5, -50, 50), res_3d=(50, 2, 50))


@pytest.fixture(scope="module")
def loader(small_shards):
    options = {"bsz": 2, "nworkers": 0, "nworkers_val": 0, "nsweeps": 2}
    return compile_data(None, f"{small_shards}/val-*.tar", CONF, **GRID, **options)[1]


class Returns(torch.nn.Module):
    """A network that sees a vehicle wherever lidar returns something, unless it is dark or a camera is not there."""

    needs = Needs(lidar="voxels", radar="voxels")

    def forward(self, batch, grid):
        sees = (batch.imgs.mean((1, 2, 3, 4, 5)) > 0.1) & (batch.intrins.abs().amax((1, 2, 3, 4)) < 1e5)
        return {"seg": batch.lidar_voxels[:, 0].amax(3) * sees[:, None, None, None] - 0.5}


def returns(options, grid):
    return Returns()


def test_the_command_measures_robustness_against_a_baseline(small_shards, tmp_path, monkeypatch, capsys):
    options = Options(
        model=f"{__name__}:returns",
        val_shards=(f"{small_shards}/val-*.tar",),
        log_dir=str(tmp_path / "logs"),
        res_scale=0.25,
        batch_size=3,
        device="cpu",
        bounds=(-25.0, 25.0, -5.0, 5.0, -25.0, 25.0),
        **dict(Z=24, Y=2, X=24, nsweeps=1, use_lidar=True, use_radar=True),
    )
    checkpoint.save(tmp_path / "run", 7, Returns(), options=as_dict(options))
    half = [{"name": f"{name}, strength {s}", "iou": 0.5} for name in CORRUPTIONS for s in (1, 2, 3)]
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"schema": 1, "figures": [], "robustness": {"rows": half}}))
    words = ["--robustness", "--baseline", baseline, "--pictures", 0, "--nworkers", 0, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["command", str(tmp_path / "run"), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    shown = capsys.readouterr()
    assert not ended.value.code, shown.err
    content = json.loads((tmp_path / "run" / "eval" / "eval.json").read_text())
    table = content["robustness"]
    rows = {row["name"]: row for row in table["rows"]}
    assert len(rows) == 2 * 6 + 4 + 2 + 3 * len(CORRUPTIONS)
    [iou] = [f["value"] for f in content["figures"] if (f["group"], f["label"]) == ("iou", "simple_bev")]
    assert table["clean_iou"] == iou > 0
    assert rows["without lidar"]["iou"] == 0 and rows["without lidar"]["change"] == -iou
    assert rows["without CAM_BACK"]["iou"] == 0 and rows["without radar"]["change"] == 0
    assert rows["black CAM_FRONT"]["change"] == 0
    ious = np.array([[rows[f"{name}, strength {s}"]["iou"] for s in (1, 2, 3)] for name in CORRUPTIONS])
    assert 0 in ious and iou in ious
    assert table["mRR"] == pytest.approx(100 * (ious / iou).mean())
    assert table["mCE"] == pytest.approx(100 * ((1 - ious).mean(1) / 0.5).mean())
    assert f"Mean resilience rate (mRR) {table['mRR']:.1f} %" in (text := " ".join(shown.out.split()))
    assert f"Mean corruption error (mCE) {table['mCE']:.1f} %" in text and f"without lidar 0.0000 {-iou:+.4f}" in text


def test_a_baseline_without_robustness_is_refused_before_anything_is_evaluated():
    with pytest.raises(ValueError, match="without --robustness"):
        robustness(None, {"figures": []}, None, (), ())


def test_a_sensor_that_is_gone_leaves_padding_and_the_other_one(loader):
    batch, grid = next(iter(loader)), make_vox_util((GRID["centroid"], GRID["bounds"], GRID["res_3d"]))
    needs = Needs(lidar="voxels", radar="metaradar")
    both = with_voxels(batch, needs, grid)
    for sensor, other in (("lidar", "radar"), ("radar", "lidar")):
        gone = without_points(batch, sensor)
        voxels = with_voxels(gone, needs, grid)
        assert getattr(both, f"{sensor}_voxels").any() and not getattr(voxels, f"{sensor}_voxels").any()
        assert torch.equal(getattr(voxels, f"{other}_voxels"), getattr(both, f"{other}_voxels"))
        assert getattr(gone, f"{other}_data") is getattr(batch, f"{other}_data")
        assert getattr(batch, f"{sensor}_data").any() and not getattr(gone, f"{sensor}_data").any()
    gone = without_points(batch, "lidar")
    assert batch.lidar0_data.any() and not gone.lidar0_data.any() and not gone.num_lidar0.any()
    assert (gone.lidar_extra == -1).all()


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
