"""Several classes of cells: losses and their weights, curves, pictures, evaluation and predictions."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import call_module
from train import checkpoint, show
from train.classes import MEAN, POSITIVES, ClassSpec
from train.evaluation.files import read_json
from train.loss import CE_FACTOR, Normaliser, benchmark_terms
from train.metrics import Segmentation, iou
from train.model import Needs
from train.options import Options
from train.pictures.bev import Ground
from train.pictures.maps import IS_MASKED, draw_errors, draw_prediction, draw_truth, error_codes, iou_of
from train.pictures.palette import class_colours
from train.pictures.recording import _Messages
from train.pictures.view import Maps
from train.run import train

CLASSES = (
    ClassSpec("car", ("vehicle.car",), 1.0),
    ClassSpec("other vehicle", ("vehicle.truck", "vehicle.bus"), 3.0),
    ClassSpec("person", ("human",), 2.0, positives=20),
)


def labels(classes=3):
    rng = torch.Generator().manual_seed(0)

    def maps(channels):
        return torch.rand((2, 1, channels, 12, 10), generator=rng)

    seg, valid = (maps(classes) > 0.7).float(), (maps(classes) > 0.2).float()
    return SimpleNamespace(
        seg_bev=seg, valid_bev=valid, box_bev=(maps(1) > 0.5).float(), center_bev=maps(1), offset_bev=maps(2),
        class_names=tuple(c.name for c in CLASSES[:classes]), class_weights=tuple(c.weight for c in CLASSES[:classes]),
        class_positives=tuple(c.positives for c in CLASSES[:classes]),
    )  # fmt: skip


def test_each_class_has_a_mean_and_a_weight_of_its_own_in_one_exchange():
    batch, calls = labels(), []
    world = SimpleNamespace(size=2, sum=lambda counts: calls.append(len(counts)) or 2 * counts)
    outputs = {
        "seg": torch.randn(2, 3, 12, 10),
        "center": torch.rand(2, 1, 12, 10),
        "offset": torch.randn(2, 2, 12, 10),
    }
    terms = benchmark_terms(outputs, batch, Normaliser(world))
    assert calls == [3 + 2 + 1]
    want = 0.0
    for k, spec in enumerate(CLASSES):
        logits, truth, valid = outputs["seg"][:, k], batch.seg_bev[:, 0, k], batch.valid_bev[:, 0, k] > 0
        each = F.binary_cross_entropy_with_logits(
            logits[valid], truth[valid], pos_weight=torch.tensor(spec.positives), reduction="mean"
        )
        want += spec.weight * each / sum(c.weight for c in CLASSES)
    torch.testing.assert_close(terms["ce_loss"], CE_FACTOR * want)
    counted = (batch.box_bev[:, 0, 0] > 0) & (batch.valid_bev[:, 0] > 0).all(1)
    error = (outputs["offset"] - batch.offset_bev[:, 0]).abs().sum(1)
    torch.testing.assert_close(terms["offset_loss"], error[counted].mean())


def test_one_class_is_what_it_was():
    """The terms of one class alone, whatever the batch says of several."""
    batch = labels(1)
    outputs = {"seg": torch.randn(2, 1, 12, 10), "offset": torch.randn(2, 2, 12, 10)}
    terms = benchmark_terms(outputs, batch, Normaliser())
    each = F.binary_cross_entropy_with_logits(
        outputs["seg"], batch.seg_bev[:, 0], pos_weight=torch.tensor([POSITIVES]), reduction="none"
    )
    valid = batch.valid_bev[:, 0]
    assert torch.equal(terms["ce_loss"], CE_FACTOR * ((each * valid).sum() / (valid.sum() + 1e-6)))
    mask = batch.seg_bev[:, 0] * valid
    error = (outputs["offset"] - batch.offset_bev[:, 0]).abs().sum(1, keepdim=True)
    assert torch.equal(terms["offset_loss"], (error * mask).sum() / (mask.sum() + 1e-6))


def test_the_mean_iou_leaves_out_classes_that_are_nowhere():
    assert iou(torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 4.0]])) == pytest.approx(0.375)
    assert iou(torch.tensor([0.0, 0.0])) == 0.0 and np.isnan(iou(torch.zeros(0)))
    metric = Segmentation()
    metric.update({"seg": torch.where(labels().seg_bev[:, 0] > 0, 9.0, -9.0)}, labels())
    scores = metric.figures()
    assert list(scores) == ["iou", *(f"iou_{c.name}" for c in CLASSES)]
    assert all(score.value == 1 and score.higher_is_better for score in scores.values())


def random_maps():
    rng = np.random.default_rng(0)
    truth, valid = (rng.random((3, 40, 40)) < share for share in (0.2, 0.9))
    prediction = rng.random((3, 40, 40)).astype(np.float32)
    ego_T_ref = np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    layers = (truth.astype(np.float32), valid.astype(np.float32), prediction)
    return Maps((-20.0, -20.0), (20.0, 20.0), ego_T_ref, *layers, tuple(c.name for c in CLASSES))


def test_pictures_have_a_colour_for_each_class():
    maps = random_maps()
    ground, colours = Ground(300, 22.0), class_colours(3)
    assert len(np.unique(class_colours(20), axis=0)) == 20
    picture = draw_truth(maps, ground)
    assert all((picture == colour).all(-1).sum() > 50 for colour in colours)
    assert (draw_prediction(maps, ground) != picture).any()
    each = [error_codes(*one) for one in maps.by_class()]
    assert draw_errors(maps, ground).shape == (300, 300, 3) and all(0 < iou_of(codes) < 1 for codes in each)
    layers = {name: getattr(maps, name)[0] for name in ("truth", "valid", "prediction")}
    alone = replace(maps, **layers, class_names=())
    assert (alone.ignored == (each[0] == IS_MASKED)).all() and (alone.there == (maps.truth[0] > 0)).all()


def test_recordings_hold_the_maps_of_each_class():
    pytest.importorskip("foxglove_schemas_protobuf")
    grid = _Messages()._grid(random_maps(), 0)
    names = [f"{layer} {c.name}" for layer in ("truth", "valid", "prediction") for c in CLASSES]
    assert [field.name for field in grid.fields] == names
    values = np.frombuffer(grid.data, "<f4").reshape(40, 40, 9)
    np.testing.assert_array_equal(values.transpose(2, 0, 1)[6:], random_maps().prediction)


class Cells(torch.nn.Module):
    """A map that does not look at what it is given: a logit for each class."""

    def __init__(self, options, grid):
        super().__init__()
        self.needs = Needs(cameras=False, lidar=False, radar=False)
        self.logits = torch.nn.Parameter(torch.tensor([-1.0, -2.0, 1.0])[: len(options.classes)])

    def forward(self, batch, grid):
        maps = self.logits[:, None, None].expand(len(batch.scenes), -1, grid.Z, grid.X)
        return {"seg": maps, "offset": maps[:, :2]}


def test_three_classes_from_training_to_predictions(small_shards, tmp_path):
    options = Options(
        **dict(shards=(f"{small_shards}/train-*.tar",), log_dir=str(tmp_path / "logs"), ckpt_dir=str(tmp_path)),
        **dict(batch_size=2, grad_acc=1, max_iters=2, val_freq=1, res_scale=0.25, nworkers=0, nworkers_val=0),
        **dict(nsweeps=1, Z=24, Y=2, X=24, device="cpu", classes=CLASSES, run_name="classes", keep_best="iou_person"),
    )
    path = train(options, build=Cells)
    best = checkpoint.read(path.parent / "model-best.pth")
    assert best["best_by"] == {"figure": "iou_person", "higher_is_better": True}
    events = EventAccumulator(str(tmp_path / "logs" / "classes" / "v")).Reload()
    curves = {name: events.Scalars(f"stats/{name}")[-1].value for name in ("iou", *(f"iou_{c.name}" for c in CLASSES))}
    assert {"outputs/segmentation", "outputs/offset"} <= set(events.Tags()["images"])

    shown = call_module("train.evaluate", path.parent, "--device", "cpu", "--nworkers", 0, "--pictures", 3)
    assert re.search(r"IoU 0\.\d{4}; \d+ labelled cells", shown.stdout) and "  other vehicle" in shown.stdout
    content = read_json(path.parent)
    figures = {
        f["class"]: f for f in content["figures"] if (f["group"], f["label"]) == ("iou", content["about"]["headline"])
    }
    assert set(figures) == {MEAN, *(c.name for c in CLASSES)} and figures[MEAN]["value"] > 0
    assert curves["iou_person"] > 0 and np.isfinite(list(curves.values())).all()
    assert re.search(
        r"^IoU by class +at 0\.5 +at its best threshold\n.*  <- headline\n  mean of classes", shown.stdout, re.M
    )
    assert re.search(r"^  other vehicle +0\.\d{4} +0\.\d{4} at 0\.\d\d$", shown.stdout, re.M)
    best = {(f["label"], f["class"]): f["value"] for f in content["figures"] if f["group"] == "iou at best threshold"}
    for label in ("simple_bev", "visibility >= 1", "visibility >= 2"):
        each = [best[label, c.name] for c in CLASSES]
        assert best[label, MEAN] == pytest.approx(np.mean(each)) and min(each) > 0
    assert len(list((path.parent / "eval").glob("*.jpg"))) == 3
    words = [small_shards, "--run", path.parent, "--predictions", tmp_path / "maps.npz", "--device", "cpu"]
    drawn = CliRunner().invoke(show.main, list(map(str, words)))
    assert drawn.exit_code == 0, drawn.output
    with np.load(tmp_path / "maps.npz") as arrays:
        assert arrays["probability"].shape[1:] == (3, 24, 24) and list(arrays["classes"]) == [c.name for c in CLASSES]
    call_module("train.report", path.parent, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "other vehicle" in page and "IoU of the classes, validation" in page
