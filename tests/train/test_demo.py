"""bevshards demo, at a size for tests: what it says is where it says, the figures are those of the files, and it goes on."""

import re

import cv2
import pytest
from click.testing import CliRunner

from train import demo
from train.evaluation.files import read_json

SMALL = {"max_iters": 2, "save_freq": 1, "val_freq": 9, "res_scale": 0.25, "latent_dim": 16, "Z": 32, "Y": 2, "X": 32}


@pytest.fixture
def call(monkeypatch):
    """Function from words of the command line to what a small demo of these words gives."""
    monkeypatch.setattr(
        demo, "WHOLE", demo.Size(5, 1, 0, "90x160", {**demo.WHOLE.options, **SMALL}, pictures=3, takes="a moment")
    )
    return lambda *words: CliRunner().invoke(demo.main, [*map(str, words)])


def test_the_demo_leaves_a_picture_an_evaluation_and_a_page_and_goes_on(call, tmp_path):
    out = tmp_path / "a demo"
    result = call("--out", out)
    assert result.exit_code == 0, result.output
    run, picture = out / "checkpoints" / "demo", tmp_path / "a demo.png"
    *_, said, look, show, _, _, last = result.stdout.splitlines()
    assert said == f"run: {run}, trained in fp32" and (run / "model-000000002.pth").is_file()
    assert look.startswith("look at: ") and f"--run '{run}'" in show
    form = r"val IoU: (0\.\d{3}) before, (0\.\d{3}) after \(all-vehicle guess (0\.\d{3})\)"
    before, after, guess = re.fullmatch(form, last).groups()

    content = read_json(run)
    assert content["about"]["samples"] == "1 of 1"
    figures = {(f["group"], f["label"]): f for f in content["figures"] if f["name"] == "all"}
    assert f"{figures['iou', 'simple_bev']['value']:.3f}" == after
    cells = sum(row["cells"] for row in content["calibration"]["simple_bev"])
    assert f"{figures['recall', 'simple_bev']['denominator'] / cells:.3f}" == guess != "0.000"

    shown, page = cv2.imread(str(picture)), out / "report.html"
    assert shown.shape[1] == 1600 and shown.std() > 10
    assert f"{picture}: 1600 x {shown.shape[0]} pixels" in result.stdout
    assert f"page: {page} (" in result.stdout and f"written: {run}/eval/eval.json" in result.stdout
    assert f"IoU {figures['iou', 'simple_bev']['value']:.4f}" in page.read_text()
    assert len(list((run / "eval").glob("*.jpg"))) == 1 and page.read_text().count("data:image/jpeg") == 1

    made = {path: path.stat().st_mtime_ns for path in (*out.glob("world/*/*.json"), *out.glob("shards/*"))}
    assert len(made) > 13
    (run / "model-000000002.pth").unlink()  # as if it had been stopped after the first update
    again = call("--out", out)
    assert again.exit_code == 0 and again.stdout.splitlines()[-1] == last
    assert "step 000002/2" in again.stdout and "step 000001/2" not in again.stdout
    assert made == {path: path.stat().st_mtime_ns for path in made}
    third = call("--out", out)
    assert third.exit_code == 0 and third.stdout.splitlines()[-1] == last and "step 0" not in third.stdout
    other = call("--out", out, "--seed", 1)
    assert other.exit_code == 1 and f"is a demo with --seed 0, not 1; remove {out}" in other.stderr


def test_shards_of_one_s_own_need_no_world(call, small_shards, tmp_path):
    result = call(
        "--shards", small_shards, "--out", tmp_path / "out", "--picture", tmp_path / "p" / "x.jpg", "--steps", 1
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "p" / "x.jpg").is_file() and not (tmp_path / "out" / "world").exists()
    missing = call("--shards", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert missing.exit_code == 1 and "nowhere" in missing.stderr and missing.stderr.count("\n") == 1
