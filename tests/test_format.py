"""shards/README.md and the code say the same about the format."""

import json
import re
import tarfile

import numpy as np
import pytest
import zstandard

from common.cameras import CAMERAS
from common.record import (
    BOX_DTYPE,
    CAMERA_DTYPE,
    FEW_POINTS,
    SCHEMA_VERSION,
    RecordError,
    decode_planes,
    decode_points,
    decode_rows,
    encode_points,
    encode_rows,
    member_order,
    merge_planes,
)
from common.shard_index import load_index
from tests.conftest import REPOSITORY

SPECIFICATION = (REPOSITORY / "shards" / "README.md").read_text()


def specified_members():
    """Member names in the order of the specification's table, KK spelled as a pattern."""
    return re.findall(r"^\| `([^`]+)` \|", SPECIFICATION, re.MULTILINE)


def test_schema_and_members_in_order():
    assert f"schema {SCHEMA_VERSION}" in SPECIFICATION.splitlines()[0]
    ours = list(dict.fromkeys(re.sub(r"\.\d\d\.", ".KK.", n) for n in member_order(CAMERAS, 3, 3)))
    ours = list(dict.fromkeys(re.sub(r"CAM_\w+", "CAM_*", n) for n in ours))
    assert specified_members() == ours
    assert [name.removeprefix("CAM_") for name in CAMERAS] == re.findall(
        r"FRONT_LEFT|FRONT_RIGHT|BACK_LEFT|BACK_RIGHT|FRONT|BACK",
        re.search(r"\| `CAM_\*\.jpg` \| ([^:]+):", SPECIFICATION)[1],
    )


@pytest.mark.parametrize("dtype", [CAMERA_DTYPE, BOX_DTYPE], ids=["camera", "box"])
def test_every_field_is_specified(dtype):
    described = re.findall(r"^\| `([a-z_A-Z]+)` ([a-z0-9]+) ?([0-9×]*) \|", SPECIFICATION, re.MULTILINE)
    kinds = {"float64": "<f8", "int64": "<i8", "int32": "<i4"}
    table = {n: (kinds[k], tuple(map(int, s.split("×"))) if s else ()) for n, k, s in described}
    for name in dtype.names:
        base, shape = dtype[name].subdtype or (dtype[name], ())
        assert table[name] == (base.str, shape), name


def test_sample_json_has_what_is_specified(synth_shards):
    row = re.search(r"^\| `sample.json` \|.*$", SPECIFICATION, re.MULTILINE)[0]
    named = set(re.findall(r"`(\w+)`", row.partition("|")[2].partition("|")[2]))
    with tarfile.open(synth_shards / "val-000.tar") as tar:
        member = next(m for m in tar if m.name.endswith("sample.json"))
        assert (member.mode, member.mtime, member.uid, member.gid) == (0o644, 0, 0, 0)
        sample = json.load(tar.extractfile(member))
    assert set(sample) <= named, set(sample) - named
    assert {"timestamp_us", "lag_s"} <= set(sample["lidar"][0])
    index = load_index(synth_shards / "val-000.tar", verify=True)
    order = member_order(CAMERAS, 3, 3)
    assert set(index.members) == set(order)
    with tarfile.open(synth_shards / "val-000.tar") as tar:
        names = [m.name.partition(".") for m in tar]
    for key in index.keys:
        own = [member for k, _, member in names if k == key]
        assert own == [m for m in order if m in own] and len(own) >= 11


def test_planes_are_laid_out_as_specified():
    points = np.arange(10, dtype=np.float32).reshape(2, 5) * np.pi
    raw = zstandard.ZstdDecompressor().decompress(encode_points(points))
    assert np.frombuffer(raw, "<u4", 2).tolist() == [2, 5]
    for field in range(2):
        for byte in range(4):
            plane = raw[8 + (4 * field + byte) * 5 :][:5]
            assert plane == points[field].tobytes()[byte::4]


@pytest.mark.parametrize("count", [0, 1, FEW_POINTS - 1, FEW_POINTS, 9001])
def test_round_trips(count):
    rng = np.random.default_rng(count)
    points = rng.normal(size=(5, count)).astype(np.float32)
    np.testing.assert_array_equal(decode_points(encode_points(points), "x"), points)
    out = np.zeros((6, count + 9), np.float32)
    merge_planes(decode_planes(encode_points(points), "x"), out[:5, 3 : 3 + count])
    np.testing.assert_array_equal(out, np.pad(points, ((0, 1), (3, 6))))
    rows = np.zeros(count, BOX_DTYPE)
    rows["wlh"] = rng.normal(size=(count, 3))
    assert decode_rows(encode_rows(rows), BOX_DTYPE, "x").tobytes() == rows.tobytes()
    with pytest.raises(RecordError):
        decode_rows(encode_rows(rows), CAMERA_DTYPE, "x")
    for damaged in (b"", encode_points(points)[:-1], b"\0" * 40):
        with pytest.raises(RecordError):
            decode_points(damaged, "x")
