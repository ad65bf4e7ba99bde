"""The record of one keyframe: its members, and how each is packed into and out of bytes.

shards/README.md is the specification that this module follows. A record is a dict from member name to bytes;
the member names below are also the extensions in the tar. Nothing here is ever pickled, and every size read from a
shard is checked against a bound before memory is taken for it.
"""

import functools
import json
import struct
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import zstandard

SCHEMA_VERSION = 1
ZSTD_LEVEL = 3

SAMPLE = "sample.json"
CAMERAS_MEMBER = "cameras.npy.zst"
BOXES_MEMBER = "boxes.npy.zst"

# Bounds on what a reader allocates for one member, whatever the bytes claim.
MAX_POINTS = 4_000_000
MAX_ROWS = 64
MAX_ARRAY_BYTES = 64 << 20
MAX_JSON_BYTES = 16 << 20

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


class RecordError(ValueError):
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
            raise RecordError(f"{what}: claims {size} bytes, the limit is {limit}")
        return _local.decompressor.decompress(data, max_output_size=max(size, 1))
    except zstandard.ZstdError as error:
        raise RecordError(f"{what}: not a valid zstd frame ({error})") from None


def encode_json(value):
    """Canonical JSON bytes: sorted keys, no spaces, UTF-8, one trailing newline."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def decode_json(data, what=SAMPLE):
    """Parse a JSON member. Raises RecordError if it is too large or not a JSON object."""
    if len(data) > MAX_JSON_BYTES:
        raise RecordError(f"{what}: {len(data)} bytes of JSON, the limit is {MAX_JSON_BYTES}")
    try:
        value = json.loads(bytes(data))
    except ValueError as error:
        raise RecordError(f"{what}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise RecordError(f"{what}: not a JSON object")
    return value


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
        raise RecordError(f"{what}: not an .npy array")
    start = len(_MAGIC) + 2 + struct.unpack_from("<H", raw, len(_MAGIC))[0]
    body = len(raw) - start
    if body < 0 or body % dtype.itemsize or raw[:start] != _npy_header(dtype, body // dtype.itemsize):
        raise RecordError(f"{what}: its array is not of the type that schema {SCHEMA_VERSION} prescribes")
    return np.frombuffer(raw, dtype, offset=start)


_PLANES = struct.Struct("<II")  # fields, points
FEW_POINTS = 2000  # below, calling OpenCV costs more than it saves


def encode_points(points):
    """(fields, points) float32 as byte planes through zstd, lossless.

    Byte k of every value of a field is stored together, most similar bytes side by side: sign and exponent
    bytes compress well, mantissa bytes don't spoil them.
    """
    points = np.ascontiguousarray(points, dtype="<f4")
    fields, count = points.shape
    planes = points.view(np.uint8).reshape(fields, count, 4).transpose(0, 2, 1)
    return _compressor().compress(_PLANES.pack(fields, count) + planes.tobytes())


def decode_planes(data, what):
    """(fields, 4, points) uint8 byte planes of a `*.planes.zst` member. Raises RecordError on damage."""
    raw = _decompress(data, _PLANES.size + 4 * MAX_ROWS * MAX_POINTS, what)
    if len(raw) < _PLANES.size:
        raise RecordError(f"{what}: too short")
    fields, count = _PLANES.unpack_from(raw)
    if fields > MAX_ROWS or count > MAX_POINTS or len(raw) != _PLANES.size + 4 * fields * count:
        raise RecordError(f"{what}: claims {fields} x {count} values in {len(raw)} bytes")
    return np.frombuffer(raw, np.uint8, offset=_PLANES.size).reshape(fields, 4, count)


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


def decode_points(data, what):
    """(fields, points) float32 of a `*.planes.zst` member. Raises RecordError on damage."""
    planes = decode_planes(data, what)
    points = np.empty((planes.shape[0], planes.shape[2]), "<f4")
    merge_planes(planes, points)
    return points
