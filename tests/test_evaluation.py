"""The referee: counts against slow loops, intervals, files that come back, comparisons in pairs, damage on purpose."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.vox import VoxUtil
from train.evaluation.compare import differences
from train.evaluation.counting import BINS, RINGS_M, both_predicted_true, box_cells, histograms, ring_map
from train.evaluation.figures import all_figures, calibration, interval, scene_draws, threshold_curve
from train.evaluation.files import as_json, read_json, write_csv, write_json
from train.evaluation.measure import measure
from train.evaluation.robustness import CORRUPTIONS, resilience
from train.evaluation.samples import Evaluation, light_of, weather_of
from train.evaluation.table import comparison_lines, lines_of
from train.metrics import intersection_union

GRID = VoxUtil(24, 2, 20, torch.tensor([[0.0, 1.0, 0.0]]), (-60, 60, -5, 5, -60, 60))


def random_batch(seed, scenes=("a", "a", "b", "c")):
    """What the referee reads of a batch: two labels over random boxes, and logits that know a little."""
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
                description="Night, rain" if scene == "b" else "After rain, parked cars",
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
        trans=torch.zeros(count, 1, 6, 3),
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
    assert [iou.numerator, iou.denominator] == want.tolist() and iou.low < iou.value < iou.high
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
    cells = box_cells(logits[:, 0], batch.box_numbers[:, 0], 6)
    for b in range(4):
        for n in range(6):
            own = batch.box_numbers[b, 0] == n + 1
            assert cells[b, n].tolist() == [int((logits[b, 0][own] > 0).sum()), int(own.sum())]


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


def test_files_come_back_and_ranks_do_not_matter(evaluation, tmp_path, capsys):
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
    path.write_text(whole.replace('"schema": 2', '"schema": 9'))
    with pytest.raises(ValueError, match="schema 9"):
        read_json(path)
    path.write_text(whole.replace('"schema": 2', '"schema": 1'))
    assert read_json(path)["samples"] == 12 and f"note: {path}: an older version's" in capsys.readouterr().err
    with pytest.raises(ValueError, match="python -m train.evaluate .* makes it"):
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


def test_words_of_descriptions():
    assert (light_of("Night, rain"), weather_of("Night, rain")) == ("night", "rain")
    assert (light_of("Parked cars"), weather_of("After rain, bus")) == ("day", "dry")


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


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_seeded_and_grow(name):
    from train.evaluation.robustness import corrupted

    batch = _pictures()
    made = [corrupted(batch, name, strength, seed=3).imgs for strength in (1, 2, 3)]
    assert torch.equal(made[1], corrupted(batch, name, 2, seed=3).imgs)
    change = [(images - batch.imgs).abs().mean() for images in made]
    assert change[0] <= change[2] + 1e-6 and change[2] > 0
    assert all(images.min() >= 0 and images.max() <= 1 for images in made)


def _pictures():
    from dataclasses import dataclass

    @dataclass
    class Pictures:
        imgs: torch.Tensor
        indices: list

    rng = torch.Generator().manual_seed(0)
    return Pictures(torch.rand((2, 1, 6, 3, 24, 40), generator=rng), [4, 9])


def test_resilience_is_the_mean_of_means():
    rates, mean = resilience(0.5, {"fog": [0.4, 0.3, 0.2], "snow": [0.5, 0.5, 0.5]})
    assert rates == {"fog": pytest.approx(60.0), "snow": pytest.approx(100.0)} and mean == pytest.approx(80.0)
