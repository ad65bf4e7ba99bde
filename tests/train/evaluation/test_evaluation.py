"""The evaluator: counts against slow loops, intervals, files that come back, comparisons in pairs, damage on purpose."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.vox import VoxUtil
from train.classes import MEAN
from train.evaluation.bins import BINS, RINGS_M, both_predicted_true
from train.evaluation.compare import differences
from train.evaluation.counting import box_cells, histograms, ring_map
from train.evaluation.figures import (
    all_figures,
    calibration,
    headline_of,
    interval,
    scene_draws,
    threshold_curve,
)
from train.evaluation.files import as_json, read_json, write_csv, write_json
from train.evaluation.measure import measure
from train.evaluation.robustness import corruption_error, resilience
from train.evaluation.samples import Evaluation
from train.evaluation.table import comparison_lines, lines_of
from train.metrics import Segmentation, intersection_union

GRID = VoxUtil(24, 2, 20, torch.tensor([[0.0, 1.0, 0.0]]), (-60, 60, -5, 5, -60, 60))


def random_batch(seed, scenes=("a", "a", "b", "c")):
    """What the evaluator reads of a batch: two labels over random boxes, and logits that know a little."""
    rng = np.random.default_rng(seed)
    count, boxes = len(scenes), 6
    numbers = rng.integers(0, boxes + 1, (count, 24, 20)) * (rng.random((count, 24, 20)) < 0.5)
    seg = torch.from_numpy((numbers > 0).astype(np.float32))[:, None, None]
    valid = torch.from_numpy((rng.random(seg.shape) < 0.9).astype(np.float32))
    lrt = torch.from_numpy(rng.normal(0, 20, (count, 1, boxes, 19)).astype(np.float32))
    lrt[..., 0] = lrt[..., 0].abs()
    facts = [
        [
            SimpleNamespace(
                key=f"{scene}_{seed}{i:03d}",
                scene=scene,
                conditions=dict(
                    zip(("light", "weather"), ("night", "rain") if scene == "b" else ("day", "dry"), strict=True)
                ),
                location=f"place-{scene}",
                timestamp_us=1000 * i,
                categories=tuple(rng.choice(["vehicle.car", "vehicle.truck"], boxes)),
                visibility=rng.integers(0, 5, boxes),
                num_lidar_pts=rng.integers(-1, 200, boxes),
            )
        ]
        for i, scene in enumerate(scenes)
    ]
    batch = SimpleNamespace(
        labels={"simple_bev": (seg, valid), "visibility 1": (seg, torch.ones_like(seg))},
        seg_bev=seg,
        valid_bev=valid,
        box_numbers=torch.from_numpy(numbers)[:, None],
        lrtlist=lrt,
        box_class=torch.zeros(count, 1, boxes, dtype=torch.int64),
        ref_T_ego=torch.eye(4).repeat(count, 1, 1, 1),
        facts=facts,
        tokens=[[f"token-{seed}-{i}"] for i in range(count)],
    )
    noise = torch.from_numpy(rng.normal(0, 1, (count, 1, 24, 20)).astype(np.float32))
    return batch, 1.5 * (seg[:, 0] - 0.5) + noise


@pytest.fixture(scope="module")
def evaluation():
    out = Evaluation(about={"protocol": "simple_bev"})
    for seed in range(3):
        batch, logits = random_batch(seed)
        out.add(*measure({"seg": logits}, batch, ring_map(GRID)))
    return out.sorted()


def test_the_headline_is_the_training_metric(evaluation):
    want = sum(
        intersection_union(logits, batch.labels["simple_bev"][0][:, 0], batch.labels["simple_bev"][1][:, 0])
        for batch, logits in map(random_batch, range(3))
    )
    figures = all_figures(evaluation)
    [iou] = [f for f in figures if (f.group, f.label) == ("iou", "simple_bev")]
    assert [[iou.numerator, iou.denominator]] == want.tolist() and iou.low < iou.value < iou.high
    rings = [f for f in figures if (f.group, f.label) == ("iou by distance", "simple_bev")]
    assert sum(f.numerator for f in rings) == iou.numerator and sum(f.denominator for f in rings) == iou.denominator
    for part in ("light", "weather", "location", "vehicles in view", "location, light and weather"):
        parts = [f for f in figures if (f.group, f.label) == (f"iou by {part}", "simple_bev")]
        assert sum(f.numerator for f in parts) == iou.numerator and sum(f.samples for f in parts) == 12
    assert dict(threshold=threshold_curve(evaluation, "simple_bev")[49])["threshold"][1:3] == (
        iou.numerator,
        iou.denominator,
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([0.03, 0.5, 0.77]))
def test_histograms_against_loops(seed, threshold):
    batch, logits = random_batch(seed, ("a",))
    rings = ring_map(GRID)
    ((seg, valid), _) = batch.labels.values()
    counts = histograms(logits[:, 0], [(seg[:, 0, 0], valid[:, 0, 0])], rings)[0, 0]
    want = np.zeros((len(RINGS_M) + 1, 3), int)
    for z in range(GRID.Z):
        for x in range(GRID.X):
            if not valid[0, 0, 0, z, x]:
                continue
            place = GRID.mem_to_ref(torch.tensor([float(x), 0.0, float(z)]))
            ring = sum(float(torch.hypot(place[0], place[2])) > radius for radius in RINGS_M)
            predicted = bool(np.ceil(np.float32(logits[0, 0, z, x].sigmoid()) * BINS) > round(threshold * BINS))
            true = bool(seg[0, 0, 0, z, x])
            want[ring] += (predicted and true, predicted, true)
    assert (both_predicted_true(counts, threshold) == want).all()


def test_cells_of_boxes_against_loops():
    batch, logits = random_batch(5)
    cells = box_cells(logits[:, 0] > 0, batch.box_numbers[:, 0], 6)
    for b in range(4):
        for n in range(6):
            own = batch.box_numbers[b, 0] == n + 1
            assert cells[b, n].tolist() == [int((logits[b, 0][own] > 0).sum()), int(own.sum())]


NAMES = ("car", "truck, bus", "person")


def of_classes(seed):
    """random_batch with three classes: its labels, turned, are each one's; boxes are of the classes, or of none, in turn."""
    batch, _ = random_batch(seed)

    def turned(maps):
        return torch.cat([maps.roll(k, -1) for k in range(3)], 2)

    batch.labels = {name: (turned(seg), turned(valid)) for name, (seg, valid) in batch.labels.items()}
    batch.seg_bev, batch.valid_bev = batch.labels["simple_bev"]
    batch.class_names, batch.class_weights, batch.class_positives = NAMES, (1.0, 2.0, 1.0), (2.13,) * 3
    batch.box_class = torch.tensor([0, 1, 2, -1, 0, 1]).expand(len(batch.facts), 1, 6)
    batch.box_bev = (batch.box_numbers > 0).float()[:, :, None]
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, 1, batch.seg_bev[:, 0].shape).astype(np.float32))
    return batch, batch.seg_bev[:, 0] - 0.5 + noise


def test_classes_are_counted_apart_and_their_mean_is_the_training_metric():
    found, metric, alone = Evaluation(), Segmentation(), {name: Evaluation() for name in NAMES}
    for seed in range(3):
        batch, logits = of_classes(seed)
        found.add(*measure({"seg": logits}, batch, ring_map(GRID)))
        metric.update({"seg": logits}, batch)
        for k, name in enumerate(NAMES):
            one = SimpleNamespace(**vars(batch))
            one.labels = {
                label: (seg[:, :, k : k + 1], valid[:, :, k : k + 1]) for label, (seg, valid) in batch.labels.items()
            }
            one.seg_bev, one.valid_bev = one.labels["simple_bev"]
            alone[name].add(*measure({"seg": logits[:, k : k + 1]}, one, ring_map(GRID)))
    figures = all_figures(found)
    for name in NAMES:
        theirs = [f for f in all_figures(alone[name]) if f.label != "every box"]
        ours = [f for f in figures if f.of_class == name]
        assert len(ours) == len(theirs) > 20
        for a, b in zip(ours, theirs, strict=True):
            assert (a.group, a.name, a.label, a.value, a.low, a.high) == pytest.approx(
                (b.group, b.name, b.label, b.value, b.low, b.high), nan_ok=True
            )
    mean = headline_of(figures, "iou", "simple_bev")
    each = [f.value for f in figures if (f.group, f.label) == ("iou", "simple_bev") and f.of_class in NAMES]
    assert mean.of_class == MEAN and mean.value == pytest.approx(np.mean(each)) and mean.low < mean.value < mean.high
    scores = metric.figures()
    assert scores["iou"].value == pytest.approx(mean.value)
    assert [scores[f"iou_{name}"].value for name in NAMES] == pytest.approx(each)
    for dimension in ("category", "size"):
        boxes = [f for f in figures if f.group == f"recall of boxes by {dimension}"]
        assert sum(f.denominator for f in boxes) == sum(
            int(((batch.box_numbers > 0) & (batch.box_numbers != 4)).sum()) for batch, _ in map(of_classes, range(3))
        )

    content = json.loads(json.dumps(as_json(found, figures)))
    assert {f.get("class", "") for f in content["figures"]} == {"", MEAN, *NAMES}
    assert "class" not in json.dumps(as_json(alone["car"]))
    same, common = differences(content, content)
    assert len(same) == len(figures) and all(one.a == one.b or np.isnan(one.a) for one in same)
    scores = {"error": {"value": 2.0, "higher_is_better": False}, "absent": {"value": None, "higher_is_better": True}}
    own, _ = differences(content | {"metrics": scores}, content | {"metrics": {"error": {"value": 1.5}}})
    assert [(one.name, one.difference) for one in own[len(figures) :]] == [("error", -0.5)]
    text = "\n".join([*lines_of(found, "simple_bev", figures), *comparison_lines(same, common, ("a", "b"))])
    assert all(f"  {name}" in text for name in NAMES) and max(map(len, text.splitlines())) <= 79


def test_boxes_are_found_by_the_maps_of_their_own_class():
    batch, logits = of_classes(4)
    rows, scenes = measure({"seg": logits}, batch, ring_map(GRID))
    want = np.zeros(2, int)
    for b in range(4):
        for n, k in enumerate(batch.box_class[b, 0].tolist()):
            own = batch.box_numbers[b, 0] == n + 1
            want += [int((logits[b, k][own] > 0).sum()), int(own.sum())] if k >= 0 else [0, 0]
    found = [v for sums in scenes.values() for (dimension, _), v in sums.recall.items() if dimension == "visibility"]
    assert np.sum(found, 0).tolist() == want.tolist() and len(rows) == 4


def test_intervals_cover_and_are_seeded():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        below = rng.integers(50, 150, 40)
        above = rng.binomial(below, 0.3)
        low, high = interval(above, below, scene_draws(40, trial))
        inside += low <= 0.3 <= high
    assert inside >= 51  # 95 % of 60 is 57; fewer than 51 has a chance of one in 5000
    assert (scene_draws(7, 3) == scene_draws(7, 3)).all() and scene_draws(7, 3).sum(1).tolist() == [7] * 1000
    assert np.isnan(interval(np.array([1, 0]), np.array([2, 0]), scene_draws(2))).all()


def test_files_come_back_and_ranks_do_not_matter(evaluation, tmp_path):
    path = write_json(tmp_path / "eval.json", evaluation)
    content = read_json(tmp_path)
    assert content == json.loads(json.dumps(as_json(evaluation))) and content["samples"] == 12
    for figure in content["figures"]:
        assert np.abs(np.sum(figure["numerators"], 0)).sum() == figure["numerator"]
        assert len(figure["numerators"]) == len(figure["denominators"]) == 3 and figure["value"] is not None
    halves = [Evaluation(), Evaluation()]
    for seed in range(3):
        batch, logits = random_batch(seed)
        halves[seed % 2].add(*measure({"seg": logits}, batch, ring_map(GRID)))
    halves[1].add(halves[0].rows, halves[0].scenes)
    merged = halves[1].sorted()
    merged.about = evaluation.about
    assert as_json(merged) == as_json(evaluation)
    rows = write_csv(tmp_path / "samples.csv", evaluation).read_text().splitlines()
    assert len(rows) == 13 and rows[0].startswith("key,token,scene") and len({row.count(",") for row in rows}) == 1
    whole = path.read_text()
    for other in (1, 9):
        path.write_text(whole.replace('"schema": 2', f'"schema": {other}'))
        with pytest.raises(ValueError, match=f"schema {other}.*evaluate again"):
            read_json(path)
    with pytest.raises(ValueError, match="no such file or folder"):
        read_json(tmp_path / "absent")


def test_tables_fit_79_columns(evaluation):
    lines = "\n".join(lines_of(evaluation, "simple_bev")).split("\n")
    assert max(map(len, lines)) <= 79 and "headline" in lines[0]
    content = as_json(evaluation)
    compared, scenes = differences(content, content)
    text = comparison_lines(compared, scenes, ("runs/a", "runs/b"))
    assert max(map(len, text)) <= 79 and not any("*" in line for line in text[4:])


def test_a_better_network_is_clearly_better_and_pairs_are_tighter(evaluation):
    better = Evaluation()
    for seed in range(3):
        batch, logits = random_batch(seed)
        truth = batch.labels["simple_bev"][0][:, 0]
        better.add(*measure({"seg": logits + (truth - 0.5)}, batch, ring_map(GRID)))
    a, b = as_json(evaluation), as_json(better.sorted())
    compared, scenes = differences(a, b)
    [iou] = [d for d in compared if (d.group, d.label) == ("iou", "simple_bev")]
    assert iou.is_clear and iou.difference > 0 and scenes == ["a", "b", "c"]
    other = {**b, "scenes": ["x", "y", "z"]}
    with pytest.raises(ValueError, match="no scene in common"):
        differences(a, other)


def of_cells(cells, scene="a"):
    """What the evaluator keeps of one sample with these cells (probability, is it a vehicle, how many); no other is valid."""
    batch, logits = random_batch(0, (scene,))
    (probability, truth, valid), start = torch.zeros(3, 24 * 20), 0
    probability += 0.5
    for value, is_vehicle, count in cells:
        place = slice(start, start := start + count)
        probability[place], truth[place], valid[place] = value, float(is_vehicle), 1.0
    seg, valid = (m.view(1, 1, 1, 24, 20) for m in (truth, valid))
    batch.labels, batch.seg_bev, batch.valid_bev = {"simple_bev": (seg, valid)}, seg, valid
    return measure({"seg": probability.logit().view(logits.shape)}, batch, ring_map(GRID))


def test_the_best_threshold_of_a_case_made_by_hand():
    """At 0.5 five of 15 true cells are found and one too many; from 0.33 to 0.34 all are, and none more."""
    found = Evaluation()
    found.add(*of_cells([(0.905, True, 5), (0.345, True, 4), (0.325, False, 7), (0.105, False, 100)], "a"))
    found.add(*of_cells([(0.605, False, 1), (0.345, True, 6)], "b"))
    figures = {f.group: f for f in all_figures(found)}
    assert (figures["iou"].numerator, figures["iou"].denominator) == (5, 16)
    best = figures["iou at best threshold"]
    assert best.name == "0.33" and best.value == 15 / 16
    assert best.numerators.tolist() == [9, 6] and best.denominators.tolist() == [9, 7]
    curve = {round(100 * threshold): counts for threshold, *counts in threshold_curve(found, "simple_bev")}
    assert (
        curve[1] == [15, 123, 15 / 123]
        and curve[32] == [15, 23, 15 / 23]
        and curve[33] == curve[34] == [15, 16, 15 / 16]
    )
    assert curve[35] == [5, 16, 5 / 16] and curve[61] == [5, 15, 5 / 15] and curve[99] == [0, 15, 0.0]


def test_the_calibration_of_a_case_made_by_hand():
    """Where 20.5 % are promised 5 of 20 are true, where 90.5 % are, 7 of 10: off by 0.045 and 0.205."""
    found = Evaluation()
    found.add(*of_cells([(0.205, True, 5), (0.205, False, 15), (0.905, True, 7), (0.905, False, 3)]))
    rows = calibration(found.scenes["a"].histograms["simple_bev"])
    [error] = [f for f in all_figures(found) if f.group == "calibration error"]
    assert len(rows) == 10 and error.value == pytest.approx((20 * 0.045 + 10 * 0.205) / 30)
    assert rows[2] == pytest.approx((0.2, 0.3, 20, 20 * 0.205, 5))
    assert rows[9] == pytest.approx((0.9, 1.0, 10, 10 * 0.905, 7))
    assert [row[2] for row in rows] == [0, 0, 20, 0, 0, 0, 0, 0, 0, 10]


def test_the_recall_of_boxes_made_by_hand():
    """A small car 5 m from the reference camera, a car at 25 m and a truck at 57 m; the fourth box is padding."""
    batch, logits = random_batch(0, ("a",))
    numbers, logits = torch.zeros(24 * 20, dtype=torch.int64), torch.full((24 * 20,), -3.0)
    numbers[:4], numbers[4:6], numbers[6:11] = 1, 2, 3
    logits[:3] = logits[6:11] = logits[11:50] = 3.0
    batch.box_numbers, batch.lrtlist = numbers.view(1, 1, 24, 20), torch.zeros(1, 1, 4, 19)
    batch.lrtlist[0, 0, :, 0] = torch.tensor([3.0, 4.5, 8.0, 0.0])
    middles = batch.lrtlist[..., 3:].unflatten(-1, (4, 4))[0, 0, :, :3, 3]
    middles[:3] = torch.tensor([[4.0, 6.0, 9.0], [25.0, 9.0, 0.0], [41.0, 42.0, 0.0]])
    batch.ref_T_ego[0, 0, :3, 3] = -torch.tensor([1.0, 2.0, 1.5])  # the reference camera lies there in the ego frame
    facts = batch.facts[0][0]
    facts.categories = ("vehicle.car", "vehicle.car", "vehicle.truck")
    facts.visibility, facts.num_lidar_pts = np.array([1, 4, 0]), np.array([-1, 5, 101])
    found = Evaluation()
    found.add(*measure({"seg": logits.view(1, 1, 24, 20)}, batch, ring_map(GRID)))
    recall = {}
    for figure in all_figures(found):
        if figure.group.startswith("recall of boxes by "):
            dimension = figure.group.removeprefix("recall of boxes by ")
            recall.setdefault(dimension, {})[figure.name] = (figure.numerator, figure.denominator)
    assert recall == {
        "category": {"vehicle.car": (3, 6), "vehicle.truck": (5, 5)},
        "category and distance": {
            "vehicle.car, 0-20 m": (3, 4),
            "vehicle.car, 20-35 m": (0, 2),
            "vehicle.truck, beyond 50 m": (5, 5),
        },
        "lidar points": {"0": (3, 4), "1-5": (0, 2), "over 100": (5, 5)},
        "size": {"under 3 m": (3, 4), "3-6 m": (0, 2), "over 6 m": (5, 5)},
        "visibility": {"not annotated": (5, 5), "0-40 %": (3, 4), "80-100 %": (0, 2)},
    }
    assert list(recall["size"]) == ["under 3 m", "3-6 m", "over 6 m"] and found.rows[0].in_view == 3


def test_every_dimension_of_recall_sums_to_the_cells_of_all_boxes(evaluation):
    want = np.zeros(2, int)
    for seed in range(3):
        batch, logits = random_batch(seed)
        want += box_cells(logits[:, 0] > 0, batch.box_numbers[:, 0], 6).sum((0, 1)).numpy()
    figures = [f for f in all_figures(evaluation) if f.label == "every box"]
    assert {f.group.removeprefix("recall of boxes by ") for f in figures} == {
        *("category", "category and distance", "lidar points", "size", "visibility")
    }
    for group in {f.group for f in figures}:
        parts = [(f.numerator, f.denominator) for f in figures if f.group == group]
        assert len(parts) > 1 and np.sum(parts, 0).tolist() == want.tolist()


def test_calibration_against_loops(evaluation):
    label = "simple_bev"
    [error] = [f for f in all_figures(evaluation) if (f.group, f.label) == ("calibration error", label)]
    total = sum(sums.histograms[label] for sums in evaluation.scenes.values()).sum(0)
    rows, gaps = calibration(sum(sums.histograms[label] for sums in evaluation.scenes.values())), []
    for n, (low, high, cells, probability, true) in enumerate(rows):
        part = range(10 * n, 10 * n + 10)
        assert (low, high) == (n / 10, (n + 1) / 10) and low * cells <= probability <= high * cells
        assert (cells, true) == (total[:, part].sum(), total[1, part].sum())
        assert probability == pytest.approx(sum(total[:, p].sum() * (p + 0.5) / 100 for p in part))
        gaps.append(abs(probability / cells - true / cells) * cells)
    assert error.value == pytest.approx(sum(gaps) / total.sum()) and error.denominator == total.sum()
    # Three scenes of one kind of noise: their errors differ little, and a draw's lie around them.
    assert error.low < error.value < error.high < 2 * error.value


def test_resilience_is_the_mean_of_means():
    rates, mean = resilience(0.5, {"fog": [0.4, 0.3, 0.2], "snow": [0.5, 0.5, 0.5]})
    assert rates == {"fog": pytest.approx(60.0), "snow": pytest.approx(100.0)} and mean == pytest.approx(80.0)


def test_corruption_errors_are_missed_iou_over_the_baseline_s():
    errors, mean = corruption_error(
        {"fog": [0.4, 0.3, 0.2], "snow": [0.5] * 3}, {"fog": [0.5, 0.4, 0.3], "snow": [0.5] * 3}
    )
    assert errors == {"fog": pytest.approx(100 * 2.1 / 1.8), "snow": pytest.approx(100.0)}
    assert mean == pytest.approx(50 * (1 + 2.1 / 1.8))
