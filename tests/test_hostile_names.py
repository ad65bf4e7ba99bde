"""Names from data and runs are shown, and do nothing: on a terminal, in the page, in charts, as names of files."""

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.plain import one_line, plain
from tests.conftest import REPOSITORY, call_module
from tests.index_files import index_path
from train.evaluation.bins import ring_names
from train.evaluation.files import read_csv, write_csv
from train.evaluation.samples import Evaluation, SampleRow
from train.options import Options
from train.pictures.charts import bars, curves

HOSTILE = (
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{$ ${{7*7}}",
    "\x1b]0;owned\x07\x1b[31mred",
    "\u202egnp.exe\u2066 \u2028\x9b",
    "../../../etc/" + "a" * 3000,
)

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\t=1", "\r=1", "\n-x", "'=1", "''+1", "'", '"', "a,b\nc")
FOLDERS = ("-[x] {0..3} <1..2> *?", "new\nline %41%s \u00e9\u6f22\u202e", "=1,@'q' \"dq\" $(x) `x` ;#&|")


@given(st.text() | st.text(st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_plain_text_does_nothing_and_loses_nothing_short(text):
    shown = plain(text, 10_000)
    assert all(line.replace("\t", "").isprintable() or line == "" or _only_blanks(line) for line in shown.split("\n"))
    shown.encode()
    if text.isprintable():
        assert shown == text
    assert "\n" not in one_line(text) and len(one_line(text * 50, 80)) <= 80


def _only_blanks(line):
    """Blanks of other widths than a space's are no controls, though Python does not print them."""
    return all(c.isprintable() or c.isspace() or not c.isascii() for c in line.replace("\t", ""))


@pytest.mark.parametrize("name", [*HOSTILE, "_hidden", "^_{x} & <b>"])
def test_charts_take_any_name_as_text(name):
    """A run's name is a label, a title and an attribute of the chart."""
    import xml.etree.ElementTree as ElementTree

    name = one_line(name, 100)
    for chart in (
        curves({name: ([1, 2], [0.1, 0.2]), "other": ([1, 2], [0.2, 0.1])}, f"IoU: {name}", "IoU"),
        bars({name: [(0.1, 0.0, 0.2)], f"{name} 2": [(0.2, 0.1, 0.3)]}, [name], name, "IoU"),
    ):
        root = ElementTree.fromstring(chart)
        assert not [e for e in root.iter() if e.tag.endswith("img")]
        assert set(root.attrib) >= {"aria-label"} and not any(a.startswith("on") for a in root.attrib)


def test_names_of_runs_that_cannot_be_printed_are_refused():
    for name in ("a\nb", "\x1b[31m", "a" * 201):
        with pytest.raises(ValueError, match="--exp_name"):
            Options(exp_name=name)


def test_importing_the_packages_under_another_command_leaves_its_signals(tmp_path):
    (tmp_path / "mypkg").mkdir()
    (tmp_path / "mypkg" / "__init__.py").write_text(
        "import signal\nbefore = [signal.getsignal(n) for n in (2, 15)]\nimport train, preprocess\n"
        "assert before == [signal.getsignal(n) for n in (2, 15)]\n"
    )
    (tmp_path / "mypkg" / "tool.py").write_text("print('ran')\n")
    words = [sys.executable, "-m", "mypkg.tool"]
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "PATH": ""}
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "ran\n", done.stderr


@given(st.lists(st.text(max_size=8) | st.sampled_from(FORMULAS), min_size=4, max_size=4))
def test_no_cell_of_a_table_is_a_formula_and_all_come_back(tmp_path_factory, texts):
    """Names of scenes, places, classes and losses, in a file that a spreadsheet opens."""
    place, scene, label, loss = texts
    counts = {label: np.array([[1, 2, 3]] + [[0, 0, 0]] * (len(ring_names()) - 1))}
    row = SampleRow("scene_0001", "token", scene, 1, place, "day", "rain", counts, {"car": {4: 2}}, 2, {loss: -0.5})
    path = write_csv(tmp_path_factory.mktemp("table") / "samples.csv", Evaluation([row, row]))
    with open(path, newline="", encoding="utf-8") as file:
        for cell in (cell for line in csv.reader(file) for cell in line):
            assert cell[:1] not in tuple("=+-@\t\r\n") or cell == "-0.5"
    for found in read_csv(path):
        assert (found["scene"], found["location"], found[plain(f"loss {loss}")]) == (plain(scene), plain(place), "-0.5")
        assert found[plain(f"{label} intersection")] == "1" and found[plain(f"{label} union")] == "4"


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_have_any_name(small_shards, tmp_path, name):
    """Shards in them are checked, mended, looked into and given a layer; what is written there lies there."""
    folder = tmp_path / name / "shards"
    shutil.copytree(small_shards, folder)
    tar = folder / "train-000.tar"
    index = index_path(tar).read_bytes()
    index_path(tar).unlink()
    result = call_module("preprocess.index", folder)
    assert index_path(tar).read_bytes() == index and "rebuilt" in result.stdout
    (tmp_path / "makers.py").write_text("def make(sample):\n    return {'key.txt': sample.key.encode()}\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        call_module("preprocess.layer", "keys", "--shards", folder, "--make", "makers:make", "--workers", 1)
    assert (folder / "layers" / "keys" / "train-000.tar").is_file()
    for pattern in (folder, f"{folder}/train-*.tar", f"{folder}/train-<000..000>.tar", tar):
        assert call_module("preprocess.verify", pattern).returncode == 0
    call_module("preprocess.show", folder)
    call_module("train.show", folder, 0, "--out", folder / "picture.png", "--width", 400)
    assert (folder / "picture.png").is_file()
    tiny = (
        "--encoder_type effb0 --batch_size 1 --grad_acc 1 --res_scale 0.25 --nsweeps 1 --Z 8 --Y 2 --X 8 --device cpu"
    )
    said = call_module("train.doctor", folder, *tiny.split(), check=False)
    assert "9 samples" in said.stdout + said.stderr


@pytest.mark.slow
def test_hostile_names_go_through_all_commands(small_world, tmp_path):
    world = shutil.copytree(small_world, tmp_path / "world")
    tables = world / "v1.0-mini"

    def edit(table, *columns):
        rows = json.loads((tables / f"{table}.json").read_text())
        for n, row in enumerate(rows):
            for column in columns:
                # Of categories, those that the rig takes: what can be printed.
                hostile = HOSTILE[n % (2 if table == "category" else len(HOSTILE))]
                row[column] = f"{row[column]}.{n} {hostile}" if table == "category" else f"{n} {hostile}"
        (tables / f"{table}.json").write_text(json.dumps(rows))
        return rows

    scenes = [row["name"] for row in edit("scene", "name", "description")]
    edit("log", "location")
    edit("category", "name")
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": scenes[:3], "val": scenes[3:]}))
    said, shards = [], tmp_path / "shards"

    def call(*words, check=True):
        result = call_module(*words, check=check)
        said.append(result.stdout + result.stderr)
        return result

    options = ["--sweeps", 1, "--workers", 1, "--train-shards", 1, "--split-file", splits]
    call("preprocess.run", "--version", "v1.0-mini", "--dataroot", world, "--out", shards, *options)
    call("preprocess.show", shards)
    small = (
        "--encoder_type effb0 --no_pretrained --nworkers 0 --batch_size 1 --grad_acc 1 --res_scale 0.25 --latent_dim 8"
    )
    small = [*small.split(), *"--nsweeps 1 --Z 24 --Y 2 --X 24 --device cpu --max_iters 1".split()]
    runs = []
    for n, name in enumerate(HOSTILE[:2]):
        where = ["--ckpt_dir", tmp_path / f"c{n}", "--log_dir", tmp_path / "l", "--exp_name", name.replace("/", "")]
        call("train.run", "--shards", shards, *small, *where)
        runs += (tmp_path / f"c{n}").iterdir()
        call("train.evaluate", runs[-1], "--device", "cpu", "--nworkers", 0, "--pictures", 3)
    call("train.compare", *runs)
    call("train.report", *runs, "--out", tmp_path / "page.html")
    call("train.show", shards, 0, "--out", tmp_path / "shown.png", "--run", runs[0], "--device", "cpu")
    call("train.show", shards, HOSTILE[2], "--out", tmp_path / "no.png", check=False)
    call("train.evaluate", tmp_path / HOSTILE[2], check=False)
    for text in said:
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
        assert max(map(len, text.splitlines())) < 5000
    page = (tmp_path / "page.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page and "\x1b" not in page
    pictures = [path.name for run in runs for path in (run / "eval").glob("*.jpg")]
    assert pictures and all(re.fullmatch(r"[\w.-]+", name) for name in pictures)
