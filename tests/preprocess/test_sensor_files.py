"""Sensor files are read for what they are: damaged images, lidar of other columns, radar that is not as prescribed."""

import io
import shutil
from collections import Counter

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from common.record import encode_points
from preprocess.errors import SourceError
from preprocess.images import check_image, stored_image
from preprocess.pointclouds import DROPPED, NO_RING, RADAR_DTYPE, parse_lidar, parse_radar
from preprocess.verify import verify
from tests.conftest import call_module
from tests.index_files import load_index
from tests.preprocessing import command, run_here, says_no


@pytest.fixture
def copy(small_world, tmp_path):
    return shutil.copytree(small_world, tmp_path / "copy")


def jpeg(mode="RGB", **options):
    """Bytes of a JPEG with enough detail that a cut falls into its entropy code."""
    rng = np.random.default_rng(3)
    rough = Image.fromarray(rng.integers(0, 255, (24, 40, 3), np.uint8)).resize((320, 192), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    rough.convert(mode).save(out, "JPEG", quality=88, **options)
    return out.getvalue()


IMAGES = {
    "plain": jpeg(),
    "progressive": jpeg(progressive=True),
    "grey": jpeg("L"),
    "not subsampled": jpeg(subsampling=0),
    "RGB": jpeg(keep_rgb=True),
    "restarts": jpeg(restart_marker_blocks=4),
}


def _cut(data, place, rng):
    return data[:place] + b"\xff\xd9"


def _zeros(data, place, rng):
    return data[:place] + bytes(len(data[place : place + 200])) + data[place + 200 :]


def _flip(data, place, rng):
    return data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]


def _drop(data, place, rng):
    return data[:place] + data[place + int(rng.integers(1, 300)) :]


def _repeat(data, place, rng):
    return data[:place] + data[place - int(rng.integers(1, 300)) :]


def _noise(data, place, rng):
    return data[:place] + rng.bytes(50) + data[place + 50 :]


@pytest.mark.parametrize("kind", IMAGES)
def test_the_check_finds_what_a_full_decode_finds(kind):
    whole = IMAGES[kind]
    assert check_image(whole, "x") == check_image(whole + bytes(9), "x") == (192, 320)
    rng = np.random.default_rng(len(whole))
    start = whole.index(b"\xff\xda") + 20
    found = 0
    for damage in (_cut, _zeros, _flip, _drop, _repeat, _noise):
        for place in rng.integers(start, len(whole) - 4, 25).tolist():
            damaged = damage(whole, place, rng)
            try:
                simplejpeg.decode_jpeg(damaged, "RGB")
                sound = damaged.endswith(b"\xff\xd9")
            except ValueError:
                sound = False
            try:
                check_image(damaged, "x")
                assert sound, (damage.__name__, place)
            except SourceError as error:
                assert not sound, (damage.__name__, place, str(error))
                found += 1
    assert found > 60  # every cut is


def test_images_that_are_no_rgb_are_named():
    with pytest.raises(SourceError, match="CMYK"):
        check_image(jpeg("CMYK"), "x.jpg")
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "PNG")
    with pytest.raises(SourceError, match=r"x\.jpg: not a JPEG"):
        check_image(out.getvalue(), "x.jpg")
    twelve_bits = bytearray(jpeg())
    twelve_bits[twelve_bits.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(SourceError):
        check_image(bytes(twelve_bits), "x.jpg")
    huge = bytearray(jpeg())
    place = huge.index(b"\xff\xc0") + 5
    huge[place : place + 4] = b"\xff\xdc\xff\xdc"
    with pytest.raises(SourceError, match="pixels"):
        check_image(bytes(huge), "x.jpg")


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_of_image_is_reencoded(kind):
    image = stored_image(IMAGES[kind], "x", np.eye(3), (96, 160), 90)
    small, size = image.data, image.source_hw
    assert size == (192, 320) and check_image(small, "x") == (96, 160)
    full = simplejpeg.decode_jpeg(IMAGES[kind], "RGB").astype(float)
    means = [np.asarray(i, float).mean() for i in (full, simplejpeg.decode_jpeg(small, "RGB"))]
    assert abs(means[0] - means[1]) < 2


def cut_in_the_middle(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")


def test_an_image_cut_in_the_middle_with_a_valid_end(copy, small_world, tmp_path):
    victim = sorted((copy / "samples" / "CAM_BACK").glob("scene-0553*"))[1]
    cut_in_the_middle(victim)
    for out, *more in (("same",), ("small", "--image-size", "45x80")):
        message = says_no(copy, tmp_path / out, *more)
        assert victim.name in message and "scene-0553_0001" in message and "damaged" in message
    result = run_here(copy, tmp_path / "skip", "--on-error", "skip")
    assert result.exit_code == 0 and "scene-0553: 1 of 3 samples" in result.stdout
    assert not verify(tmp_path / "skip", copy)[0]


def lidar(columns, points=1000):
    """Bytes of a plausible sweep, of a number of points whose bytes are whole under every reading."""
    rng = np.random.default_rng(1)
    out = np.zeros((points, columns), "<f4")
    out[:, :3] = rng.normal(0, 20, (points, 3))
    out[:, 3] = rng.integers(0, 256, points)
    if columns > 4:
        out[:, 4] = np.arange(points) % 32
    if columns > 5:
        out[:, 5] = rng.random(points) / 20
    return out


@pytest.mark.parametrize("columns", [4, 5, 6])
@pytest.mark.parametrize("asked", [4, 5, 6])
def test_lidar_columns(columns, asked):
    rows = lidar(columns, 1200)
    if columns != asked:
        with pytest.raises(SourceError, match=f"x: not a lidar file of {asked} columns.*--lidar-columns"):
            parse_lidar(rows.tobytes(), "x", asked)
        return
    points = parse_lidar(rows.tobytes(), "x", asked)
    np.testing.assert_array_equal(points[:4], rows[:, :4].T)
    np.testing.assert_array_equal(points[4], rows[:, 4] if columns > 4 else -1)


@pytest.mark.parametrize("ring", [0, -1, 7, 127])
def test_a_constant_ring_is_legal(ring):
    rows = lidar(5)
    rows[:, 4] = ring
    rows[:, 3] *= 257  # sixteen bits of intensity
    assert (parse_lidar(rows.tobytes(), "x")[4] == ring).all()


@pytest.mark.parametrize(("column", "value"), [(2, np.inf), (3, np.inf), (4, np.inf), (4, 0.5), (4, -2),
                                               (4, 5000), (1, 3e4), (0, 1e30)])  # fmt: skip
def test_lidar_values_that_cannot_be(column, value):
    rows = lidar(5)
    rows[500, column] = value
    with pytest.raises(SourceError, match="^x: "):
        parse_lidar(rows.tobytes(), "x")


@pytest.mark.parametrize("columns", [4, 5, 6])
def test_returns_of_nan_are_dropped_and_counted(columns):
    rows, found = lidar(columns), Counter()
    rows[[3, 500, 999], [0, 2, 3]] = np.nan
    points = parse_lidar(rows.tobytes(), "x", columns, found)
    np.testing.assert_array_equal(points[:4], np.delete(rows[:, :4], [3, 500, 999], 0).T)
    assert found == {DROPPED: 3}
    rows[:, 1] = np.nan
    with pytest.raises(SourceError, match="x: every one of its 1000 lidar points has a NaN"):
        parse_lidar(rows.tobytes(), "x", columns)


FIFTH = {
    "seconds": np.linspace(0, 0.1, 1200),
    "nanoseconds": np.arange(1200) * 83_333.0,
    "NaN": np.full(1200, np.nan),
    "an angle": np.linspace(-np.pi, np.pi, 1200),
}


@pytest.mark.parametrize("what", FIFTH)
@pytest.mark.parametrize("columns", [5, 6])
def test_a_fifth_column_that_is_no_ring_is_none(what, columns):
    rows, found = lidar(columns, 1200), Counter()
    rows[:, 4] = FIFTH[what]
    points = parse_lidar(rows.tobytes(), "x", columns, found)
    assert (points[4] == -1).all() and found == {NO_RING: 1}
    np.testing.assert_array_equal(points[:4], rows[:, :4].T)


@pytest.mark.parametrize("columns", [3, 4, 5])
def test_float64_is_named_as_what_it_is(columns):
    rows = lidar(5, 1200)[:, :columns].astype("<f8")
    with pytest.raises(SourceError, match="x: .*float64: convert them to float32"):
        parse_lidar(rows.tobytes(), "x")


def pcd(rows, feed="\n", **values):
    """Bytes of a binary PCD of a structured array."""
    names, kinds = rows.dtype.names, [rows.dtype[n] for n in rows.dtype.names]
    head = {
        "VERSION": "0.7",
        "FIELDS": " ".join(names),
        "SIZE": " ".join(str(k.itemsize) for k in kinds),
        "TYPE": " ".join(k.kind.upper() for k in kinds),
        "COUNT": " ".join("1" for _ in kinds),
        "WIDTH": len(rows),
        "HEIGHT": 1,
        "POINTS": len(rows),
        "DATA": "binary",
    } | values
    return feed.join(["# .PCD v0.7", *(f"{k} {v}" for k, v in head.items())]).encode() + feed.encode() + rows.tobytes()


XYZI = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4")]


@pytest.mark.parametrize("more", [[], [("ring", "<u2")], [("t", "<u4"), ("ring", "u1"), ("noise", "<f8")]])
@pytest.mark.parametrize("feed", ["\n", "\r\n"])
def test_a_lidar_may_be_a_binary_pcd(more, feed):
    cloud, rows, found = lidar(5), np.zeros(1000, XYZI + more), Counter()
    for place, name in enumerate(("x", "y", "z", "intensity")):
        rows[name] = cloud[:, place]
    if more:
        rows["ring"] = cloud[:, 4]
    rows["x"][7] = np.nan
    points = parse_lidar(pcd(rows, feed), "x", found=found)
    np.testing.assert_array_equal(points[:4], np.delete(cloud[:, :4], 7, 0).T)
    np.testing.assert_array_equal(points[4], np.delete(cloud[:, 4], 7) if more else np.full(999, -1))
    assert found == {DROPPED: 1}


@pytest.mark.parametrize(
    ("names", "values", "said"),
    [
        (["x", "y", "z"], {}, "without intensity"),
        (["x", "y", "z", "intensity"], {"DATA": "ascii"}, "save them as binary"),
        (["x", "y", "z", "intensity"], {"DATA": "binary_compressed"}, "save them as binary"),
        (["x", "y", "z", "intensity"], {"WIDTH": 9, "POINTS": 9}, "its header promises"),
        (["x", "y", "z", "intensity"], {"WIDTH": "9" * 30}, "must be numbers"),
        (["x", "y", "z", "intensity"], {"WIDTH": 2}, "must say the same"),
        (["x", "y", "z", "intensity"], {"COUNT": "1 1 1 4"}, "do not fit"),
        (["x", "y", "z", "intensity"], {"FIELDS": "x x z intensity"}, "a field twice"),
        (["x", "y", "z", "intensity"], {"TYPE": "F F F Q"}, "do not fit"),
    ],
)
def test_lidar_pcds_that_are_refused(names, values, said):
    with pytest.raises(SourceError, match=f"^x: .*{said}"):
        parse_lidar(pcd(np.ones(3, [(name, "<f4") for name in names]), **values), "x")


def test_what_was_dropped_is_said_whoever_works(copy, tmp_path):
    for n, path in enumerate(sorted(copy.glob("samples/LIDAR_TOP/*"))):
        rows = np.fromfile(path, "<f4").reshape(-1, 5)
        rows[n, 2] = np.nan
        if n == 2:
            rows[:, 4] = np.linspace(0, 0.1, len(rows))
        rows.tofile(path)
    for workers in ("1", "2"):
        said = call_module(*command(copy, tmp_path / workers), "--workers", workers).stdout
        assert f"\n12 {DROPPED}\n" in said and f"\n1 {NO_RING}\n" in said
    assert not verify(tmp_path / "1", copy)[0]
    assert (tmp_path / "1" / "val-000.tar").read_bytes() == (tmp_path / "2" / "val-000.tar").read_bytes()


@pytest.mark.parametrize(
    "tail", [b"\n", b"\r\n", b"\xff" * 5, b"\0" * 4000 + b"\1", b"\0\0\1\x0aSEFT", IMAGES["grey"] + b"end"]
)
@pytest.mark.parametrize("kind", IMAGES)
def test_what_follows_an_image_is_passed_over(kind, tail):
    assert check_image(IMAGES[kind] + tail, "x") == (192, 320)
    smaller = (stored_image(data, "x", np.eye(3), (96, 160), 90) for data in (IMAGES[kind] + tail, IMAGES[kind]))
    assert len({image.data for image in smaller}) == 1
    for cut in (1, 2, 3, 40):
        with pytest.raises(SourceError, match="^x: the JPEG image is damaged"):
            check_image(IMAGES[kind][:-cut], "x")


def test_lidar_of_other_columns_through_the_command(copy, tmp_path):
    for path in copy.glob("s*/LIDAR_TOP/*"):
        rows = np.fromfile(path, "<f4").reshape(-1, 5)
        rows[: len(rows) // 5 * 5, :4].tofile(path)
    assert "--lidar-columns" in says_no(copy, tmp_path / "out")
    result = run_here(copy, tmp_path / "out", "--lidar-columns", "4")
    assert result.exit_code == 0, result.output
    assert load_index(tmp_path / "out" / "val-000.tar").facts["lidar_columns"] == 4
    assert not verify(tmp_path / "out", copy)[0]


def radar(points=3, after=b"\n", **values):
    """Bytes of a radar PCD; `values` are header lines to replace."""
    rows = np.zeros(points, RADAR_DTYPE)
    rows["x"], rows["rcs"] = np.arange(points) + 5, 1.5
    names = RADAR_DTYPE.names
    head = {
        "FIELDS": " ".join(names),
        "SIZE": " ".join(str(RADAR_DTYPE[n].itemsize) for n in names),
        "TYPE": " ".join("F" if RADAR_DTYPE[n].kind == "f" else "I" for n in names),
        "COUNT": " ".join("1" for _ in names),
        "WIDTH": points,
        "HEIGHT": 1,
        "VIEWPOINT": "0 0 0 1 0 0 0",
        "POINTS": points,
    } | values
    lines = ["# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", *(f"{k} {v}" for k, v in head.items())]
    return "\n".join([*lines, "DATA binary"]).encode() + b"\n" + rows.tobytes() + after


@pytest.mark.parametrize("after", [b"", b"\n", b"\0", bytes(3500)])
@pytest.mark.parametrize("points", [0, 1, 125])
def test_radar_files_end_in_nothing_zeros_or_a_line_feed(after, points):
    assert parse_radar(radar(points, after), "x").shape == (18, points)


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.replace(b"\n", b"\r\n"),
        lambda head: head.replace(b"\n", b"  \n"),
        lambda head: head.replace(b"\n", b"\n "),
        lambda head: head.replace(b" ", b"\t "),
        lambda head: head.replace(b"\n", b"\n\n"),
    ],
)
def test_radar_headers_may_have_blanks_and_crlf(change):
    data = radar(3)
    start = data.index(b"DATA binary\n") + len(b"DATA binary\n")
    head = change(data[:start])
    head = head[: head.index(b"binary")] + head[head.index(b"binary") :].rstrip(b"\n ").rstrip(b"\r") + b" \r\n"
    np.testing.assert_array_equal(parse_radar(head + data[start:], "x"), parse_radar(data, "x"))


def test_radar_padded_to_a_page_as_pcl_does():
    data = radar(125, b"")
    head = data.index(b"DATA binary\n") + len(b"DATA binary\n")
    padded = data + bytes(4096 - head)
    assert len(padded) == 4096 + 43 * 125
    np.testing.assert_array_equal(parse_radar(padded, "x"), parse_radar(data, "x"))


@pytest.mark.parametrize("after", [b"\n\n", b"\0\n", b"\1", b" ", b"x" * 43, bytes(42) + b"\1"])
def test_radar_files_that_go_on(after):
    with pytest.raises(SourceError, match="x: .*not zeros"):
        parse_radar(radar(after=after), "x")


F = RADAR_DTYPE.names


@pytest.mark.parametrize(
    "values",
    [
        {"FIELDS": " ".join(F[:-1])},
        {"FIELDS": " ".join((*F, "snr"))},
        {"FIELDS": " ".join((F[1], F[0], *F[2:]))},
        {"SIZE": "4 4 4 1 4 4 4 4 4 4 1 1 1 1 1 1 1 1"},
        {"SIZE": "8 4 4 1 2 4 4 4 4 4 1 1 1 1 1 1 1 1"},
        {"TYPE": "F F F I I F F F F F U U U U U U U U"},
        {"TYPE": "I F F I I F F F F F I I I I I I I I"},
        {"COUNT": "2 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"},
        {"HEIGHT": 2},
        {"WIDTH": -3},
        {"WIDTH": "three"},
        {"WIDTH": 10**12, "POINTS": 10**12},
        {"WIDTH": 4},
        {"POINTS": 2},
    ],
)
def test_radar_headers_that_are_not_the_prescribed_one(values):
    with pytest.raises(SourceError, match="^x: "):
        parse_radar(radar(**values), "x")


def radar_with(points, change):
    """Bytes of a radar PCD whose rows were changed."""
    data = radar(points)
    start = data.index(b"DATA binary\n") + len(b"DATA binary\n")
    rows = np.frombuffer(data[start:-1], RADAR_DTYPE).copy()
    change(rows)
    return data[:start] + rows.tobytes() + b"\n"


@pytest.mark.parametrize("field", [n for n in F if RADAR_DTYPE[n].kind == "f"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_radar_numbers_that_are_none(field, value):
    for point in (0, 1):
        with pytest.raises(SourceError, match=f"radar point {point} has {field} = "):
            parse_radar(radar_with(3, lambda rows, n=point: rows[field].__setitem__(n, value)), "x")


@pytest.mark.parametrize(("points", "fields"), [(1, F[:1]), (1, ("rcs",)), (1, F[:3]), (3, F[:3])])
def test_a_radar_that_saw_nothing_is_an_empty_cloud(tmp_path, points, fields):
    """As the devkit has it."""
    from nuscenes.utils.data_classes import RadarPointCloud

    path = tmp_path / "a.pcd"
    path.write_bytes(radar_with(points, lambda rows: [rows[field].fill(np.nan) for field in fields]))
    assert parse_radar(path.read_bytes(), path).shape == RadarPointCloud.from_file(str(path)).points.shape == (18, 0)


def test_verify_takes_what_an_empty_radar_gave(copy, tmp_path):
    for path in copy.glob("samples/RADAR_FRONT/*"):
        path.write_bytes(radar_with(1, lambda rows: rows["x"].fill(np.nan)))
    assert run_here(copy, tmp_path / "out").exit_code == 0 and not verify(tmp_path / "out", copy)[0]


def test_real_files_are_taken(realframe):
    for path in sorted(realframe.glob("s*/LIDAR_TOP/*")):
        assert parse_lidar(path.read_bytes(), path).shape[1] > 10000
    for path in sorted(realframe.glob("s*/RADAR_*/*")):
        parse_radar(path.read_bytes(), path)
    for path in sorted(realframe.glob("samples/CAM_*/*"))[::5]:
        assert check_image(path.read_bytes(), path) == (900, 1600)
        damaged = path.read_bytes()
        with pytest.raises(SourceError):
            check_image(damaged[: len(damaged) // 2] + b"\xff\xd9", path)


def test_a_sweep_larger_than_a_reader_takes_is_refused():
    with pytest.raises(ValueError, match="at most"):
        encode_points(np.zeros((5, 3_500_000), np.float32))
