"""The record of one keyframe: its members, and how each is packed into and out of bytes.

shards/README.md is the specification that this module follows. A record is a dict from member name to bytes;
the member names below are also the extensions in the tar. Nothing here is ever pickled, and every size read from a
shard is checked against a bound before memory is taken for it.
"""

import functools
import io
import json
import struct
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import zstandard

from common.conditions import conditions_of
from common.errors import InputError
from common.rig import RigError, rig_of
from common.spelling import spelled

SCHEMA_VERSION = 3  # what is written
READ_SCHEMAS = (2, 3)  # what is read: 2 had neither a rig nor conditions
ZSTD_LEVEL = 3

SAMPLE = "sample.json"
CAMERAS_MEMBER = "cameras.npy.zst"
BOXES_MEMBER = "boxes.npy.zst"

# Bounds on what a reader allocates for one member, whatever the bytes claim.
MAX_POINTS = 4_000_000
MAX_FIELDS = 64
MAX_PLANES_BYTES = 64 << 20
MAX_ARRAY_BYTES = 64 << 20
MAX_JSON_BYTES = 4 << 20
MAX_HEADER_CHARACTERS = 4096  # of an .npy array
MAX_IMAGE_SIDE = 65_500
MAX_IMAGE_PIXELS = 1 << 26
# Ego frames are metres around the car; global coordinates may be a map projection's.
MAX_EGO_M = 1e6
MAX_GLOBAL_M = 1e9

CAMERA_DTYPE = np.dtype(
    [
        ("intrinsics", "<f8", (3, 3)),
        ("ego_T_cam", "<f8", (4, 4)),
        ("global_T_ego", "<f8", (4, 4)),
        ("timestamp_us", "<i8"),
        ("height", "<i4"),
        ("width", "<i4"),
    ]
)
MOST_VISIBLE = 4  # of a box's visibility: 1 is seen by up to 40 %, 4 by 80 to 100 %; 0 is not annotated
BOX_DTYPE = np.dtype(
    [
        ("global_xyz", "<f8", (3,)),
        ("wlh", "<f8", (3,)),
        ("global_quat_wxyz", "<f8", (4,)),
        ("ego_lrt", "<f8", (19,)),
        ("velocity", "<f8", (3,)),
        ("visibility", "<i4"),
        ("num_lidar_pts", "<i4"),
        ("num_radar_pts", "<i4"),
    ]
)


class RecordError(InputError):
    """A member whose bytes do not decode; the message says which and why."""


@dataclass(frozen=True)
class PointMember:
    """Name of the member that holds sweep `sweep` (0 = keyframe) of "lidar" or "radar"."""

    sensor: str
    sweep: int

    def __str__(self):
        return f"{self.sensor}.{self.sweep:02d}.planes.zst"


def lidar_member(sweep):
    return str(PointMember("lidar", sweep))


def radar_member(sweep):
    return str(PointMember("radar", sweep))


def image_member(camera):
    return f"{camera}.jpg"


def member_order(cameras, lidar_sweeps, radar_sweeps):
    """Member names of a record in tar order: small ones first, then images, then lidar.

    A camera-only reader so fetches one contiguous range and never touches a byte of lidar.
    """
    return (
        [SAMPLE, CAMERAS_MEMBER, BOXES_MEMBER]
        + [radar_member(k) for k in range(radar_sweeps)]
        + [image_member(c) for c in cameras]
        + [lidar_member(k) for k in range(lidar_sweeps)]
    )


# zstd contexts must not be shared between threads, and making one costs more than a small frame.
_local = threading.local()


def _compressor():
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
    return _local.compressor


def _decompress(data, limit, what):
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit:
            raise RecordError(f"{what}: damaged, its zstd header says {size} bytes, and at most {limit} can be")
        return _local.decompressor.decompress(data, max_output_size=max(size, 1))
    except zstandard.ZstdError as error:
        raise RecordError(f"{what}: damaged, it does not unpack (zstd: {error})") from None


def encode_json(value):
    """Canonical JSON bytes: sorted keys, no spaces, UTF-8, one trailing newline."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def decode_json(data, what=SAMPLE):
    """Parse a JSON member. Raises RecordError if it is too large or not a JSON object."""
    if len(data) > MAX_JSON_BYTES:
        raise RecordError(f"{what}: {len(data)} bytes of JSON, and at most {MAX_JSON_BYTES} can be")
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{what}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecordError(f"{what}: not a JSON object")
    return value


def schema_problem(schema):
    """Why shards of a schema are not read, and what to do about it, as a clause; None for one that is."""
    if type(schema) is int and schema in READ_SCHEMAS:
        return None
    known = " and ".join(map(str, READ_SCHEMAS))
    if type(schema) is int and schema > SCHEMA_VERSION:
        return f"schema {schema}, this version reads {known}; use a later version of bevshards"
    return f"schema {schema!r:.60}, this version reads {known}; make the shards anew with {spelled('preprocess.run')}"


def parse_sample(data, what=SAMPLE):
    """The sample.json member as a dict, after checking that everything the specification puts into it is there.

    Of schema 2, `conditions` are read from the scene's description.

    Raises RecordError, naming the field, for another schema, a missing or wrongly typed field, a pose that is not a finite
    (4, 4) transform, sensors that the rig does not have, sweeps without a finite lag, columns of boxes that differ in length.
    """
    sample = decode_json(data, what)
    try:
        problem = schema_problem(sample["schema"])
        if problem:
            raise RecordError(f"{what}: {problem}")
        _want(_are((sample["token"], sample["prev"], sample["next"]), str), what, "token, prev, next")
        _want(_is_time(sample["timestamp_us"]), what, "timestamp_us")
        _want(type(sample["index"]) is int and sample["index"] >= 0, what, "index")
        _want(_are((sample["scene"]["name"], sample["scene"]["token"]), str), what, "scene")
        _want(type(sample["scene"]["nbr_samples"]) is int, what, "scene: nbr_samples")
        _want(_are((sample["scene"]["description"], sample["log"]["location"]), str), what, "description, location")
        _want(isinstance(sample["facts"], dict), what, "facts")
        _want(_is_pose(sample["global_T_ego"]), what, "global_T_ego")
        rig = rig_of(sample["facts"], sample["schema"])
        _check_sensors(sample, rig, what)
        _check_boxes(sample["boxes"], what)
        if sample["schema"] == 2:
            sample["conditions"] = conditions_of(sample["scene"]["description"])
        known = {condition.name: condition.values for condition in rig.conditions}
        stated = sample["conditions"].items()
        _want(all(value in known[name] for name, value in stated), what, "conditions")
    except RigError as error:
        raise RecordError(f"{what}: {error}") from None
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise RecordError(f"{what}: lacks a field or has one of another type ({error})") from None
    return sample


def lidar_files(sample):
    """Of a parsed sample.json: for each lidar member, the list of its lidars' files, in the order of the rig."""
    return [[files] if isinstance(files, dict) else files for files in sample["lidar"]]


def _check_sensors(sample, rig, what):
    channels = [camera["channel"] for camera in sample["cameras"]]
    _want(channels and _are(channels, str) and set(channels) <= set(rig.camera_names), what, "cameras")
    _want(len(set(channels)) == len(channels), what, "cameras")
    several = len(rig.lidars) > 1
    for name, sweeps, lists, known in (
        ("lidar", sample["lidar"], several, rig.lidars),
        ("radar", sample["radar"], True, rig.radar_names),
    ):
        _want(isinstance(sweeps, list) and _are(sweeps, list if lists else dict), what, name)
        for files in sweeps if lists else [sweeps]:
            _want(all(map(_is_sweep, files)) and {file["channel"] for file in files} <= set(known), what, name)


def _want(true, what, field):
    if not true:
        raise RecordError(f"{what}: {field} is not what shards/README.md says of it")


def _are(values, kind):
    return all(type(value) is kind for value in values)


def _is_time(value):
    return type(value) is int and 0 <= value < 1 << 62


def _is_number(value, limit):
    return type(value) in (int, float) and -limit < value < limit  # False for NaN, and safe for integers of any size


def _is_pose(rows):
    flat = [value for row in rows for value in row] if isinstance(rows, list) and _are(rows, list) else []
    square = len(rows) == 4 and all(len(row) == 4 for row in rows) if flat else False
    return square and all(_is_number(v, MAX_GLOBAL_M) for v in flat) and flat[12:] == [0, 0, 0, 1]


def _is_sweep(sweep):
    texts = (sweep["channel"], sweep["token"], sweep["filename"])
    return _are(texts, str) and _is_time(sweep["timestamp_us"]) and _is_number(sweep["lag_s"], 1e6)


def _check_boxes(boxes, what):
    columns = [boxes[name] for name in ("token", "instance", "category", "attributes")]
    _want(_are(columns, list) and len(set(map(len, columns))) == 1, what, "boxes: the length of its columns")
    _want(all(_are(column, str) for column in columns[:3]), what, "boxes")
    _want(_are(columns[3], list) and all(_are(names, str) for names in columns[3]), what, "boxes: attributes")


_MAGIC = b"\x93NUMPY\x01\x00"


@functools.lru_cache(maxsize=4096)
def _npy_header(dtype, count):
    """Bytes of an NPY 1.0 header for a C-ordered vector of `count` rows (numpy's NEP 1 layout)."""
    descr = np.lib.format.dtype_to_descr(dtype)
    text = repr({"descr": descr, "fortran_order": False, "shape": (count,)})
    length = -(-(len(_MAGIC) + 2 + len(text) + 1) // 64) * 64 - len(_MAGIC) - 2
    return _MAGIC + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


def encode_rows(rows):
    """A 1-D structured array as a zstd-compressed .npy."""
    rows = np.ascontiguousarray(rows)
    return _compressor().compress(_npy_header(rows.dtype, len(rows)) + rows.tobytes())


def decode_rows(data, dtype, what):
    """The (n,) structured array of a `*.npy.zst` member.

    numpy's own reader evaluates the header on every call, 0.1 ms with the interpreter locked; this one compares it with
    the header that the schema prescribes. Raises RecordError on any other header or length.
    """
    raw = _decompress(data, MAX_ARRAY_BYTES, what)
    if raw[: len(_MAGIC)] != _MAGIC or len(raw) < len(_MAGIC) + 2:
        raise RecordError(f"{what}: damaged, it does not begin as an .npy array does")
    start = len(_MAGIC) + 2 + struct.unpack_from("<H", raw, len(_MAGIC))[0]
    body = len(raw) - start
    if body < 0 or body % dtype.itemsize or raw[:start] != _npy_header(dtype, body // dtype.itemsize):
        raise RecordError(f"{what}: its rows have other columns than shards/README.md says, or are cut short")
    return np.frombuffer(raw, dtype, offset=start)


def encode_array(array):
    """An array of numbers of any shape, or of rows with several fields of them, as a zstd-compressed .npy: what a layer's
    `*.npy.zst` member is."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return _compressor().compress(out.getvalue())


def decode_array(data, what):
    """The array of a layer's `*.npy.zst` member, which may have fields. Raises RecordError for damage, and for anything but
    numbers of up to 8 bytes."""
    raw = _decompress(data, MAX_ARRAY_BYTES, what)
    try:
        out = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False, max_header_size=MAX_HEADER_CHARACTERS)
        fields = [out.dtype] if out.dtype.names is None else [out.dtype[name].base for name in out.dtype.names]
        if not out.dtype.itemsize or not all(one.kind in "biuf" and one.itemsize <= 8 for one in fields):
            raise InputError(f"its type is {out.dtype}")
        return out.astype(out.dtype.newbyteorder("="), copy=False)
    except (ValueError, TypeError, SyntaxError, EOFError, MemoryError) as error:
        raise RecordError(f"{what}: not an .npy array of numbers ({str(error)[:100]})") from None


def decode_member(data, member):
    """A layer's member as what its name says: the array of `*.npy.zst`, the points of `*.planes.zst`, else bytes.

    Raises RecordError for damage.
    """
    if member.endswith(".npy.zst"):
        return decode_array(data, member)
    return decode_points(data, member) if member.endswith(".planes.zst") else bytes(data)


def decode_cameras(data, sample):
    """(n,) array of CAMERA_DTYPE, one row per camera of the parsed sample.json. Raises RecordError for rows that cannot be."""
    rows = decode_rows(data, CAMERA_DTYPE, CAMERAS_MEMBER)
    if len(rows) != len(sample["cameras"]):
        raise RecordError(f"{CAMERAS_MEMBER}: {len(rows)} rows, {SAMPLE} lists {len(sample['cameras'])} cameras")
    sides = rows["height"].astype(np.int64), rows["width"].astype(np.int64)
    if not all(((1 <= side) & (side <= MAX_IMAGE_SIDE)).all() for side in sides):
        raise RecordError(f"{CAMERAS_MEMBER}: an image size under 1 or over {MAX_IMAGE_SIDE}")
    if (sides[0] * sides[1]).max(initial=0) > MAX_IMAGE_PIXELS:
        raise RecordError(f"{CAMERAS_MEMBER}: an image of more than {MAX_IMAGE_PIXELS} pixels")
    for name, limit in (("intrinsics", MAX_EGO_M), ("ego_T_cam", MAX_EGO_M), ("global_T_ego", MAX_GLOBAL_M)):
        if not (np.abs(rows[name]) < limit).all():
            for values, camera in zip(rows[name], sample["cameras"], strict=True):
                _check_range(values, limit, f"{CAMERAS_MEMBER}: {name} of {camera['channel']}")
    return rows


def decode_boxes(data, sample):
    """(n,) array of BOX_DTYPE, one row per box of the parsed sample.json. Raises RecordError for rows that cannot be."""
    rows = decode_rows(data, BOX_DTYPE, BOXES_MEMBER)
    if len(rows) != len(sample["boxes"]["category"]):
        raise RecordError(f"{BOXES_MEMBER}: {len(rows)} rows, {SAMPLE} lists {len(sample['boxes']['category'])} boxes")
    for name, limit in (("ego_lrt", MAX_EGO_M), ("wlh", MAX_EGO_M), ("global_xyz", MAX_GLOBAL_M)):
        _check_range(rows[name], limit, f"{BOXES_MEMBER}: {name}")
    _check_range(rows["global_quat_wxyz"], MAX_EGO_M, f"{BOXES_MEMBER}: global_quat_wxyz")
    if np.isinf(rows["velocity"]).any():
        raise RecordError(f"{BOXES_MEMBER}: velocity is infinite")
    return rows


def _check_range(values, limit, what):
    if not (np.abs(values) < limit).all():  # False for NaN too
        raise RecordError(f"{what} has a number that is not finite or over {limit:g}")


_PLANES = struct.Struct("<II")  # fields, points
FEW_POINTS = 2000  # below, calling OpenCV costs more than it saves


def encode_points(points):
    """(fields, points) float32 as byte planes through zstd, lossless.

    Byte k of every value of a field is stored together, most similar bytes side by side: sign and exponent
    bytes compress well, mantissa bytes don't spoil them. Raises RecordError for more than a reader would take.
    """
    points = np.ascontiguousarray(points, dtype="<f4")
    fields, count = points.shape
    if points.nbytes > MAX_PLANES_BYTES or count > MAX_POINTS:
        raise RecordError(f"{count} points of {fields} fields; a member holds at most {MAX_PLANES_BYTES} bytes")
    raw = np.empty(_PLANES.size + points.nbytes, np.uint8)
    raw[: _PLANES.size] = np.frombuffer(_PLANES.pack(fields, count), np.uint8)
    planes = raw[_PLANES.size :].reshape(fields, 4, count)
    values = points.view(np.uint8).reshape(fields, count, 4)
    if count < FEW_POINTS:
        planes[:] = values.transpose(0, 2, 1)
    else:
        # As in merge_planes, the other way: NumPy's strided copy would take longer than the compression.
        for four, value in zip(planes, values, strict=True):
            cv2.split(value.reshape(1, count, 4), list(four.reshape(4, 1, count)))
    return _compressor().compress(raw)


def decode_planes(data, what, fields=None):
    """(fields, 4, points) uint8 byte planes of a `*.planes.zst` member.

    Raises RecordError on damage, for another number of fields than `fields`, and for numbers that are not finite.
    """
    raw = _decompress(data, _PLANES.size + MAX_PLANES_BYTES, what)
    if len(raw) < _PLANES.size:
        raise RecordError(f"{what}: damaged, its {len(raw)} bytes are too few to say how many points it has")
    found, count = _PLANES.unpack_from(raw)
    if found > MAX_FIELDS or count > MAX_POINTS or len(raw) != _PLANES.size + 4 * found * count:
        raise RecordError(
            f"{what}: damaged, {len(raw)} bytes are not the {found} x {count} values that its header says"
        )
    if fields is not None and found != fields:
        raise RecordError(f"{what}: has {found} fields per point, the rig says {fields}")
    planes = np.frombuffer(raw, np.uint8, offset=_PLANES.size).reshape(found, 4, count)
    # The last byte of a float32 holds sign and high exponent bits: all ones means infinite, NaN, or over 1.7e38.
    if planes.size and (planes[:, 3] & 0x7F).max() == 0x7F:
        raise RecordError(f"{what}: holds a number that is not finite")
    return planes


def merge_planes(planes, out):
    """Byte planes into float32 `out` (fields, points), whose rows are contiguous."""
    fields, _, count = planes.shape
    values = out.view(np.uint8).reshape(fields, count, 4)
    if count < FEW_POINTS:
        for byte in range(4):
            values[:, :, byte] = planes[:, byte]
    else:
        # An image of one row and four channels a field: OpenCV's merge is vectorised, NumPy's strided copies are not.
        for four, value in zip(planes, values, strict=True):
            cv2.merge(list(four.reshape(4, 1, count)), value.reshape(1, count, 4))


def decode_points(data, what, fields=None):
    """(fields, points) float32 of a `*.planes.zst` member. Raises RecordError as decode_planes does."""
    planes = decode_planes(data, what, fields)
    points = np.empty((planes.shape[0], planes.shape[2]), "<f4")
    merge_planes(planes, points)
    return points
