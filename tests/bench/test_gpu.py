"""The GPU's benchmark: parts that raise, hang or are killed cost no other its rows; the dry run goes through all of them."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.bench.gpu.__main__ import PARTS, main
from tests.bench.gpu.rows import read
from tests.bench.gpu.runner import FILE, Part, choose, run
from tests.bench.measure import REPOSITORY


def sound(settings, rows):
    rows.add("answer", settings, "", ">= 40")
    print("said by a part")


def raises(settings, rows):
    rows.add("before it", 1.5, "ms", "<= 1")
    raise ValueError("two\nlines")


def hangs(settings, rows):
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(600)  # {settings}"])
    rows.add("before it", 2.0)
    time.sleep(600)


def is_killed(settings, rows):
    rows.add("before it", 3.0)
    os.kill(os.getpid(), signal.SIGKILL)


def exits(settings, rows):
    os._exit(7)


def part(name, limit_s=30.0, **more):
    return Part(name, f"{__name__}:{name}", limit_s, **more)


def test_a_part_that_raises_hangs_or_is_killed_becomes_a_row_and_all_others_are_there(tmp_path):
    parts = [part("raises"), part("hangs", 3.0), part("is_killed"), part("exits"), part("sound")]
    parts += [Part("depends", f"{__name__}:sound", 30.0, ("raises",)), Part("absent", "tests.bench.nowhere:x", 30.0)]
    said = []
    mark = 40 + os.getpid()
    failed = run(parts, mark, tmp_path, 600, say=said.append)
    assert failed == ["raises", "hangs", "is_killed", "exits", "depends", "absent"]
    rows = read(tmp_path / FILE)
    why = {row["part"]: row["why"] for row in rows if row["name"] == "failed"}
    assert why == {
        "raises": "ValueError: two lines",
        "hangs": "ended: it took longer than 3 s",
        "is_killed": "killed by SIGKILL",
        "exits": "its process ended with exit code 7",
        "depends": "not begun: it needs raises, which failed",
        "absent": "ModuleNotFoundError: No module named 'tests.bench.nowhere'",
    }
    assert {row["part"]: row["value"] for row in rows if row["name"] == "before it"} == {
        "raises": 1.5,
        "hangs": 2.0,
        "is_killed": 3.0,
    }
    [answer] = [row for row in rows if row["name"] == "answer"]
    assert answer == {"part": "sound", "name": "answer", "value": mark, "unit": "", "goal": ">= 40", "met": True}
    assert len(said) == len(rows) and any("goal <= 1 MISSED" in line for line in said)
    assert "said by a part" in (tmp_path / "sound.log").read_text()
    assert "Traceback" in (tmp_path / "raises.log").read_text()
    sleepers = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"time.sleep(600)  # {mark}" not in sleepers  # what the hanging part had started is gone with it


def test_time_that_is_kept_for_the_last_part_is_not_given_to_those_before_it(tmp_path):
    parts = [part("hangs"), Part("late", f"{__name__}:sound", 30.0), part("sound", kept_s=9.0)]
    begun = time.monotonic()
    assert run(parts, 50, tmp_path, 16, say=lambda line: None) == ["hangs", "late"]
    assert time.monotonic() - begun < 16
    why = [row["why"] for row in read(tmp_path / FILE) if row["name"] == "failed"]
    assert why == [
        "ended: it took longer than 7 s",
        "not begun: of 16 s none are left for it; give more --seconds, or --only late",
    ]


def test_parts_are_chosen_with_what_they_need():
    assert [p.name for p in choose(PARTS, ["roofline"])] == ["machine", "world", "profile", "roofline"]
    assert choose(PARTS, []) == list(PARTS)
    with pytest.raises(ValueError, match="^--only kernel: the parts are machine, kernels, "):
        choose(PARTS, ["kernel"])


def test_what_is_missing_is_named_with_the_line_that_fetches_it(tmp_path, monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("simplejpeg", "cv2") else there(name)
    )
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "out")])
    assert main() == 1 and not (tmp_path / "out").exists()
    assert capsys.readouterr().err == (
        "error: opencv-python-headless, simplejpeg not installed; python -m pip install opencv-python-headless simplejpeg\n"
    )


def command(*arguments, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.slow
def test_the_dry_run_goes_through_every_part(tmp_path):
    """On the CPU at tiny sizes; alone on two cores it takes a minute and a half at most."""
    result = command("--out", tmp_path, "--dry", timeout=600)
    rows = read(tmp_path / FILE)
    failed = [row for row in rows if row["name"] == "failed" or row.get("met") is False]
    assert result.returncode == 0 and not failed, (failed, result.stdout, result.stderr)
    assert len(result.stdout.splitlines()) == len(rows) + 1
    assert list(dict.fromkeys(row["part"] for row in rows)) == [p.name for p in PARTS]
    names = [row["name"] for row in rows]
    assert "batch 8: samples/s" in names and "a step: the ceilings allow" in names
    assert sum("gbytes" in row for row in rows) == 25
