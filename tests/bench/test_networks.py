"""The table of networks: what is chosen, what is done, how it is shown; jobs that fail, hang or come too late cost no other."""

import json
import subprocess
import sys
import time
from functools import partial

import pytest

from tests.bench.measure import REPOSITORY
from tests.bench.networks.pool import Job, run
from tests.bench.networks.recipes import RECIPES, chosen
from tests.bench.networks.table import done, read, table


def test_rows_are_chosen_by_their_names_or_parts_of_them():
    assert chosen([]) == list(RECIPES)
    assert [recipe.name for recipe in chosen(["K = 1", "pillars"])] == [
        "pillars: camera, radar, lidar",
        "simple_bev: camera, hoardings, K = 1",
    ]
    assert [recipe.name for recipe in chosen(["simple_bev: camera", "simple_bev: camera, lidar"])] == [
        "simple_bev: camera",
        "simple_bev: camera, lidar",
    ]
    with pytest.raises(ValueError, match="--only vit: the rows are simple_bev: camera; "):
        chosen(["vit"])


def test_the_table_and_what_is_done(tmp_path):
    trials = [
        {"row": "a", "what": "trial", "seed": seed, "iou": iou, "hidden_iou": iou / 2, "updates": 9}
        for seed, iou in enumerate((0.2, 0.4, 0.3))
    ]
    cost = {
        "row": "a",
        "what": "cost",
        "parameters": 2_500_000,
        "operations": 3.5e9,
        "samples_per_s": 7.0,
        "memory_gb": 1,
    }
    failed = {"row": "b", "what": "failed", "of": "trial", "seed": 0, "why": "no"}
    path = tmp_path / "networks.jsonl"
    assert read(path) == []
    path.write_text("".join(json.dumps(row) + "\n" for row in (*trials, cost, failed)))
    assert done(read(path)) == {("a", "cost", None), *(("a", "trial", seed) for seed in range(3))}
    lines = list(table(read(path), ["a", "b"]))
    assert len(lines) == 3
    assert lines[2] == "| a | 2.5 | 3.5 | 7.0 | 1.00 | 9 | 0.300 (0.200 to 0.400) | 0.150 (0.100 to 0.200) |"
    [*_, few] = table(trials[:1], ["a"])
    assert few.endswith("| 9 | 0.200 (0.200 to 0.200), of 1 seed(s) | 0.100 (0.100 to 0.100) |")


def test_trainings_with_another_number_of_updates_do_not_count(tmp_path):
    from tests.bench.networks.jobs import Settings, keep  # torch, which the jobs of other tests do without

    settings = Settings(str(tmp_path), "cpu", 1)
    name = RECIPES[0].name
    for seed, updates in enumerate((RECIPES[0].updates, RECIPES[0].updates + 1)):
        keep(settings, row=name, what="trial", seed=seed, updates=updates, iou=0.5, hidden_iou=0.1)
    keep(settings, row=name, what="failed", of="trial", seed=2, why="no")
    assert done(settings.rows()) == {(name, "trial", 0)} and len(settings.rows()) == 2
    assert Settings(str(tmp_path), "cpu", 1, dry=True).rows() == []


def write(path, text):
    with open(path, "a") as file:
        file.write(f"{text}\n")


def fail(path):
    raise RuntimeError("it is broken")


def test_jobs_that_fail_or_come_too_late_cost_no_other(tmp_path):
    said, out = [], str(tmp_path / "said")
    failed = partial(write, out)
    jobs = [Job("bad", fail, (out,), failed), Job("good", write, (out, "done"), failed)]
    jobs += [Job("slow", time.sleep, (600,), failed), Job("late", write, (out, "late"), failed)]
    began = time.monotonic()
    run(jobs, 2, began + 8, tmp_path, [], said.append)
    assert time.monotonic() - began < 60
    lines = (tmp_path / "said").read_text().splitlines()
    assert {"RuntimeError: it is broken", "done", "late"} == set(lines)
    assert said == ["slow: ended, the time is over"] and "it is broken" in (tmp_path / "bad.log").read_text()


@pytest.mark.slow
def test_a_row_from_its_world_to_the_table(tmp_path):
    words = ["--out", tmp_path, "--dry", "--seeds", "1", "--only", "pillars", "--jobs", "2"]
    line = [sys.executable, "-m", "tests.bench.networks", *map(str, words)]
    first = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    assert first.returncode == 0 and "| pillars: camera, radar, lidar | " in first.stdout, first.stderr
    rows = (tmp_path / "dry-networks.jsonl").read_text()
    again = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0 and (tmp_path / "dry-networks.jsonl").read_text() == rows
