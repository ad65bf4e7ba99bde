"""Faults of table rows: with --on-error skip they cost the samples that need the row, and no others."""

import gzip
import json
import pickle

import pytest

from preprocess.errors import SourceError
from preprocess.plan import Options, Planner
from preprocess.tables import path_within
from tests.preprocessing import rewrite, run_here, says_no, table

SPLITS = {"train": ["scene-0061", "scene-0553", "scene-0655"], "val": ["scene-0103"]}
SAMPLES = 12


@pytest.fixture
def tables(small_world, tmp_path):
    """A folder with a copy of the small world's tables, and no sensor files."""
    (tmp_path / "w" / "v1.0-mini").mkdir(parents=True)
    for path in (small_world / "v1.0-mini").glob("*.json"):
        (tmp_path / "w" / "v1.0-mini" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "w"


def planned(folder, **options):
    """(keyframes kept, what was left out, what was said) by a plan of both splits, two sweeps each."""
    said = []
    planner = Planner(folder, "v1.0-mini", Options(2), say=said.append, **options)
    recipes = [recipe for split, names in SPLITS.items() for recipe in planner.shards(split, names, 1)]
    return sum(len(r.keyframes) for r in recipes), [s for r in recipes for s in r.skipped], said


def first(rows, channel, key):
    return next(row for row in rows if f"/{channel}/" in row["filename"] and row["is_key_frame"] is key)


def camera_sweep(rows):
    row = first(rows, "CAM_FRONT", True)
    rows.append({**row, "token": "q" * 32, "is_key_frame": False, "prev": "", "next": "", "ego_pose_token": ""})


def two_keyframes(rows):
    rows.append({**first(rows, "CAM_FRONT", True), "token": "q" * 32})


NAN = [float("nan")] * 3
FAULTS = {  # what: (table, change, samples that need it, what is said of one)
    "a camera sweep, which nobody reads": ("sample_data", camera_sweep, 0, "ego_pose ''"),
    "a lidar sweep without a pose": (
        "sample_data", lambda rows: first(rows, "LIDAR_TOP", False).update(ego_pose_token=""), 1, "ego_pose ''"),
    "a sweep of no calibration": (
        "sample_data", lambda rows: first(rows, "LIDAR_TOP", False).update(calibrated_sensor_token="gone"), 1, "'gone'"),
    "a keyframe without a file name": (
        "sample_data", lambda rows: first(rows, "CAM_BACK", True).update(filename=None), 1, "filename = None"),
    "a file elsewhere": (
        "sample_data", lambda rows: first(rows, "CAM_BACK", True).update(filename="../../etc/passwd"), 1, "no path within"),
    "two keyframes of a camera": ("sample_data", two_keyframes, 1, "two keyframes of CAM_FRONT"),
    "a row of sample_data that is none": ("sample_data", lambda rows: rows.append(None), 0, "lacks the field 'token'"),
    "a token twice": ("sample_data", lambda rows: rows.append(rows[0]), 1, "twice"),
    "a pose of NaN": ("ego_pose", lambda rows: rows[3].update(translation=NAN), 1, "is not finite"),
    "a pose of a zero quaternion": ("ego_pose", lambda rows: rows[3].update(rotation=[0] * 4), 1, "zero quaternion"),
    "a pose of two rows": ("ego_pose", lambda rows: rows.append(rows[3]), 1, "occurs twice"),
    "a box of no track": ("sample_annotation", lambda rows: rows[0].update(instance_token="gone"), 1, "'gone'"),
    "a box of NaN": ("sample_annotation", lambda rows: rows[0].update(translation=NAN), 1, "is not finite"),
    "a box of no size": ("sample_annotation", lambda rows: rows[0].update(size=[1, -2, 3]), 1, "negative side"),
    "a box of no sample": ("sample_annotation", lambda rows: rows[0].update(sample_token="gone"), 0, "'gone'"),
    "a sample 40 s later": (
        "sample", lambda rows: rows[2].update(timestamp=rows[2]["timestamp"] + 40_000_000), 3, "s after the sample before it"),
    "a sample at no time": ("sample", lambda rows: rows[1].update(timestamp=None), 3, "timestamp = None"),
    "a scene of four samples that has three": ("scene", lambda rows: rows[1].update(nbr_samples=4), 3, "nbr_samples 4"),
    "a scene of no log": ("scene", lambda rows: rows[1].update(log_token="gone"), 3, "log 'gone'"),
    "a log without a place": ("log", lambda rows: rows[1].update(location=7), 3, "location = 7"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_costs_the_samples_that_need_the_row(tables, what):
    name, change, cost, reason = FAULTS[what]
    rewrite(tables, name, change)
    kept, skipped, said = planned(tables, on_error="skip")
    listed = " ".join(s["why"] for s in skipped) + " ".join(said)
    assert (SAMPLES - kept, reason in listed) == (cost, True), listed
    assert len({s["key"] for s in skipped}) == len(skipped) >= min(cost, 1)
    with pytest.raises(SourceError) as caught:
        planned(tables)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert pickle.loads(pickle.dumps(caught.value)).of_samples == caught.value.of_samples


@pytest.mark.parametrize(("name", "change", "around"), [
    ("ego_pose", lambda rows: rows[3].update(translation=NAN), True),
    ("scene", lambda rows: rows[0].update(nbr_samples=9), True),
    ("sensor", lambda rows: [row.pop("modality") for row in rows] and None, False),
])  # fmt: skip
def test_the_way_around_a_fault_is_named_where_there_is_one(tables, tmp_path, name, change, around):
    rewrite(tables, name, change)
    line = says_no(tables, tmp_path / "out")
    assert line.endswith("--on-error skip leaves out what needs it") == around, line


def test_a_neighbour_with_a_fault_leaves_a_box_without_velocity(tables):
    rows = json.loads(table(tables, "sample_annotation").read_bytes())
    bad = next(n for n, row in enumerate(rows) if row["next"])
    rewrite(tables, "sample_annotation", lambda rows: rows[bad].update(translation=NAN))
    planner = Planner(tables, "v1.0-mini", Options(1), on_error="skip")
    after = planner.data.annotations.rows[rows[bad]["next"]]
    assert (
        next(b for b in planner.data.annotations.boxes(after["sample_token"]) if b["token"] == after["token"])[
            "velocity"
        ]
        is None
    )


def add_sensor(folder, sensor, calibration, data):
    own = {"token": "s" * 32, **sensor}
    rewrite(folder, "sensor", lambda rows: rows.append(own))
    mounted = {"token": "c" * 32, "sensor_token": own["token"], **calibration}
    rewrite(folder, "calibrated_sensor", lambda rows: rows.append(mounted))
    rewrite(
        folder,
        "sample_data",
        lambda rows: rows.append(
            {**rows[0], "token": "d" * 32, "calibrated_sensor_token": "c" * 32, "prev": "", **data}
        ),
    )


POSE = {"translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}


@pytest.mark.parametrize(
    "sensor, calibration, data",
    [
        ({"channel": "CAM_THERMAL", "modality": "camera"}, {**POSE, "camera_intrinsic": []}, {}),
        ({"channel": "CAM_FISHEYE", "modality": "camera"}, {**POSE, "camera_intrinsic": [[1, 0, 0, 0]] * 3}, {}),
        ({"channel": "IMU", "modality": "imu"}, {"translation": [], "rotation": []}, {"is_key_frame": 1}),
        ({"channel": "GNSS"}, POSE, {"ego_pose_token": "", "timestamp": 0.5, "filename": None, "next": None}),
    ],
)
def test_rows_of_sensors_that_nobody_asks_for_may_have_any_form(tables, sensor, calibration, data):
    add_sensor(tables, sensor, calibration, data)
    assert planned(tables) == (SAMPLES, [], [])


@pytest.mark.parametrize("name", ["sample", "sample_data", "sample_annotation"])
def test_null_ends_a_chain(tables, name):
    rewrite(
        tables, name, lambda rows: [r.update(prev=r["prev"] or None, next=r["next"] or None) for r in rows] and None
    )
    assert planned(tables) == (SAMPLES, [], [])


@pytest.mark.parametrize("renamed", [True, False])
def test_tables_may_be_gzipped(tables, renamed):
    for name in ("sample", "ego_pose"):
        path = table(tables, name)
        data = gzip.compress(path.read_bytes())
        path.unlink()
        (path.with_name(f"{path.name}.gz") if renamed else path).write_bytes(data)
    assert planned(tables) == (SAMPLES, [], [])
    path = table(tables, "sample")
    for damaged in (data[:-9], data[:20] + b"\0" * 50):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match=r"sample\.json: not a readable JSON table"):
            planned(tables)


def test_timestamps_of_another_unit_are_pointed_at(tables):
    begin = {}

    def slower(rows):
        for row in rows:
            start = begin.setdefault("us", row["timestamp"])
            row.update(timestamp=start + 10 * (row["timestamp"] - start))

    for name in ("sample", "sample_data"):
        rewrite(tables, name, slower)
    kept, _, said = planned(tables)
    assert kept == SAMPLES and any(
        "the median step between keyframes is 5 s; timestamps are microseconds" in s for s in said
    )


def test_backslashes_of_windows_are_slashes(small_world, tables, tmp_path):
    for part in ("samples", "sweeps"):
        (tables / part).symlink_to(small_world / part)
    rewrite(
        tables, "sample_data", lambda rows: [r.update(filename=r["filename"].replace("/", "\\")) for r in rows] and None
    )
    for name, folder in (("theirs", tables), ("ours", small_world)):
        result = run_here(folder, tmp_path / name, "--train-shards", "1")
        assert result.exit_code == 0, result.output
    assert (tmp_path / "theirs" / "val-000.tar").read_bytes() == (tmp_path / "ours" / "val-000.tar").read_bytes()


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b", "C:\\x\\y.jpg", "a\0b", "", "..", "\\\\host\\share\\x"])
def test_a_file_outside_the_folder_is_refused(name):
    with pytest.raises(SourceError, match="no path within"):
        path_within(name, "sample_data x")
