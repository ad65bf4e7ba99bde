"""The report in a real browser: nothing broken, nothing wider than the page, the figures in it."""

import dataclasses
import json
import re
import shutil

import cv2
import numpy as np
import pytest

from tests.train.evaluation.test_evaluation import GRID, Evaluation, as_json, measure, random_batch, ring_map
from train.evaluation.robustness import damages, robustness
from train.pictures.charts import thinned
from train.pictures.page import MOST_BYTES, Run, page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def evaluation_of(better=0.0):
    """An evaluation of twelve scenes."""
    found = Evaluation(about={"headline": "simple_bev", "step": 25, "split": "val"})
    for seed in range(3):
        batch, logits = random_batch(seed, tuple(f"scene-{seed}{k}" for k in range(4)))
        truth = batch.labels["simple_bev"][0][:, 0]
        found.add(*measure({"seg": logits + better * (truth - 0.5)}, batch, ring_map(GRID)))
    return found.sorted()


def a_run(name, better=0.0, pictures=()):
    """A run whose evaluation has twelve scenes."""
    steps = list(range(1, 1001))
    curves = {
        "t/pooled/iou": (steps, [s / 1000 for s in steps]),
        "v/stats/iou": (steps[::50], [s / 1500 for s in steps[::50]]),
    }
    content = json.loads(json.dumps(as_json(evaluation_of(better))))
    return Run(name, content, curves, tuple(pictures), "lr: 0.0003\nexp_name: <b>&\n")


@pytest.fixture(scope="module")
def jpeg():
    noise = np.random.default_rng(0).integers(0, 255, (300, 900, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def test_figures_of_the_page_are_those_of_the_evaluation(jpeg):
    one = a_run("8x5_3e-4s_a_12:00:00", pictures=[("worst 1: scene-0_0001, IoU 0.1", jpeg)])
    text = page([one], "made by a test")
    [iou] = [f for f in one.evaluation["figures"] if (f["group"], f["label"]) == ("iou", "simple_bev")]
    assert f"IoU {iou['value']:.4f}" in text and "&lt;b&gt;&amp;" in text and "<b>&\n" not in text
    assert text.count("<svg") >= 12 and not re.search(r"(src|href)=.(https?:|//)", text)
    assert text == page([one], "made by a test")  # the same figures give the same page


def test_pages_stay_small_whatever_pictures_there_are(jpeg):
    many = [(f"<sample> {i}", jpeg) for i in range(MOST_BYTES // len(jpeg))]
    one, other = a_run("a", pictures=many), a_run("b", 0.5)
    text = page([one, other], "made by a test")
    assert MOST_BYTES - 2 * len(jpeg) < len(text.encode()) <= MOST_BYTES == 5_000_000
    assert "would make this page too large" in text
    bare = {"about": {}, "figures": [], "thresholds": {"simple_bev": [{"threshold": 0.5, "iou": 0.1}]}, "scenes": []}
    with pytest.raises(ValueError, match="1 runs has 6.* MB without any picture; give fewer"):
        page([Run("a", bare, config=("a" * 2999 + "\n") * 2000)], "made by a test")


def test_robustness_and_calibration_are_on_the_page():
    """Beside a run without intervals, as one of a single scene is, and without calibration among the figures."""
    one, other, worse = a_run("a"), a_run("b", 0.5), evaluation_of(-0.5)
    table = robustness(lambda _: worse, None, evaluation_of(), damages(("CAM_FRONT",), ("lidar",)))
    one.evaluation["robustness"] = json.loads(json.dumps(table))
    later = ("calibration error", "iou by location, light and weather")
    older = {
        "figures": [figure for figure in other.evaluation["figures"] if figure["group"] not in later],
        "robustness": {"rows": [{"name": "without CAM_FRONT", "iou": 0.25, "change": -0.125}], "mRR": 50.0},
        "about": other.evaluation["about"] | {"shards": ["shards/val-000.tar"]},
    }
    text = page([one, dataclasses.replace(other, evaluation=other.evaluation | older)], "made by a test")
    assert "<td>b: without CAM_FRONT</td><td>0.2500</td><td>-0.1250</td>" in text and "b: mRR 50.0 %." in text
    [row] = [row for row in table["rows"] if row["name"] == "without CAM_FRONT"]
    cells = [
        "a: without CAM_FRONT",
        f"{row['iou']:.4f} [{row['low']:.4f}, {row['high']:.4f}]",
        f"{row['change']:+.4f} [{row['change_low']:+.4f}, {row['change_high']:+.4f}]",
    ]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in text
    assert f"mRR {table['mRR']:.1f} % [{table['mRR_low']:.1f}, {table['mRR_high']:.1f}]." in text
    assert "shards/val-000.tar" in text
    [error] = [f for f in one.evaluation["figures"] if (f["group"], f["label"]) == ("calibration error", "simple_bev")]
    assert f"<td>{error['value']:.4f} [{error['low']:.4f}, {error['high']:.4f}]</td>" in text


def test_curves_are_thinned_by_means():
    steps, values = thinned(np.arange(1000), np.ones(1000), most=10)
    assert len(steps) == 10 and np.allclose(values, 1) and steps[0] == 49.5


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("runs", [1, 2])
def test_a_browser_shows_the_whole_page(tmp_path, jpeg, runs):
    sync_api = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "report.html"
    pictures = [("worst 1: a sample", jpeg)]
    path.write_text(page([a_run("8x5_3e-4s_a_12:00:00", pictures=pictures), a_run("b", 0.5)][:runs], "made by a test"))
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for width in (400, 1400):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            said = []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda r, said=said: r.url.startswith(("file:", "data:")) or said.append(r.url))
            tab.goto(path.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert tab.evaluate(
                "[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().width > 200)"
            )
            assert not said
        browser.close()
