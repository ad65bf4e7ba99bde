"""The rig: what it may be, what is refused, and the words by which nuScenes tells light and weather."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.conditions import conditions_of
from common.record import RecordError, parse_sample
from common.rig import NUSCENES, Camera, Condition, Distortion, Field, Radar, Rig, RigError, parse_rig, rig_of
from common.shard_index import ShardError, dump_index
from common.shard_set import find_shards
from tests.index_files import index_path, load_index

BENT = replace(
    NUSCENES,
    dataset="Argoverse 2",
    cameras=(
        Camera("ring_front_left", distortion=Distortion("brown_conrady", (0.1, -0.2, 1e-3, 0, 0.05))),
        Camera("ring_front_center", reference=True),
        Camera("fisheye", distortion=Distortion("kannala_brandt", (0.1, 0.02, -0.3, 0.004))),
    ),
    lidars=("up_lidar", "down_lidar"),
    clock="up_lidar",
    keyframe_interval_s=0.1,
    radars=(Radar("front"),),
    radar_clock="front",
    lidar_fields=(*NUSCENES.lidar_fields, Field("offset", "s")),
    conditions=(Condition("light", ("day", "dusk", "night")),),
    categories=("REGULAR_VEHICLE", "Pedestrian with an é"),
)


@pytest.mark.parametrize("rig", [NUSCENES, BENT, NUSCENES.holding(("CAM_BACK",), (), ("RADAR_BACK_LEFT",))])
def test_a_rig_comes_back_from_json_as_it_was(rig):
    assert parse_rig(json.loads(json.dumps(rig.as_dict()))) == rig
    assert rig_of({"rig": json.loads(json.dumps(rig.as_dict()))}, 3) == rig


def test_slots_numbers_and_planes():
    assert NUSCENES.reference_slot == 1 and NUSCENES.camera_names[1] == "CAM_FRONT"
    assert (NUSCENES.lidar_planes, NUSCENES.radar_planes) == (5, 20)
    assert (BENT.reference_slot, BENT.lidar_planes) == (1, 7)
    some = NUSCENES.holding(("CAM_BACK", "CAM_FRONT_LEFT"), NUSCENES.lidars, ("RADAR_BACK_LEFT",))
    assert some.camera_names == ("CAM_FRONT_LEFT", "CAM_BACK") and some.reference_slot == 0
    assert some.radar_clock == "RADAR_BACK_LEFT" and some.clock == "LIDAR_TOP"
    assert NUSCENES.holding(NUSCENES.camera_names, (), ()).radar_fields == ()


def test_schema_2_is_nuscenes_with_the_sensors_that_its_facts_name():
    assert rig_of({}, 2) == NUSCENES
    facts = {"sensors": ["camera", "lidar"], "cameras": ["CAM_BACK"], "reference": "CAM_BACK"}
    rig = rig_of(facts, 2)
    assert (rig.camera_names, rig.lidars, rig.radars, rig.clock) == (("CAM_BACK",), ("LIDAR_TOP",), (), "CAM_BACK")


def changed(*path_and_value):
    """NUSCENES as JSON with the value at the path replaced; without a value, removed."""
    *path, value = path_and_value
    raw = json.loads(json.dumps(NUSCENES.as_dict()))
    place = raw
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return raw


HOSTILE = {
    "no list": changed("cameras", {}),
    "a text for a list": changed("lidars", "LIDAR_TOP"),
    "no cameras": changed("cameras", []),
    "cameras without end": changed(
        "cameras", [{"name": f"c{n}", "reference": n == 0, "distortion": None} for n in range(1000)]
    ),
    "a missing field": changed("clock", ...),
    "an unknown field": changed("wheels", 4),
    "an unknown field of a camera": changed("cameras", 0, "lens", "wide"),
    "a path as a name": changed("cameras", 0, "name", "../../etc/passwd"),
    "a name with a dot": changed("cameras", 0, "name", "CAM.FRONT"),
    "a name too long for a tar": changed("cameras", 0, "name", "C" * 32),
    "names that differ in their letters' size": changed("cameras", 0, "name", "cam_front"),
    "two reference cameras": changed("cameras", 0, "reference", True),
    "a number for yes": changed("cameras", 1, "reference", 1),
    "an unknown distortion": changed("cameras", 0, "distortion", {"model": "fov", "coefficients": [1.0]}),
    "a distortion of a list": changed(
        "cameras", 0, "distortion", {"model": ["brown_conrady"], "coefficients": [0.0] * 4}
    ),
    "too few coefficients": changed("cameras", 0, "distortion", {"model": "kannala_brandt", "coefficients": [0.0] * 3}),
    "a coefficient of NaN": changed(
        "cameras", 0, "distortion", {"model": "kannala_brandt", "coefficients": [float("nan")] * 4}
    ),
    "a radar that is none": changed("radar_clock", "RADAR_TOP"),
    "fields in another order": changed("lidar_fields", 0, "name", "q"),
    "a field twice": changed("radar_fields", 4, "name", "x"),
    "an interval of nothing": changed("keyframe_interval_s", 0),
    "an interval without end": changed("keyframe_interval_s", float("inf")),
    "an interval of truth": changed("keyframe_interval_s", True),
    "a data set of a line feed": changed("dataset", "nu\nScenes"),
    "a terminal's escape": changed("licence", "\x1b[2J"),
    "a category of 300 letters": changed("categories", ["c" * 300]),
    "a category twice": changed("categories", ["vehicle.car", "vehicle.car"]),
    "categories of numbers": changed("categories", [1, 2]),
    "categories without end": changed("categories", [str(n) for n in range(5000)]),
    "a condition without values": changed("conditions", 0, "values", []),
    "a huge number": changed("radars", 0, "yaw_deg", 1e300),
    "no object": [],
    "nothing": None,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_rigs_are_refused_in_a_short_line(what):
    with pytest.raises(RigError) as caught:
        rig_of({"rig": HOSTILE[what]}, 3)
    assert str(caught.value).startswith("rig: ") and len(str(caught.value)) < 250 and str(caught.value).isprintable()


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_any_json_in_any_field_is_a_rig_or_refused(value):
    for name in (
        "cameras",
        "lidars",
        "radars",
        "lidar_fields",
        "conditions",
        "categories",
        "clock",
        "keyframe_interval_s",
    ):
        try:
            assert isinstance(rig_of({"rig": changed(name, value)}, 3), Rig)
        except RigError:
            pass


@pytest.mark.parametrize("what", ["a path as a name", "an interval of nothing", "nothing"])
def test_shards_of_a_hostile_rig_are_refused(small_shards, tmp_path, what):
    index = load_index(small_shards / "val-000.tar")
    index.facts = {**index.facts, "rig": HOSTILE[what]}
    index.tar = tmp_path / "val-000.tar"
    index.tar.symlink_to(small_shards / "val-000.tar")
    index_path(index.tar).write_bytes(dump_index(index))
    with pytest.raises(ShardError, match=r"val-000\.tar: damaged index \(rig: "):
        load_index(index.tar)


def test_the_metadata_of_a_set_hold_the_rig(small_shards):
    shards = find_shards(small_shards / "train-*.tar")
    [rig] = {load_index(tar).rig for tar in shards}
    assert rig.categories and rig == replace(NUSCENES, categories=rig.categories)
    [manifest] = shards.manifests[str(small_shards)].values()
    assert manifest.rig == rig and manifest.licence == rig.licence


def test_a_sample_has_conditions_and_only_sensors_of_its_rig(small_shards):
    members = dict(_members(small_shards / "val-000.tar"))
    sample = parse_sample(members["sample.json"])
    assert sample["conditions"] == conditions_of(sample["scene"]["description"])
    for change in (
        {"conditions": {"light": "ultraviolet"}},
        {"conditions": ["light"]},
        {"conditions": {"smell": "day"}},
        {"radar": [[{**sample["radar"][0][0], "channel": "RADAR_TOP"}]]},
        {"lidar": [sample["lidar"]]},
    ):
        with pytest.raises(RecordError):
            parse_sample(json.dumps(json.loads(members["sample.json"]) | change).encode())


def _members(tar):
    index = load_index(tar)
    data = tar.read_bytes()
    for name, offset, size in zip(index.members, index.offsets[0].tolist(), index.sizes[0].tolist(), strict=True):
        yield name, data[offset : offset + size]


@pytest.mark.parametrize(
    "text, light, weather",
    [
        ("Night, rain, parked cars", "night", "rain"),
        ("Parked truck, after rain", "day", "dry"),
        ("Rain, then after the rain a bus", "day", "rain"),
        ("Terrain, train station, drained road", "day", "dry"),
        ("Knights at a fortnightly nightclub; no rain", "day", "dry"),
        ("MIDNIGHT_RAINY", "night", "rain"),
        ("Heavy raining at night-time", "night", "rain"),
        ("", "day", "dry"),
    ],
)
def test_words_that_tell_light_and_weather(text, light, weather):
    assert conditions_of(text) == {"light": light, "weather": weather}
