"""Other rigs in nuScenes' layout: names, words, and what tables of other tools get wrong."""

import hashlib
import itertools
import json
import shutil
import string

import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.keys import MAX_KEY_CHARS, is_key, keyframe_key, scene_key
from common.record import BOX_DTYPE, BOXES_MEMBER, SAMPLE, decode_rows
from common.shard_index import build_index
from preprocess.annotations import visibility_of
from preprocess.errors import SourceError
from preprocess.plan import Options, Planner
from preprocess.verify import verify
from tests.conftest import call_module, split_file
from tests.index_files import load_index
from tests.preprocess.test_preprocess import loaders
from tests.preprocessing import rewrite, run_here, says_no, table

NAMES = (
    *(
        "2021.06.14_veh-35",
        "my scene",
        "a/b",
        "..",
        "../../etc",
        ".hidden",
        "Scene-1",
        "scene-1",
        "日本",
        "ä",
        "-x",
        "",
    ),
    *(
        "x" * 200,
        "x" * 199 + "y",
        "x" * 56,
        "x" * 57,
        "scene-0061",
        "a--0123456789abcdef",
        "a_0001",
        "a",
        "a\nb",
        "__a__",
    ),
)


@pytest.fixture
def copy(small_world, tmp_path):
    return shutil.copytree(small_world, tmp_path / "copy")


def key_as_specified(name):
    """What shards/README.md says of scene names, step by step and letter by letter."""
    letters = string.ascii_letters + string.digits
    plain = all(c in letters + "_-" for c in name) and name[:1] in set(letters) and len(name) <= 56
    tail = name[-18:]
    escaped = len(tail) == 18 and tail.startswith("--") and all(c in "0123456789abcdef" for c in tail[2:])
    if plain and not escaped:
        return name
    readable = ""
    for kept, run in itertools.groupby(name, lambda c: c in letters + "_"):
        readable += "".join(run) if kept else "-"
    readable = readable[:38].strip("-_") or "scene"
    return f"{readable}--{hashlib.sha256(name.encode()).hexdigest()[:16]}"


@settings(deadline=None, max_examples=300)
@given(st.text("aZ09_-. é/\n", max_size=70) | st.text(st.characters(codec="utf-8"), max_size=70))
@example("")
@example("a--- -b")
@example("__.--" + "x" * 60)
@example("a" * 37 + "_-_ b")
@example("scene--0123456789abcdef")
def test_keys_follow_the_rule_as_written(name):
    assert scene_key(name) == key_as_specified(name)


def test_keys_of_any_name():
    keys = [keyframe_key(name, number) for name in NAMES for number in (0, 9999)]
    assert len(set(keys)) == len(keys) and all(map(is_key, keys)) and max(map(len, keys)) <= MAX_KEY_CHARS
    assert scene_key("scene-0061") == "scene-0061" and keyframe_key("scene-0061", 7) == "scene-0061_0007"
    assert keyframe_key("x" * 300, 9_999_999).isascii() and len(keyframe_key("x" * 300, 9_999_999)) <= MAX_KEY_CHARS
    for name in NAMES:  # what an escaped name looks like is no name's own key
        assert scene_key(scene_key(name)) != scene_key(name) or scene_key(name) == name
    assert scene_key("\ud800") != scene_key("\ud801")


def test_strange_names_round_trip(copy, tmp_path):
    names = ["2021.06.14_veh-35", "日 本/..", "x" * 200, "Scene.A"]
    rewrite(copy, "scene", lambda rows: [row.update(name=name) for row, name in zip(rows, names, strict=True)])
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": names[:3], "val": names[3:]}))
    out = tmp_path / "out [x]*"
    result = run_here(copy, out, "--split-file", splits, "--train-shards", "2")
    assert result.exit_code == 0, result.output
    assert verify(out, copy) == ([], 12, 3)
    indexes = [load_index(tar, verify=True) for tar in sorted(out.glob("*.tar"))]
    assert all(build_index(index.tar) is not None for index in indexes)
    assert sorted(name for index in indexes for name, _, _ in index.scenes) == sorted(names)
    for index in indexes:
        samples = list(webdataset.WebDataset(str(index.tar), shardshuffle=False, empty_check=False))
        assert [s["__key__"] for s in samples] == index.keys
        for sample, name in zip(samples, [n for n, _, k in index.scenes for _ in range(k)], strict=True):
            assert json.loads(sample[SAMPLE])["scene"]["name"] == name
            assert {m.lower() for m in index.members} <= set(sample) | {"radar.01.planes.zst", "lidar.01.planes.zst"}
    for reader in ("indexed", "stream"):
        scenes = {b.scenes[0] for b in loaders(out, reader=reader)[0]}
        assert scenes == set(names[:3])


@pytest.mark.parametrize("shards", [1, 3])
def test_two_scenes_of_one_name_are_refused(copy, tmp_path, shards):
    rewrite(copy, "scene", lambda rows: rows[1].update(name=rows[0]["name"]))
    for more in ((), ("--on-error", "skip")):
        message = says_no(copy, tmp_path / "out", "--train-shards", str(shards), *more)
        assert "scene-0061" in message and "rename" in message


@pytest.mark.parametrize("name", ["scene", "sensor", "log"])
def test_text_that_is_no_unicode(copy, tmp_path, name):
    path = table(copy, name)
    path.write_text(path.read_text().replace('"token": "', '"token": "\\ud83d', 1))
    assert f"{name}.json" in says_no(copy, tmp_path)


def rename_channel(folder, old, new):
    def change(rows):
        [row.update(channel=new) for row in rows if row["channel"] == old]

    rewrite(folder, "sensor", change)


def test_channels_of_another_rig(copy, small_world, tmp_path):
    rename_channel(copy, "LIDAR_TOP", "LIDAR_CONCAT")
    rename_channel(copy, "CAM_FRONT", "CAMERA_FRONT")
    rename_channel(copy, "CAM_BACK", "CAM_FRONT")  # a name of ours that stands for something else there
    channels = "LIDAR_TOP=LIDAR_CONCAT,CAM_FRONT=CAMERA_FRONT,CAM_BACK=CAM_FRONT"
    assert "LIDAR_CONCAT" in says_no(copy, tmp_path / "x")
    result = run_here(copy, tmp_path / "out", "--channels", channels)
    assert result.exit_code == 0, result.output
    assert not verify(tmp_path / "out", copy)[0]
    assert load_index(tmp_path / "out" / "val-000.tar").facts["channels"] == dict(
        p.split("=") for p in channels.split(",")
    )
    run_here(small_world, tmp_path / "same")
    ours, theirs = (next(iter(loaders(tmp_path / name)[1])) for name in ("same", "out"))
    assert ours.cams == theirs.cams and (ours.imgs == theirs.imgs).all() and (ours.intrins == theirs.intrins).all()
    assert (ours.lidar_data == theirs.lidar_data).all() and (ours.seg_bev == theirs.seg_bev).all()


def test_a_channel_of_another_kind_or_that_is_not_there(copy, tmp_path):
    assert "LIDAR_TOP" in says_no(copy, tmp_path, "--channels", "CAM_FRONT=CAM_FRUNT")
    assert "must be 'camera'" in says_no(copy, tmp_path, "--channels", "CAM_FRONT=LIDAR_TOP")
    for text in ("CAM_TOP=CAM_FRONT", "CAM_FRONT=A,CAM_FRONT=B", "CAM_FRONT=A,CAM_BACK=A", "CAM_FRONT", "CAM_FRONT="):
        result = run_here(copy, tmp_path, "--channels", text)
        assert result.exit_code in (1, 2) and "channel" in result.stderr, text


@pytest.mark.parametrize(
    ("level", "number"),
    [("v0-40", 1), ("v40-60", 2), ("v60-80", 3), ("v80-100", 4), ("none", 1), ("partial", 2), ("Most", 3), ("full ", 4)]
    + [(word, 0) for word in ("", "unavailable", "4", 4, None, "v80-101", "80-100")],
)
def test_words_of_visibility(level, number):
    assert visibility_of(level) == number


def boxes_of(folder):
    planner = Planner(folder, "v1.0-mini", Options(2))
    return [b for r in planner.shards("train", ["scene-0061"], 1) for f in r.keyframes for b in f.boxes]


def test_visibility_goes_through_its_table(copy):
    before = [b["visibility"] for b in boxes_of(copy)]
    other = dict(zip("1234", ("full", "most", "hm", "none"), strict=True))
    rewrite(copy, "visibility", lambda rows: [row.update(level=other[row["token"]]) for row in rows])
    mapped = [b["visibility"] for b in boxes_of(copy)]
    assert mapped == [{1: 4, 2: 3, 3: 0, 4: 1}[v] for v in before] and set(before) > {1}
    rewrite(copy, "sample_annotation", lambda rows: [row.update(visibility_token=None) for row in rows])
    assert {b["visibility"] for b in boxes_of(copy)} == {0}
    table(copy, "visibility").unlink()
    said = []
    Planner(copy, "v1.0-mini", Options(2), say=said.append)
    assert any("no visibility table" in line for line in said)


def test_point_counts_that_are_not_there(copy, tmp_path):
    rewrite(copy, "sample_annotation", lambda rows: [row.update(num_lidar_pts=None) for row in rows])
    rewrite(copy, "sample_annotation", lambda rows: [row.pop("num_radar_pts") for row in rows])
    assert run_here(copy, tmp_path / "out").exit_code == 0
    from train.data.sources import open_source

    reader = open_source(tmp_path / "out" / "val-000.tar")
    rows = decode_rows(reader.read(0, [BOXES_MEMBER])[BOXES_MEMBER], BOX_DTYPE, "x")
    assert len(rows) and set(rows["num_lidar_pts"]) == {-1} and set(rows["num_radar_pts"]) == {-1}


def point(field, to):
    """A change that points `field` of the second row of scene-0061's LIDAR_TOP chain elsewhere."""

    def change(rows):
        chain = [r for r in rows if "LIDAR_TOP/scene-0061" in r["filename"]]
        other = next(r for r in rows if "LIDAR_TOP/scene-0553" in r["filename"])
        chain[2][field] = {"itself": chain[2]["token"], "scene": other["token"], "later": chain[3]["token"]}[to]

    return change


WRONG = {
    "prev is the row itself": ("sample_data", point("prev", "itself"), "points to itself"),
    "next is the row itself": ("sample_data", point("next", "itself"), "points to itself"),
    "prev in another scene": ("sample_data", point("prev", "scene"), "another scene"),
    "prev that goes forward": ("sample_data", point("prev", "later"), "s older"),
    "nanoseconds in sample_data": (
        "sample_data", lambda rows: [r.update(timestamp=r["timestamp"] * 1000) for r in rows], "microseconds"),
    "nanoseconds in sample": (
        "sample", lambda rows: [r.update(timestamp=r["timestamp"] * 1000) for r in rows], "microseconds"),
    "milliseconds in sample": (
        "sample", lambda rows: [r.update(timestamp=r["timestamp"] // 1000) for r in rows], "microseconds"),
    "seconds in sample": (
        "sample", lambda rows: [r.update(timestamp=r["timestamp"] // 10**6) for r in rows], "microseconds"),
    "a text as timestamp": ("sample", lambda rows: rows[1].update(timestamp="1540000000500000"), "not a whole number"),
    "half a microsecond": ("sample_data", lambda rows: rows[1].update(timestamp=1.54e15), "not a whole number"),
    "a truth as timestamp": ("sample", lambda rows: rows[1].update(timestamp=True), "not a whole number"),
    "a timestamp before time": ("sample", lambda rows: rows[1].update(timestamp=-1), "timestamp = -1"),
    "sample after itself": ("sample", lambda rows: rows[1].update(next=rows[1]["token"]), "0 s after"),
    "sample in a circle": ("sample", lambda rows: rows[2].update(next=rows[0]["token"]), "-1 s after"),
    "next in another scene": ("sample", lambda rows: rows[2].update(next=rows[3]["token"]), "another scene"),
    "prev of a sample": ("sample", lambda rows: rows[1].update(prev=rows[1]["token"]), "its prev is"),
    "prev of the first sample": ("sample", lambda rows: rows[0].update(prev=rows[2]["token"]), "its prev is"),
    "attribute without name": ("attribute", lambda rows: rows[0].pop("name"), "'name'"),
    "attribute without a text": ("attribute", lambda rows: rows[0].update(name=None), "not a text"),
    "attribute that is not there": (
        "sample_annotation", lambda rows: rows[0].update(attribute_tokens=["gone"]), "'gone'"),
    "visibility that is not there": ("sample_annotation", lambda rows: rows[0].update(visibility_token="9"), "'9'"),
    "visibility as a number": ("sample_annotation", lambda rows: rows[0].update(visibility_token=4), "visibility 4"),
    "counts in words": ("sample_annotation", lambda rows: rows[0].update(num_lidar_pts="3"), "num_lidar_pts = '3'"),
    "half a point": ("sample_annotation", lambda rows: rows[0].update(num_radar_pts=0.5), "num_radar_pts = 0.5"),
    "more points than a number holds": (
        "sample_annotation", lambda rows: rows[0].update(num_lidar_pts=2**31), "num_lidar_pts"),
    "a box turned inside out": ("sample_annotation", lambda rows: rows[0].update(size=[1, -2, 3]), "negative side"),
    "numbers as texts": ("ego_pose", lambda rows: rows[0].update(translation=["1", "2", "3"]), "no number"),
    "an image of no pixels": (
        "calibrated_sensor",
        lambda rows: rows[0].update(camera_intrinsic=[[0.0] * 3] * 3),
        "fx and fy positive",
    ),
    "a track that leads nowhere": ("sample_annotation", lambda rows: rows[0].update(next="gone"), "'gone'"),
    "a track that stands still": (
        "sample_annotation", lambda rows: rows[0].update(next=rows[0]["token"]), "is not later"),
    "a track of another instance": (
        "sample_annotation", lambda rows: rows[0].update(next=rows[-1]["token"]), "another instance"),
    "a car that jumps": (
        "ego_pose", lambda rows: rows[1].update(translation=[1e5, 0.0, 0.0]), "by its ego_pose"),
    "a scene without samples": (
        "scene", lambda rows: rows[0].update(nbr_samples=0, first_sample_token=""), "has no samples"),
    "a scene whose name is a number": ("scene", lambda rows: rows[0].update(name=61), "not a text"),
    "a row that is none": ("sample", lambda rows: rows.append(None), "sample"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_tables_are_named_in_one_line(copy, what):
    name, change, expected = WRONG[what]
    rewrite(copy, name, change)
    with pytest.raises(SourceError) as caught:
        planner = Planner(copy, "v1.0-mini", Options(3))
        planner.shards("train", ["scene-0061", "scene-0553", "scene-0655"], 2)
    message = str(caught.value)
    assert expected in message and "\n" not in message and len(message) < 400, message
    tables = ("sample", "sample_data", "sample_annotation", "scene", "ego_pose", "attribute", "calibrated_sensor")
    assert any(own in message for own in tables), message


def test_a_wrong_link_can_be_skipped(copy, tmp_path):
    rewrite(copy, "sample_data", point("prev", "scene"))
    result = run_here(copy, tmp_path / "out", "--on-error", "skip")
    assert result.exit_code == 0 and "1 sample was left out" in result.stdout and "another scene" in result.stdout


def test_sweeps_of_samples_that_were_cut_out(copy, tmp_path):
    """A trimmed set may keep the rows of sweeps whose sample is gone; only a chain that leads to them is an error."""

    def change(rows):
        for row in rows:
            if not row["is_key_frame"] and "CAM" not in row["filename"]:
                row["sample_token"] = "gone"

    rewrite(copy, "sample_data", change)
    assert run_here(copy, tmp_path / "out", "--sweeps", "1").exit_code == 0
    assert "another scene" in says_no(copy, tmp_path / "x")


HOSTILE = 'a\x1b[2J\nb\u202e"><script>$x$%s{0}' + "y" * 300


def test_hostile_texts_are_shown_on_one_line_that_nothing_obeys(copy, tmp_path):
    """Names and words of the tables, through run, verify and show."""
    rewrite(copy, "scene", lambda rows: rows[1].update(name=HOSTILE, description=HOSTILE))
    rewrite(copy, "log", lambda rows: [row.update(location=HOSTILE, vehicle=HOSTILE) for row in rows])
    rewrite(copy, "attribute", lambda rows: [row.update(name=HOSTILE) for row in rows])
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps({"train": ["scene-0061", HOSTILE, "scene-0655"], "val": ["scene-0103"]}))
    victim = next(iter((copy / "samples" / "CAM_BACK").glob("scene-0553*")))
    victim.write_bytes(b"\x1b[2J")
    out = tmp_path / "out"
    results = [
        run_here(copy, out, "--split-file", splits, "--on-error", "skip"),
        call_module("preprocess.verify", out),
        call_module("preprocess.show", out),
    ]
    rewrite(copy, "sample_data", lambda rows: rows[0].update(filename=HOSTILE, timestamp=HOSTILE))
    refused = run_here(copy, tmp_path / "no", "--split-file", splits)
    for text in (*(result.stdout for result in results), refused.stderr):
        lines = text.splitlines()
        assert all(line.isprintable() and len(line) < 700 for line in lines), lines
    assert results[0].stdout.count("1 of 3 samples left out") == 1 and len(refused.stderr.splitlines()) < 6
    assert json.loads((out / "train.manifest.json").read_bytes())["skipped"][0]["why"].isprintable()


def test_images_of_lenses_that_bend_are_rectified_or_keep_their_distortion(copy, tmp_path):
    lens = {"model": "brown_conrady", "coefficients": [-0.2, 0.05, 0, 0]}
    sensors = json.loads(table(copy, "sensor").read_bytes())
    front = next(row["token"] for row in sensors if row["channel"] == "CAM_FRONT")

    def bend(rows):
        for row in (row for row in rows if row["sensor_token"] == front):
            row["camera_distortion"] = lens

    rewrite(copy, "calibrated_sensor", bend)
    made = *split_file(tmp_path, copy), "--train-shards", 1
    assert run_here(copy, tmp_path / "plain", *made).exit_code == 0
    assert run_here(copy, tmp_path / "kept", *made, "--keep-distortion").exit_code == 0
    plain, kept = (load_index(tmp_path / name / "train-000.tar") for name in ("plain", "kept"))
    assert all(camera.distortion is None for camera in plain.rig.cameras) and "keep_distortion" not in plain.facts
    assert [camera.name for camera in kept.rig.cameras if camera.distortion] == ["CAM_FRONT"]
    sources = {path.read_bytes() for path in (copy / "samples" / "CAM_FRONT").iterdir()}
    assert _images(tmp_path / "kept") <= sources and not _images(tmp_path / "plain") & sources
    call_module("preprocess.verify", tmp_path / "plain", "--against", copy)
    rewrite(copy, "calibrated_sensor", lambda rows: rows[0].update(camera_distortion={"model": "brown_conrady"}))
    assert "camera_distortion is no object of model and coefficients" in says_no(copy, tmp_path / "x")


def _images(folder):
    return {
        sample["cam_front.jpg"] for sample in webdataset.WebDataset(str(folder / "train-000.tar"), shardshuffle=False)
    }


def renamed(folder, categories=None, channels=None):
    """Tables whose categories and channels have other names."""
    if categories:
        rewrite(folder, "category", lambda rows: [row.update(name=categories(row["name"])) for row in rows])
    if channels:

        def rename(rows):
            for row in rows:
                row["channel"] = channels.get(row["channel"], f"X_{row['channel']}")

        rewrite(folder, "sensor", rename)


def test_lyfts_words_become_nuscenes(copy, tmp_path):
    """Made tables by the published schema: small words for categories, annotations without point counts, extra sensors."""
    words = {
        "vehicle.car": "car",
        "human.pedestrian.adult": "pedestrian",
        "vehicle.bus.rigid": "bus",
        "vehicle.bicycle": "bicycle",
    }
    renamed(copy, lambda name: words.get(name, "other_vehicle" if name.startswith("vehicle") else "animal"))
    rewrite(
        copy, "sample_annotation", lambda rows: [row.update(num_lidar_pts=None, num_radar_pts=None) for row in rows]
    )
    made = *split_file(tmp_path, copy), "--train-shards", 1, "--dataset", "lyft", "--sensors", "camera,lidar"
    result = run_here(copy, tmp_path / "out", *made)
    assert result.exit_code == 0, result.output
    rig = load_index(tmp_path / "out" / "train-000.tar").rig
    assert rig.dataset == "Lyft Level 5" and "vehicle.car" in rig.categories and "vehicle.other" in rig.categories
    found = call_module("preprocess.verify", tmp_path / "out", "--against", copy)
    assert "all is well" in found.stdout
    renamed(copy, lambda name: "spaceship")
    assert "category 'spaceship' is none of Lyft's" in says_no(copy, tmp_path / "x", *made)


def test_truckscenes_cameras_and_lidar_take_nuscenes_places(copy, tmp_path):
    """Made tables by the published schema: four cameras at the corners, lidars of other names."""
    channels = {
        "CAM_FRONT_LEFT": "CAMERA_LEFT_FRONT",
        "CAM_FRONT_RIGHT": "CAMERA_RIGHT_FRONT",
        "LIDAR_TOP": "LIDAR_TOP_FRONT",
    }
    channels |= {"CAM_BACK_LEFT": "CAMERA_LEFT_BACK", "CAM_BACK_RIGHT": "CAMERA_RIGHT_BACK"}
    renamed(copy, channels=channels)
    made = *split_file(tmp_path, copy), "--train-shards", 1, "--dataset", "truckscenes"
    result = run_here(copy, tmp_path / "out", *made)
    assert result.exit_code == 0, result.output
    rig = load_index(tmp_path / "out" / "train-000.tar").rig
    assert (
        rig.dataset == "MAN TruckScenes" and len(rig.cameras) == 4 and not rig.radars and rig.lidars == ("LIDAR_TOP",)
    )
    assert "all is well" in call_module("preprocess.verify", tmp_path / "out", "--against", copy).stdout
