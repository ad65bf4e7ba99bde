"""Members that lie: well compressed, wrongly filled. A reader says so in a RecordError and takes no memory for it."""

import copy
import json
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.record import (
    BOX_DTYPE,
    BOXES_MEMBER,
    CAMERA_DTYPE,
    CAMERAS_MEMBER,
    MAX_PLANES_BYTES,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    decode_planes,
    decode_points,
    decode_rows,
    encode_json,
    encode_points,
    encode_rows,
    image_member,
    lidar_member,
    parse_sample,
    radar_member,
)
from common.shard_index import dump_index
from preprocess.indexed_tar import IndexedTar
from preprocess.keyframe import build_record
from preprocess.nuscenes import CAMERAS, RADARS
from preprocess.plan import Options, Planner
from preprocess.verify import verify
from tests.index_files import index_path
from tests.preprocess.test_preprocess import CONF, GRID
from train.data import compile_data
from train.data.buffers import Pools
from train.data.config import DecodeConfig, Grid, StageConfig
from train.data.decode import Frame, decode_frame
from train.data.images import ResampledImages, encoded_images

MAX_PEAK_BYTES = 3 * MAX_PLANES_BYTES


@pytest.fixture(scope="module")
def recipe(small_world):
    """The recipe of one shard of one scene."""
    return Planner(small_world, "v1.0-mini", Options(2)).shards("train", ["scene-0061"], 1)[0]


@pytest.fixture(scope="module")
def record(recipe, small_world):
    """Members of its second keyframe, which has two sweeps."""
    return build_record(small_world, recipe.keyframes[1], recipe.facts)[0]


@pytest.fixture(scope="module")
def options():
    return DecodeConfig(Grid(GRID["centroid"], GRID["bounds"], GRID["res_3d"]), nsweeps=2)


def decoded(members, config):
    """The Frame of a record, its images decoded too, as a loader's thread does."""
    frame = decode_frame(members, "scene-0061_0001", CAMERAS, config)
    images = ResampledImages(Pools(1, False), 1, len(CAMERAS), StageConfig((14, 25)))
    sizes, crops = [[[25, 14]] * len(CAMERAS)], [[[0, 0, 25, 14]] * len(CAMERAS)]
    encoded = encoded_images(members, CAMERAS)
    images.add(0, encoded, CAMERAS, frame.sizes_hw, *(np.array(v[0]) for v in (sizes, crops)))
    return frame


def unpacked(data):
    return zstandard.ZstdDecompressor().decompress(data)


def packed(raw):
    return zstandard.ZstdCompressor(level=3).compress(raw)


def rows_with(data, dtype, **values):
    """A rows member whose first row has other values."""
    rows = decode_rows(data, dtype, "x").copy()
    for name, value in values.items():
        rows[name][0] = value
    return encode_rows(rows)


def sample_with(data, change):
    value = json.loads(data)
    change(value)
    return json.dumps(value).encode()


def _set(*path, to):
    def change(value):
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return lambda data: sample_with(data, change)


def _drop(*path):
    def change(value):
        for step in path[:-1]:
            value = value[step]
        del value[path[-1]]

    return lambda data: sample_with(data, change)


FAR = np.float32([[1e5], [1], [1], [1], [1]])
NAN_POINTS = np.full((5, 9), np.nan, np.float32)
RAGGED = [[1, 0, 0, 0], [0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
# name -> (member, function from its bytes to the lying bytes)
LIES = {
    "lidar of four fields": (lidar_member(0), lambda data: encode_points(decode_points(data, "x")[:4])),
    "radar of twenty-one": (radar_member(0), lambda data: encode_points(np.ones((21, 4), np.float32))),
    "lidar that is not finite": (lidar_member(1), lambda data: encode_points(NAN_POINTS)),
    "radar that is not finite": (radar_member(1), lambda data: encode_points(np.full((20, 3), np.inf, np.float32))),
    "planes of too many fields": (lidar_member(0), lambda data: packed(struct.pack("<II", 2**31, 1))),
    "planes of too many points": (lidar_member(0), lambda data: packed(struct.pack("<II", 5, 2**32 - 1))),
    "planes over the bound": (lidar_member(0), lambda data: packed(bytes(MAX_PLANES_BYTES + 9))),
    "planes without a header": (lidar_member(0), lambda data: packed(b"1234")),
    "a negative image": (CAMERAS_MEMBER, lambda data: rows_with(data, CAMERA_DTYPE, height=-900)),
    "an image of nothing": (CAMERAS_MEMBER, lambda data: rows_with(data, CAMERA_DTYPE, width=0)),
    "a huge image": (CAMERAS_MEMBER, lambda data: rows_with(data, CAMERA_DTYPE, height=60_000, width=60_000)),
    "another image": (CAMERAS_MEMBER, lambda data: rows_with(data, CAMERA_DTYPE, height=91)),
    "a camera that is nowhere": (CAMERAS_MEMBER, lambda data: rows_with(data, CAMERA_DTYPE, ego_T_cam=np.nan)),
    "no focal length": (CAMERAS_MEMBER, lambda data: rows_with(data, CAMERA_DTYPE, intrinsics=np.inf)),
    "fewer rows than cameras": (CAMERAS_MEMBER, lambda data: encode_rows(decode_rows(data, CAMERA_DTYPE, "x")[:5])),
    "no rows": (CAMERAS_MEMBER, lambda data: encode_rows(np.zeros(0, CAMERA_DTYPE))),
    "a box that is nowhere": (BOXES_MEMBER, lambda data: rows_with(data, BOX_DTYPE, ego_lrt=np.nan)),
    "a box far away": (BOXES_MEMBER, lambda data: rows_with(data, BOX_DTYPE, ego_lrt=1e30)),
    "an infinite velocity": (BOXES_MEMBER, lambda data: rows_with(data, BOX_DTYPE, velocity=np.inf)),
    "rows of another type": (BOXES_MEMBER, lambda data: encode_rows(np.zeros(3, CAMERA_DTYPE))),
    "fewer boxes than categories": (BOXES_MEMBER, lambda data: encode_rows(decode_rows(data, BOX_DTYPE, "x")[:-1])),
    "fewer categories than boxes": (SAMPLE, lambda data: sample_with(data, lambda s: s["boxes"]["category"].pop())),
    "categories that are numbers": (SAMPLE, _set("boxes", "category", 0, to=7)),
    "instances that are none": (SAMPLE, _set("boxes", "instance", to=None)),
    "a ragged pose": (SAMPLE, _set("global_T_ego", to=RAGGED)),
    "a flat pose": (SAMPLE, _set("global_T_ego", to=[1] * 16)),
    "a pose that is not finite": (SAMPLE, _set("global_T_ego", 0, 3, to=float("nan"))),
    "a pose of texts": (SAMPLE, _set("global_T_ego", 0, 0, to="1")),
    "a pose of a number beyond floats": (SAMPLE, _set("global_T_ego", 0, 3, to=10**400)),
    "no scene": (SAMPLE, _drop("scene")),
    "a scene without a name": (SAMPLE, _set("scene", "name", to=None)),
    "a scene of no description": (SAMPLE, _set("scene", "description", to=None)),
    "a log without a place": (SAMPLE, _drop("log", "location")),
    "a token that is a list": (SAMPLE, _set("token", to=[])),
    "a camera that nobody knows": (SAMPLE, _set("cameras", 0, "channel", to="CAM_TOP")),
    "a camera twice": (SAMPLE, _set("cameras", 1, "channel", to=CAMERAS[0])),
    "cameras that are no list": (SAMPLE, _set("cameras", to=3)),
    "a lag that is text": (SAMPLE, _set("lidar", 0, "lag_s", to="0")),
    "a lag that is not finite": (SAMPLE, _set("lidar", 1, "lag_s", to=float("inf"))),
    "lidar as an object": (SAMPLE, _set("lidar", to={})),
    "radar not nested": (SAMPLE, lambda data: sample_with(data, lambda s: s.update(radar=s["lidar"]))),
    "another schema": (SAMPLE, _set("schema", to=1)),
    "a schema that is true": (SAMPLE, _set("schema", to=True)),
    "JSON that is deep": (SAMPLE, lambda data: b"[" * 100_000),
    "JSON that is long": (SAMPLE, lambda data: b" " * (5 << 20) + data),
    "JSON that is a list": (SAMPLE, lambda data: b"[]"),
    "an image that is none": (image_member("CAM_BACK"), lambda data: b"GIF89a"),
    "an image of zeros": (image_member("CAM_BACK"), lambda data: data[:700] + bytes(len(data) - 702) + data[-2:]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_a_record_error_that_names_the_member(record, options, lie):
    member, change = LIES[lie]
    decoded(record, options)
    tracemalloc.start()
    try:
        with pytest.raises(RecordError) as caught:
            decoded({**record, member: change(record[member])}, options)
        assert tracemalloc.get_traced_memory()[1] < MAX_PEAK_BYTES
    finally:
        tracemalloc.stop()
    assert member in str(caught.value) and "\n" not in str(caught.value), caught.value


def write(recipe, folder, dataroot, key, member, change):
    """A shard with its index, one of whose members lies."""
    tar = folder / "train-000.tar"
    with open(tar, "wb") as file:
        with IndexedTar(file) as archive:
            for frame in recipe.keyframes:
                members = build_record(dataroot, frame, recipe.facts)[0]
                if frame.key == key:
                    members[member] = change(members[member])
                archive.add(frame.key, frame.facts["token"], "scene-0061", members)
    index = archive.index(tar, recipe.facts)
    index_path(tar).write_bytes(dump_index(index))
    return tar


@pytest.mark.parametrize(
    "lie", ["lidar of four fields", "a huge image", "a ragged pose", "fewer categories than boxes"]
)
def test_training_and_verify_name_shard_key_and_member(recipe, small_world, tmp_path, lie):
    member, change = LIES[lie]
    tar = write(recipe, tmp_path, small_world, "scene-0061_0001", member, change)
    with pytest.raises(RuntimeError) as caught:
        list(compile_data(f"{tmp_path}/train-*.tar", None, CONF, **GRID, bsz=1, nworkers=0, nsweeps=2)[0])
    problems = verify(tmp_path)[0]
    for text in (str(caught.value), problems[0]):
        assert tar.name in text and "scene-0061_0001" in text and member in text and "\n" not in text


@pytest.mark.parametrize("name", ["intrinsics", "ego_T_cam", "global_T_ego"])
def test_a_calibration_that_is_not_finite_names_sample_and_camera(recipe, small_world, tmp_path, name):
    """On a device it would be an index of nowhere."""

    def change(data):
        rows = np.frombuffer(bytearray(decode_rows(data, CAMERA_DTYPE, "x").tobytes()), CAMERA_DTYPE)
        rows[name][2, 0, 0] = np.nan
        return encode_rows(rows)

    write(recipe, tmp_path, small_world, "scene-0061_0001", CAMERAS_MEMBER, change)
    with pytest.raises(RuntimeError) as caught:
        list(compile_data(f"{tmp_path}/train-*.tar", None, CONF, **GRID, bsz=1, nworkers=0, nsweeps=2)[0])
    text = str(caught.value)
    camera = parse_sample(build_record(small_world, recipe.keyframes[1], recipe.facts)[0][SAMPLE])["cameras"][2]
    assert "scene-0061_0001" in text and f"{CAMERAS_MEMBER}: {name} of {camera['channel']}" in text and "\n" not in text


def later(files, seconds=3600):
    """Files of sample.json, so much later; their lags fit on."""
    for file in files:
        file["timestamp_us"] += seconds * 1_000_000


LAG_ROW = np.zeros((20, 1), np.float32)
LAG_ROW[18] = 0.5
# Lies that nothing but verify and preprocessing look for, since training does not stumble over them.
SUBTLE = {
    "half a ring": (lidar_member(0), lambda d: encode_points(decode_points(d, "x") + np.float32(0.25))),
    "a radar that is not there": (radar_member(0), lambda d: encode_points(decode_points(d, "x") + np.float32(9))),
    "a point far away": (lidar_member(0), lambda d: encode_points(decode_points(d, "x") * FAR)),
    "visibility 7": (BOXES_MEMBER, lambda d: rows_with(d, BOX_DTYPE, visibility=7)),
    "minus nine points": (BOXES_MEMBER, lambda d: rows_with(d, BOX_DTYPE, num_lidar_pts=-9)),
    "a box inside out": (BOXES_MEMBER, lambda d: rows_with(d, BOX_DTYPE, wlh=-1)),
    "a camera that stretches": (CAMERAS_MEMBER, lambda d: rows_with(d, CAMERA_DTYPE, ego_T_cam=2 * np.eye(4))),
    "a camera of another hour": (CAMERAS_MEMBER, lambda d: rows_with(d, CAMERA_DTYPE, timestamp_us=5)),
    "a sweep from the future": (SAMPLE, lambda d: sample_with(d, lambda s: s["lidar"][1].update(timestamp_us=2**60))),
    "a keyframe of another hour": (SAMPLE, _set("timestamp_us", to=5)),
    "lidar of another hour": (SAMPLE, lambda d: sample_with(d, lambda s: later(s["lidar"]))),
    "radar of another hour": (SAMPLE, lambda d: sample_with(d, lambda s: [later(sweep) for sweep in s["radar"]])),
    "one radar of another hour": (SAMPLE, lambda d: sample_with(d, lambda s: [
        later([f for f in sweep if f["channel"] == RADARS[-1]]) for sweep in s["radar"]])),
    "a lag of another lidar sweep": (SAMPLE, _set("lidar", 1, "lag_s", to=0.0)),
    "a lag of another radar sweep": (SAMPLE, _set("radar", 1, 2, "lag_s", to=0.0)),
    "points of another lag": (radar_member(1), lambda d: encode_points(decode_points(d, "x") + LAG_ROW)),
    "the keyframe before is another": (SAMPLE, _set("prev", to="scene-0061_0002")),
    "the keyframe after is none": (SAMPLE, _set("next", to="")),
    "an image cut in the middle": (image_member("CAM_FRONT"), lambda d: d[: len(d) // 2] + b"\xff\xd9"),
}  # fmt: skip


@pytest.mark.parametrize("lie", SUBTLE)
def test_verify_finds_what_preprocessing_would_have_refused(recipe, small_world, tmp_path, lie):
    member, change = SUBTLE[lie]
    write(recipe, tmp_path, small_world, "scene-0061_0001", member, change)
    problems = [p for p in verify(tmp_path)[0] if "in no manifest" not in p]
    assert problems and "scene-0061_0001" in problems[0], problems


def test_a_sound_shard_has_no_problem(recipe, small_world, tmp_path):
    write(recipe, tmp_path, small_world, "scene-0061_0001", SAMPLE, bytes)
    assert all("in no manifest" in p for p in verify(tmp_path)[0])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


def _places(value, path=()):
    """Every path into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        yield from _places(inner, (*path, step))


@st.composite
def changed_json(draw, data):
    value = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([p for p in _places(value) if p]))
        inside = value
        for step in path[:-1]:
            inside = inside[step]
        if draw(st.booleans()):
            inside[path[-1]] = draw(VALUES)
        else:
            del inside[path[-1]]
        if not any(p for p in _places(value)):
            break
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw, raw):
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(raw) - 1, 0)) | st.integers(0, min(150, max(len(raw) - 1, 0))))
        how = draw(st.sampled_from(["set", "number", "cut", "insert", "repeat"]))
        if how == "set":
            raw[place : place + 1] = draw(st.binary(min_size=1, max_size=8))
        elif how == "number":
            special = [np.nan, np.inf, -np.inf, 1e300, -1.0, 0.0]
            raw[place : place + 8] = np.float64(draw(st.sampled_from(special))).tobytes()
        elif how == "cut":
            del raw[place:]
        elif how == "insert":
            raw[place:place] = draw(st.binary(max_size=40))
        else:
            raw += raw[:place]
    return bytes(raw)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_members_decode_well_or_are_a_record_error(record, options, data):
    member = data.draw(st.sampled_from(sorted(record)))
    if member == SAMPLE:
        changed = data.draw(changed_json(record[member]))
    elif member.endswith(".zst"):
        changed = packed(data.draw(changed_bytes(unpacked(record[member]))))
    else:
        changed = data.draw(changed_bytes(record[member]))
    members = {**record, member: changed}
    tracemalloc.start()
    try:
        frame = decoded(members, options)
        assert isinstance(frame, Frame) and np.isfinite(frame.boxes.lrt).all() and np.isfinite(frame.lidar).all()
        assert np.isfinite(frame.global_T_ego).all() and frame.sizes_hw == [(90, 160)] * 6
    except RecordError as error:
        assert str(error) and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES


def test_bounds_hold_before_memory_is_taken():
    sample = {"cameras": [{}], "boxes": {"category": []}}
    tracemalloc.start()
    try:
        for claimed in (2**63, 2**40, MAX_PLANES_BYTES + 9):
            frame = (
                b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claimed) + b"\1\0\0"
            )  # zstd, content size of eight bytes
            for decode in (
                decode_planes,
                lambda d, what: decode_cameras(d, sample),
                lambda d, what: decode_boxes(d, sample),
            ):
                with pytest.raises(RecordError):
                    decode(frame, "x")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_parse_sample_takes_what_is_written(record):
    sample = parse_sample(record[SAMPLE])
    older = copy.deepcopy(sample) | {"schema": 2}
    assert parse_sample(encode_json(older))["schema"] == 2
    assert set(f["channel"] for sweep in sample["radar"] for f in sweep) <= set(RADARS)
