"""train.evaluate, train.compare and train.report as people run them, on a tiny run."""

import hashlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import call_module, run_module
from tests.train.test_resume import arguments, run_folder, start
from train import checkpoint
from train import evaluate as evaluate_command
from train.data import Grid, compile_data, make_vox_util
from train.data.label_spec import LabelSpec
from train.evaluation.bins import BINS
from train.evaluation.corruptions import CORRUPTIONS
from train.evaluation.damage import damages, offsets, with_moved_cameras, without_camera, without_points
from train.evaluation.evaluator import evaluate
from train.evaluation.gallery import chosen_rows
from train.evaluation.robustness import baseline_ious, evaluate_damaged, robustness
from train.evaluation.samples import Evaluation, SceneSums
from train.evaluation.table import robustness_lines
from train.jobs import evaluating
from train.jobs.evaluating import _check_folders
from train.jobs.evaluation_options import read_options
from train.jobs.launch import launch
from train.model.forward import with_voxels
from train.model.interface import Needs
from train.options import Options, as_dict
from train.processes.distributed import World
from train.report import read_run
from train.setup import make_network
from train.step import LossStep, validate


@pytest.fixture(scope="module")
def run(synth_shards, tmp_path_factory):
    """Folder of a run of one update; the folders' names hold what patterns are made of."""
    out = tmp_path_factory.mktemp("evaluated") / "o [u]t*"
    out.mkdir()
    (out / "sh [x]?").symlink_to(synth_shards)
    call_module(*arguments(out / "sh [x]?", out, "--max_iters", 1, "--do_val", "False", "--precision", "fp32"))
    return run_folder(out)


def test_one_command_evaluates_compares_and_reports(run, tmp_path):
    shown = run_module("train.evaluate", run, "--pictures", 3)
    assert re.match(r"step 1; 4 samples; IoU 0\.\d{4}; [1-9]\d* labelled cells\n", shown.stdout)
    assert "Traceback" not in shown.stderr and "\r" not in shown.stderr
    assert "protocol simple_bev; grid 24x2x24; fp32 on 1 x cpu" in shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 79 + len(str(run))
    content = json.loads((run / "eval" / "eval.json").read_text())
    about = content["about"]
    assert about["samples"] == "4 of 4" and len(about["samples_sha256"]) == 64 and about["versions"]["bevshards"]
    [(tar, digest)] = about["shards"].items()
    assert digest == hashlib.sha256(Path(tar).read_bytes()).hexdigest()
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

    compared = call_module("train.compare", run, tmp_path / "two").stdout
    assert "1 scene in common" in compared and max(map(len, compared.splitlines())) <= 79 + len(str(run))
    page = tmp_path / "report.html"
    call_module("train.report", run, "--out", page)
    assert f"IoU {by['iou', 'simple_bev']['value']:.4f}" in page.read_text() and page.stat().st_size < 5_000_000
    read = read_run(run)
    assert read.curves["t/stats/iou"][0] == [1]
    assert [caption.split(":")[0] for caption, *_ in read.pictures] == ["worst", "median", "best"]
    assert all(re.fullmatch(r"\w+: \S+_\d+, IoU \d\.\d{3}", caption) for caption, *_ in read.pictures)
    assert len(read.samples) == 4 and all(
        set(sample) >= {"errors", "cameras", "iou", "scene"} for sample in read.samples
    )


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
    _check_folders(tmp_path / "new" / "out", tmp_path / "curves")
    assert not list((tmp_path / "new" / "out").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"{tmp_path}/file/out: cannot be written .*; give another --out"):
        _check_folders(tmp_path / "file" / "out", tmp_path / "curves")


def test_options_that_override_the_run_are_noted_and_shards_are_found(run, capsys):
    shown = call_module("train.evaluate", run, "--pictures", 0, "--min_visibility", 2)
    assert "note: --protocol min_visibility; the run was trained with simple_bev" in shown.stderr
    assert "visibility >= 2                IoU" in shown.stdout and "<- headline" in shown.stdout
    evaluation = evaluating.Evaluation({"out": None, "pictures": 0, "robustness": False, "baseline": None})
    for changed, told in (
        ({"target_categories": ("vehicles",)}, "--target_categories vehicles: no box .* vehicle.car"),
        ({"bounds": (900.0, 950.0, -5.0, 5.0, 900.0, 950.0)}, "no cell of these samples is labelled"),
    ):
        with pytest.raises(ValueError, match=told):
            launch(evaluation, read_options({"init_dir": str(run), **changed}))
    assert "IoU 0.0000; 0 labelled cells" in capsys.readouterr().out
    given = {"init_dir": str(run), "val_shards": ("https://host/val-000.tar?secret",), "precision": "bf16"}
    assert read_options(given).precision == "bf16"
    shards = run.parent.parent / "sh [x]?"
    told = capsys.readouterr().err
    assert "note: --precision bf16; the run was trained with fp32" in told and "secret" not in told
    assert f"note: --val_shards https://host/val-000.tar; the run recorded --shards {shards}/train-" in told
    own = checkpoint.read(checkpoint.find(run))["options"]
    read_options({"init_dir": str(run), "shards": tuple(own["shards"]), "precision": "fp32"})
    assert not capsys.readouterr().err


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
    grid, world = (
        make_vox_util(Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"])),
        World(0, 1, torch.device("cpu")),
    )
    clean = evaluate(Oracle(), loader, grid, world)
    off = offsets("0.5,30", "2,1000")
    changes = damages(("CAM_FRONT", "CAM_BACK"), (), seed=1, off=off)
    loads = []
    batches = (loads.append(batch) or batch for batch in loader)
    damaged = evaluate_damaged(Oracle(), batches, grid, world, changes)
    assert len(loads) == len(loader)
    table = robustness(damaged, None, clean, seed=1)
    rows = {row["name"]: row for row in table["rows"]}
    assert (
        table["clean_iou"] == 1.0 and rows["black CAM_BACK"]["iou"] == 1.0 and rows["without CAM_FRONT"]["iou"] == 0.0
    )
    assert 2 + 2 + 2 + 3 * len(CORRUPTIONS) == len(rows)
    assert "calibration off by 30 degrees, 1000 cm" in rows and off == ((0.5, 0.02), (30.0, 10.0))
    assert 0 < table["mRR"] <= 100 and set(table["resilience"]) == set(CORRUPTIONS)
    for degrees, centimetres in (("1,2", "5"), ("much", "5")):
        with pytest.raises(ValueError, match="--off_degrees .* as many numbers"):
            offsets(degrees, centimetres)


def test_robustness_has_intervals_in_pairs():
    """Twelve scenes; every damage takes a share of the hits of each, so that changes are surer than the IoUs themselves."""
    rng = np.random.default_rng(0)
    hits = {f"scene-{n}": int(hit) for n, hit in enumerate(rng.integers(200, 900, 12))}

    def under(share):
        return {name: np.array([[round(hit * share), round(hit * share), 1000]]) for name, hit in hits.items()}

    def found(share):
        rows = [SimpleNamespace(counts={"a": None})]
        histograms = {name: np.zeros((1, 2, BINS), int) for name in hits}
        for name, hit in hits.items():
            histograms[name][0, 1, [BINS - 1, 0]] = round(hit * share), 1000 - round(hit * share)
        return Evaluation(rows, {name: SceneSums({"a": made}) for name, made in histograms.items()})

    shares = {name: 0.95 - 0.005 * n for n, name in enumerate(damages(("CAM_FRONT",), ("lidar",)))}
    table = json.loads(json.dumps(robustness({n: under(s) for n, s in shares.items()}, None, found(1.0))))
    for row in table["rows"]:
        assert row["low"] < row["iou"] < row["high"] and row["change_low"] < row["change"] < row["change_high"] < 0
        assert row["change_high"] - row["change_low"] < 0.5 * (row["high"] - row["low"])
        assert sum(row["numerators"]) / sum(row["denominators"]) == pytest.approx(row["iou"])
    assert table["mRR_low"] < table["mRR"] < table["mRR_high"] < table["mRR_low"] + 0.5
    worse = robustness({name: under(share - 0.1) for name, share in shares.items()}, None, found(1.0))
    baseline = {"scenes": list(hits), "robustness": worse}
    damaged = {name: under(share) for name, share in shares.items()}
    against = robustness(damaged, baseline, found(1.0))
    assert against["mCE_low"] < against["mCE"] < against["mCE_high"] < 100
    assert "mCE_low" not in robustness(damaged, baseline | {"scenes": ["other"]}, found(1.0))
    lines = robustness_lines(against)
    assert max(map(len, lines)) <= 79 and f"[{against['mCE_low']:.1f}, " in lines[-1]


def test_a_baseline_that_nothing_can_be_compared_with_is_refused_before_any_pass():
    rows = [{"name": f"{name}, strength {s}", "iou": 0.5} for name in CORRUPTIONS for s in (1, 2, 3)]
    perfect = [row | {"iou": 1.0} if row["name"].startswith("fog") else row for row in rows]
    for damaged, message in (
        ({}, "without --robustness"),
        ({"robustness": {"rows": rows[1:]}}, f"has no {rows[0]['name']}"),
        ({"robustness": {"rows": perfect}}, "IoU is 1 under fog"),
    ):
        with pytest.raises(ValueError, match=message):
            baseline_ious(damaged)
    choices = {"out": None, "pictures": 0, "robustness": False, "baseline": "eval.json"}
    with pytest.raises(ValueError, match="give --robustness too"):
        evaluating.Evaluation(choices)._baseline()


def test_validation_and_evaluation_count_the_same_cells(loader):
    network, _ = make_network(Options(encoder_type="effb0", no_pretrained=True, latent_dim=8, Z=50, Y=2, X=50))
    grid, world = (
        make_vox_util(Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"])),
        World(0, 1, torch.device("cpu")),
    )
    _, (both, either), _ = validate(LossStep(network, grid), loader, world)
    counts = sum(row.counts["simple_bev"] for row in evaluate(network, loader, grid, world).rows)
    intersection, predicted, truth = counts.sum(0).tolist()
    assert (intersection, predicted + truth - intersection) == (both, either) and 0 < both < either


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
    baseline.write_text(json.dumps({"schema": 2, "figures": [], "robustness": {"rows": half}}))
    words = ["--robustness", "--baseline", baseline, "--pictures", 0, "--nworkers", 0, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["command", str(tmp_path / "run"), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        evaluate_command.main()
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


@pytest.fixture(scope="module")
def whole_loader(small_shards):
    options = {"bsz": 2, "nworkers": 0, "nworkers_val": 0, "nsweeps": 2}
    return compile_data(None, f"{small_shards}/val-*.tar", CONF, **GRID, **options)[1]


def test_a_sensor_that_is_gone_leaves_padding_and_the_other_one(whole_loader):
    batch, grid = next(iter(whole_loader)), make_vox_util(Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"]))
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
    grid = make_vox_util(Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"]))
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

            self.key, self.counts, self.scene = key, {"a": np.array([[both, 10, 10]])}, "0"

    rows = [Row(f"{i:02d}", i) for i in range(10)]
    chosen = chosen_rows(rows, "a", 6)
    assert [(kind, row.key) for kind, row, _ in chosen] == [
        *(("worst", "00"), ("worst", "01")),
        *(("median", "04"), ("median", "05")),
        *(("best", "08"), ("best", "09")),
    ]
    assert [row.key for _, row, _ in chosen_rows(rows[:2], "a", 2)] == ["00", "01"] and not chosen_rows(rows, "a", 0)
    for row, scene in zip(rows, "aaabbbbbbc", strict=True):
        row.scene = scene
    found = chosen_rows(rows, "a", 9)
    assert [row.key for kind, row, _ in found if kind == "worst"] == ["00", "03", "09"]  # one of each scene
    assert len({row.key for _, row, _ in found}) == 9
