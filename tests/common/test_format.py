"""shards/README.md and the code say the same about the format."""

import hashlib
import io
import json
import re
import shutil
import tarfile
import types
from dataclasses import fields

import numpy as np
import pytest
import webdataset
import zstandard

from common.manifest import parse_manifest
from common.record import (
    BOX_DTYPE,
    CAMERA_DTYPE,
    FEW_POINTS,
    MAX_IMAGE_PIXELS,
    MAX_JSON_BYTES,
    MAX_PLANES_BYTES,
    SCHEMA_VERSION,
    RecordError,
    decode_array,
    decode_boxes,
    decode_cameras,
    decode_planes,
    decode_points,
    decode_rows,
    encode_json,
    encode_points,
    encode_rows,
    member_order,
    merge_planes,
    parse_sample,
)
from common.rig import (
    DISTORTIONS,
    MAX_NAME,
    MAX_SENSORS,
    NUSCENES,
    Camera,
    Condition,
    Distortion,
    Field,
    Radar,
    Rig,
)
from common.shard_index import ABSENT, ShardError, build_index, dump_sealed, parse_index
from common.shard_set import find_shards
from preprocess.layer import write_layer
from preprocess.nuscenes import CAMERAS, RADAR_FIELDS, RADARS
from preprocess.verify import verify
from tests.conftest import REPOSITORY
from tests.index_files import load_index

SPECIFICATION = (REPOSITORY / "shards" / "README.md").read_text()


def specified_members():
    """Member names in the order of the specification's table, KK spelled as a pattern."""
    return re.findall(r"^\| `([^`]+)` \|", section("Members"), re.MULTILINE)


def section(title):
    """The text under a heading of the specification."""
    return re.search(rf"^## {title}.*?\n(.*?)(?=^## |\Z)", SPECIFICATION, re.MULTILINE | re.DOTALL)[1]


def test_schema_and_members_in_order():
    assert f"schema {SCHEMA_VERSION}" in SPECIFICATION.splitlines()[0]
    ours = list(dict.fromkeys(re.sub(r"\.\d\d\.", ".KK.", n) for n in member_order(CAMERAS, 3, 3)))
    ours = list(dict.fromkeys(re.sub(r"CAM_\w+", "<camera>", n) for n in ours))
    assert specified_members() == ours
    named = re.search(r"\| `<camera>\.jpg` \| ([^:]+):", SPECIFICATION)[1]
    assert re.findall(r"CAM_\w+", named) == list(CAMERAS)


def test_every_field_of_a_rig_is_specified():
    said = section("The rig")
    rows = "".join(re.findall(r"^\| (`.*?) \|", said, re.MULTILINE))
    assert re.findall(r"`(\w+)`", rows) and set(re.findall(r"`(\w+)`", rows)) == {f.name for f in fields(Rig)}
    for kind in (Camera, Distortion, Radar, Field, Condition):
        assert all(f"`{f.name}`" in said for f in fields(kind)), kind
    for model, counts in DISTORTIONS.items():
        numbers = " or ".join(", ".join(map(str, counts)).rsplit(", ", 1))
        assert f"`{model}` ({numbers})" in said
    assert f"at most {MAX_NAME} letters" in said and f"At most {MAX_SENSORS} cameras" in said
    for condition in NUSCENES.conditions:
        assert f"{condition.name} ({', '.join(condition.values)})" in said
    clocks = (NUSCENES.clock, NUSCENES.radar_clock, f"nuScenes' {NUSCENES.keyframe_interval_s:g}")
    assert all(text in SPECIFICATION for text in clocks)


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


def test_the_reader_of_the_specification_reads_what_ours_does(synth_shards):
    source = re.search(r"```python\n(.*?)```", SPECIFICATION, re.DOTALL)[1]
    assert len(source.splitlines()) <= 25
    namespace = {}
    exec(compile(source, "shards/README.md", "exec"), namespace)
    tar = synth_shards / "val-000.tar"
    index, data = load_index(tar), tar.read_bytes()
    records = list(namespace["read_shard"](tar))
    assert [key for key, *_ in records] == index.keys
    for row, (_, sample, cameras, boxes, images, points) in enumerate(records):
        ours = {
            name: data[start : start + size]
            for name, start, size in zip(
                index.members, index.offsets[row].tolist(), index.sizes[row].tolist(), strict=True
            )
            if size != ABSENT
        }
        assert sample == parse_sample(ours["sample.json"])
        assert cameras.tobytes() == decode_cameras(ours["cameras.npy.zst"], sample).tobytes()
        assert boxes.tobytes() == decode_boxes(ours["boxes.npy.zst"], sample).tobytes()
        assert images == {name.removesuffix(".jpg"): ours[name] for name in ours if name.endswith(".jpg")}
        planes = [name for name in ours if ".planes" in name]
        assert len(planes) == len(points) == len(sample["lidar"]) + len(sample["radar"])
        for name in planes:
            np.testing.assert_array_equal(points[name.removesuffix(".planes.zst")], decode_points(ours[name], name))


def test_radar_fields_and_numbers_are_specified():
    names = re.search(r"The 18 radar fields: ([^.]*)\.", SPECIFICATION)[1]
    assert tuple(names.split(", ")) == RADAR_FIELDS
    numbers = re.search(r"nuScenes' radars' numbers: ([^.]*)\.", SPECIFICATION)[1]
    assert numbers == ", ".join(f"{n} {name}" for n, name in enumerate(RADARS))


def test_facts_and_bounds_are_specified(synth_shards):
    facts = load_index(synth_shards / "val-000.tar").facts
    described = SPECIFICATION[SPECIFICATION.index("The metadata, `facts`") :]
    assert all(f"`{name}`" in described for name in [*facts, "channels", "lidar_columns", "reference", "annotated"])
    bounds = (MAX_JSON_BYTES >> 20, MAX_PLANES_BYTES >> 20, MAX_IMAGE_PIXELS // 10**6)
    assert all(f"{bound} M" in SPECIFICATION or f"{bound} million" in SPECIFICATION for bound in bounds)


@pytest.mark.parametrize("schema, remedy", [(1, "make the shards anew with"), (4, "use a later version")])
def test_other_schemas_are_refused_with_the_remedy(synth_shards, tmp_path, schema, remedy):
    raw = dump_sealed(json.loads((synth_shards / "val-000.idx.json").read_bytes()) | {"schema": schema})
    with pytest.raises(ShardError, match=rf"val-000\.tar: schema {schema}, this version reads 2 and 3; {remedy}"):
        parse_index(raw, tmp_path / "val-000.tar")
    raw = dump_sealed(json.loads((synth_shards / "val.manifest.json").read_bytes()) | {"schema": schema})
    with pytest.raises(ShardError, match=rf"val\.manifest\.json: schema {schema}.*; {remedy}"):
        parse_manifest(raw, "val.manifest.json")
    shutil.copy(synth_shards / "val-000.tar", tmp_path)
    with tarfile.open(tmp_path / "val-000.tar") as old, tarfile.open(tmp_path / "val-001.tar", "w") as new:
        for member in old:
            data = old.extractfile(member).read()
            if member.name.endswith("sample.json"):
                data = encode_json(json.loads(data) | {"schema": schema})
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    with pytest.raises(ShardError, match=rf"schema {schema}.*; {remedy}"):
        build_index(tmp_path / "val-001.tar")


@pytest.mark.parametrize("name", ["val.manifest.json", "val-000.idx.json"])
def test_index_and_manifest_are_specified_and_sealed_as_it_says(synth_shards, name):
    body = json.loads((synth_shards / name).read_bytes())
    described = SPECIFICATION[SPECIFICATION.index("## Beside the shards" if "manifest" in name else "## Index") :]
    entries = body["shards"] if "manifest" in name else []
    assert all(re.search(rf"\b{field}\b", described) for field in {*body, *(k for entry in entries for k in entry)})
    assert "sorted keys, no spaces, and everything but ASCII escaped" in SPECIFICATION
    digest = body.pop("body_sha256")
    rest = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert digest == hashlib.sha256(rest.encode()).hexdigest()


def test_layers_lie_where_it_says_and_belong_to_no_split(synth_shards, tmp_path):
    place = re.search(
        r"A layer adds members to finished shards.*?`(layers/<name>/train-000.tar)`", SPECIFICATION, re.S
    )[1]
    for name in ("val-000.tar", "val-000.idx.json", "val.manifest.json"):
        shutil.copy(synth_shards / name, tmp_path)
    write_layer(tmp_path, "brightness", _example().make)
    tar = tmp_path / place.replace("<name>", "brightness").replace("train", "val")
    for pattern in (tmp_path, tmp_path / "val-*.tar"):
        assert find_shards(pattern, "val").shards == (str(tmp_path / "val-000.tar"),)
    assert not verify(tmp_path)[0]
    body = json.loads((tar.parent / "val-000.idx.json").read_bytes())
    described = SPECIFICATION[SPECIFICATION.index("## Layers") :]
    assert all(f"`{field}`" in described for field in body["facts"])
    with tarfile.open(tar) as archive:
        first = archive.next()
        assert first.name == "__layer__" and json.loads(archive.extractfile(first).read()) == body["facts"]
    [sample, *_] = webdataset.WebDataset(str(tar), shardshuffle=False)
    assert sample["__key__"] == body["keys"][0]
    mean = decode_array(sample["mean.npy.zst"], "mean")
    assert mean.shape == (6,) and (mean > 0).all() and (mean < 1).all()


def _example():
    """The module that the specification shows whole."""
    code = re.search(r"```python\n(\"\"\"How bright.*?)```", SPECIFICATION, re.S)[1]
    assert len(code.splitlines()) <= 20
    module = types.ModuleType("mylayer")
    exec(code, vars(module))
    return module
