"""Downloads of which a part is there: what is left out, what is needed, and what is said about it."""

import json
import shutil

import pytest

from preprocess.left_out import MAX_LINES, by_scene
from preprocess.nuscenes import RADARS
from preprocess.verify import verify
from tests.index_files import load_index
from tests.preprocess.test_preprocess import leave_out, loaders
from tests.preprocessing import contents, rewrite, run_here, says_no
from tests.train.model.test_network import Points
from train.options import Options
from train.setup import make_loaders, make_network


@pytest.fixture
def copy(small_world, tmp_path):
    return shutil.copytree(small_world, tmp_path / "copy")


def remove(folder, pattern):
    for path in folder.glob(pattern):
        path.unlink()


def test_shards_that_end_up_empty_are_left_out_and_the_run_finishes(copy, tmp_path):
    out = tmp_path / "out"
    remove(copy, "samples/CAM_BACK/scene-0553*")
    dry = run_here(copy, out, "--dry-run", "--on-error", "skip")
    assert "train: 2 shards, 6 keyframes" in dry.stdout and "scene-0553: 3 of 3 samples" in dry.stdout
    message = says_no(copy, out, "--dry-run")
    assert "scene-0553_0000" in message and "2 more samples" in message and "--on-error skip" in message
    assert not out.exists()
    result = run_here(copy, out, "--on-error", "skip")
    assert result.exit_code == 0 and "scene-0553: 3 of 3 samples left out" in result.stdout, result.output
    assert "1 shard came out empty" in result.stdout and "CAM_BACK" in result.stdout
    manifest = json.loads((out / "train.manifest.json").read_bytes())
    assert manifest["keyframes"] == 6 and len(manifest["shards"]) == 2 and len(manifest["skipped"]) == 3
    assert verify(out, copy) == ([], 9, 3)
    before = contents(out)
    again = run_here(copy, out, "--on-error", "skip")
    assert again.exit_code == 0 and contents(out) == before
    dry = run_here(copy, out, "--on-error", "skip", "--dry-run")
    assert "train: 2 shards, 6 keyframes; 2 are there already" in dry.stdout and "scene-0553: 3 of 3" in dry.stdout
    for refused in (("--sweeps", "1"), ("--image-size", "45x80")):
        assert says_no(copy, out, *refused, "--on-error", "skip") == says_no(
            copy, out, *refused, "--on-error", "skip", "--dry-run"
        )
    assert contents(out) == before
    assert len(next(iter(loaders(out)[0])).tokens) == 1


def test_what_was_left_out_is_written_once_it_is_there(copy, small_world, tmp_path):
    out = tmp_path / "out"
    remove(copy, "sweeps/LIDAR_TOP/scene-0553*")  # a scene's first keyframe needs none
    remove(copy, "samples/RADAR_FRONT/scene-0655*")
    assert run_here(copy, out, "--on-error", "skip").exit_code == 0
    assert json.loads((out / "train.manifest.json").read_bytes())["keyframes"] == 4
    result = run_here(small_world, out, "--on-error", "skip")
    assert "2 samples were left out of those" in result.stdout and "--overwrite" in result.stdout
    assert json.loads((out / "train.manifest.json").read_bytes())["keyframes"] == 7
    assert run_here(small_world, out, "--overwrite").exit_code == 0
    assert run_here(small_world, tmp_path / "whole").exit_code == 0
    assert contents(out) == contents(tmp_path / "whole")


def test_a_dry_run_leaves_out_the_scenes_that_the_run_does_and_calls_them_by_name(copy, tmp_path):
    rewrite(copy, "scene", lambda rows: rows[1].update(name="2021.06.14 veh-35"))
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["scene-0061", "2021.06.14 veh-35", "scene-0655"], "val": ["scene-0103"]}))
    sorted((copy / "samples" / "CAM_BACK").glob("scene-0553*"))[1].unlink()
    damaged = sorted((copy / "samples" / "LIDAR_TOP").glob("scene-0655*"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    skip = ("--on-error", "skip", "--keep-sequences", "--train-shards", "2", "--split-file", splits)
    dry, real = (run_here(copy, tmp_path / "out", *skip, *more) for more in (["--dry-run"], []))
    assert dry.exit_code == real.exit_code == 0, dry.output + real.output
    assert "train: 1 shard, 3 keyframes; 0 are there already" in dry.stdout
    assert json.loads((tmp_path / "out" / "train.manifest.json").read_bytes())["keyframes"] == 3
    for result in (dry, real):
        assert "6 samples were left out:" in result.stdout
        assert "  2021.06.14 veh-35: 3 of 3 samples left out" in result.stdout
        assert "  scene-0655: 3 of 3 samples left out" in result.stdout


def test_nothing_left_is_an_error(copy, tmp_path):
    shutil.rmtree(copy / "samples" / "CAM_FRONT")
    for more in ((), ("--dry-run",)):
        message = says_no(copy, tmp_path / "out", "--on-error", "skip", *more)
        assert "every sample" in message and "CAM_FRONT" in message
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_split_of_which_nothing_is_there_has_an_empty_manifest(copy, tmp_path):
    remove(copy, "samples/CAM_FRONT/scene-0103*")
    assert run_here(copy, tmp_path / "out", "--on-error", "skip").exit_code == 0
    manifest = json.loads((tmp_path / "out" / "val.manifest.json").read_bytes())
    assert manifest["shards"] == [] and len(manifest["skipped"]) == 3
    assert not verify(tmp_path / "out")[0]


@pytest.mark.parametrize("sensors", ["camera", "camera,lidar", "radar,camera"])
def test_only_the_sensors_that_were_asked_for_are_needed(copy, tmp_path, sensors):
    for name in ("lidar", "radar"):
        if name not in sensors:
            for part in ("samples", "sweeps"):
                for folder in (copy / part).glob(f"{name.upper()}_*"):
                    shutil.rmtree(folder)
    assert "about" in run_here(copy, tmp_path / "out", "--sensors", sensors, "--dry-run").stdout
    result = run_here(copy, tmp_path / "out", "--sensors", sensors)
    assert result.exit_code == 0, result.output
    index = load_index(tmp_path / "out" / "val-000.tar")
    assert set(index.facts["sensors"]) == set(sensors.split(","))
    for name in ("lidar", "radar"):
        assert any(m.startswith(name) for m in index.members) == (name in sensors)
    assert not verify(tmp_path / "out", copy)[0]
    wanted = {"use_lidar": "lidar" in sensors, "use_radar": "radar" in sensors}
    assert next(iter(loaders(tmp_path / "out", **wanted)[0])).imgs is not None
    if "lidar" not in sensors:
        with pytest.raises(ValueError, match="holds no lidar"):
            loaders(tmp_path / "out", use_radar=False)
        network, options = make_network(Options(shards=(f"{tmp_path}/out/train-*.tar",), batch_size=1), Points)
        with pytest.raises(
            ValueError, match="train-000.tar: holds no lidar; .* take a network that does without lidar"
        ):
            make_loaders(options, "cpu", cameras=network.needs.cameras)


def test_poses_are_the_same_with_and_without_lidar(copy, small_world, tmp_path):
    run_here(small_world, tmp_path / "whole")
    run_here(copy, tmp_path / "cameras", "--sensors", "camera")
    poses = [next(iter(loaders(tmp_path / name, use_lidar=False, use_radar=False)[1])).egopose
             for name in ("whole", "cameras")]  # fmt: skip
    assert (poses[0] == poses[1]).all()


def test_tables_without_lidar_or_radar(copy, tmp_path):
    leave_out(copy, ("LIDAR_TOP",))
    assert "--sensors camera,radar" in says_no(copy, tmp_path / "out")
    assert run_here(copy, tmp_path / "out", "--sensors", "camera").exit_code == 0
    assert load_index(tmp_path / "out" / "val-000.tar").rig.clock == "CAM_FRONT"
    assert not verify(tmp_path / "out", copy)[0]
    leave_out(copy, RADARS)
    assert "no radar" in says_no(copy, tmp_path / "x", "--sensors", "camera,radar")


@pytest.mark.parametrize("text", ["lidar", "camera,sonar", "camera,camera", ","])
def test_sensors_that_cannot_be(small_world, tmp_path, text):
    result = run_here(small_world, tmp_path, "--sensors", text)
    assert result.exit_code == 2 and "sensor" in result.stderr


def test_scenes_in_no_split_are_said(copy, tmp_path):
    rewrite(copy, "scene", lambda rows: rows[0].update(name="elsewhere"))
    result = run_here(copy, tmp_path / "out", "--on-error", "skip")
    assert "1 scene in no split" in result.stderr and "elsewhere" in result.stderr


def test_lines_about_scenes_are_bounded():
    skipped = [{"key": f"s{i:03d}_{k:04d}", "token": "", "why": "gone"} for i in range(99) for k in range(2)]
    lines = by_scene(skipped, [], {f"s{i:03d}": f"a\nb {i}" for i in range(99)})
    assert len(lines) == MAX_LINES and "2 of 2" in lines[0] and f"{99 - MAX_LINES + 1} more scenes" in lines[-1]
    assert not any("\n" in line for line in lines)


def test_a_log_gets_few_lines_and_no_carriage_returns(small_world, tmp_path):
    result = run_here(small_world, tmp_path / "out")
    assert "\r" not in result.output and "reading the tables" in result.stderr
    assert len(result.output.splitlines()) < 20
