"""make demo's last step, on small shards: what it says is where it says, and the figures are those of the files."""

import re
from dataclasses import replace

import cv2
from click.testing import CliRunner

from train import demo
from train.evaluation.files import read_json


def test_the_demo_leaves_a_picture_an_evaluation_and_a_page(small_shards, tmp_path, monkeypatch):
    own = demo.options_of
    smaller = {"res_scale": 0.25, "latent_dim": 16, "Z": 32, "X": 32}  # a quarter of the time
    monkeypatch.setattr(demo, "options_of", lambda *given: replace(own(*given), **smaller))
    out, picture = tmp_path / "demo", tmp_path / "pictures" / "demo.png"
    words = ["--shards", small_shards, "--out", out, "--picture", picture, "--steps", 2]
    result = CliRunner().invoke(demo.main, [*map(str, words)])
    assert result.exit_code == 0, result.output
    *_, said, last = result.stdout.splitlines()
    [run] = (out / "checkpoints").iterdir()
    assert said == f"run: {run}, trained in fp32" and (run / "model-000000002.pth").is_file()
    form = r"val IoU: (0\.\d{3}) before, (0\.\d{3}) after \(all-vehicle guess (0\.\d{3})\)"
    before, after, guess = re.fullmatch(form, last).groups()

    content = read_json(run)
    assert content["about"]["samples"] == "3 of 3"
    figures = {(f["group"], f["label"]): f for f in content["figures"] if f["name"] == "all"}
    assert f"{figures['iou', 'simple_bev']['value']:.3f}" == after
    cells = sum(row["cells"] for row in content["calibration"]["simple_bev"])
    assert f"{figures['recall', 'simple_bev']['denominator'] / cells:.3f}" == guess != "0.000"

    shown, page = cv2.imread(str(picture)), out / "report.html"
    assert shown.shape[1] == 1600 and shown.std() > 10
    assert f"{picture}: 1600 x {shown.shape[0]} pixels" in result.stdout
    assert f"page: {page} (" in result.stdout and f"written: {run}/eval/eval.json" in result.stdout
    assert f"IoU {figures['iou', 'simple_bev']['value']:.4f}" in page.read_text()
    assert len(list((run / "eval").glob("*.jpg"))) == 3 and page.read_text().count("data:image/jpeg") == 3
