"""The index beside each shard: where every member of every sample lies in the tar, and how to check it.

`train-000.tar` has `train-000.idx.json`. It is written last and atomically, so its presence marks a finished shard.
shards/README.md is the specification.
"""

import base64
import hashlib
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common import addresses
from common.errors import InputError, Missing, ShardError
from common.record import SAMPLE, SCHEMA_VERSION, RecordError, parse_sample, schema_problem
from common.rig import rig_of
from common.spelling import spelled

MAX_INDEX_BYTES = 256 << 20
ABSENT = np.uint32(0xFFFFFFFF)  # size of a member that a sample does not have


@dataclass
class ShardIndex:
    """Contents of one index file.

    Attributes:
        tar: path of the tar, or its address as messages may show it.
        keys: n sample keys in tar order.
        tokens: n sample tokens.
        scenes: (name, first row, number of rows) of each scene, in tar order.
        members: m member names.
        offsets: (n, m) int64, first byte of each member's data in the tar.
        sizes: (n, m) uint32 bytes; ABSENT where the sample lacks the member.
        crc32: (n, m) uint32 checksum of each member.
        tar_bytes, tar_sha256: of the whole tar.
        facts: JSON object shared by the samples: version, split, rig, sweeps, options.
        schema: of the shard and of this index.
        rig: the Rig of the facts.
    """

    tar: Path
    keys: list
    tokens: list
    scenes: list
    members: list
    offsets: np.ndarray
    sizes: np.ndarray
    crc32: np.ndarray
    tar_bytes: int
    tar_sha256: str
    facts: dict = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    @property
    def rig(self):
        return rig_of(self.facts, self.schema)


def _pack(array, dtype):
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _unpack(text, dtype, shape):
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).reshape(shape)


def dump_index(index):
    """Canonical bytes of an index: one JSON object whose `body_sha256` covers everything else in it."""
    body = {
        "schema": index.schema,
        "tar": Path(index.tar).name,
        "tar_bytes": index.tar_bytes,
        "tar_sha256": index.tar_sha256,
        "facts": index.facts,
        "members": index.members,
        "keys": index.keys,
        "tokens": index.tokens,
        "scenes": index.scenes,
        "offsets": _pack(index.offsets, "<i8"),
        "sizes": _pack(index.sizes, "<u4"),
        "crc32": _pack(index.crc32, "<u4"),
    }
    return dump_sealed(body)


def dump_sealed(body):
    """Canonical JSON bytes of an object with `body_sha256` over everything else in it, as indexes and manifests are."""
    return (
        json.dumps({**body, "body_sha256": _body_digest(body)}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    )


def _body_digest(body):
    """Hex SHA-256 of a JSON object without its own `body_sha256`."""
    rest = {k: v for k, v in body.items() if k != "body_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_schema(schema, where):
    """Raise ShardError for a schema that this version does not read."""
    problem = schema_problem(schema)
    if problem:
        raise ShardError(f"{where}: {problem}")


def open_index(store, name, verify=False, of_layer=False):
    """Read the index of the shard `name` in a store, or of a tar of a layer: (ShardIndex, Stat of the tar).

    Args:
        store: the Store of its folder. name: of the tar; its index lies beside it.
        verify: also check that not one byte of the index differs from what was written.
    Raises:
        ShardError: no tar, no index, a damaged index, a schema this version does not know, or a tar of another size; a layer's
            tar where a shard is wanted.
    """
    tar = store.path(name)
    try:
        stat = store.stat(name)
    except Missing:
        raise Missing(f"{tar}: no such shard; copy it or run {spelled('preprocess.run')} again") from None
    index_name = addresses.index_address(name)
    try:
        raw = store.read(index_name, MAX_INDEX_BYTES)
    except Missing:
        raise ShardError(
            f"{store.path(index_name)}: the index is missing; rebuild it with {spelled('preprocess.index')} {tar}"
        ) from None
    index = parse_index(raw, tar, verify)
    if "layer" in index.facts and not of_layer:
        raise ShardError(f"{tar}: is of layer {index.facts['layer']}; name the shards that it lies beside")
    if stat.size != index.tar_bytes:
        raise ShardError(f"{tar}: {stat.size} bytes, its index says {index.tar_bytes}; copy both anew, or make it anew")
    return index, stat


def parse_index(raw, tar, verify=False):
    """ShardIndex from the bytes of the index that belongs to `tar`, which is not looked at. See open_index."""
    try:
        body = json.loads(raw)
        check_schema(body["schema"], tar)
        index = _parse(tar, body)
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{tar}: damaged index ({error}); rebuild it with {spelled('preprocess.index')} {tar}"
        ) from None
    if verify and raw != dump_index(index):
        raise ShardError(
            f"{tar}: its index was changed after it was written; rebuild it with {spelled('preprocess.index')} {tar}"
        )
    return index


def _parse(tar, body):
    shape = (len(body["keys"]), len(body["members"]))
    index = ShardIndex(
        tar=tar,
        keys=body["keys"],
        tokens=body["tokens"],
        scenes=[list(scene) for scene in body["scenes"]],
        members=body["members"],
        offsets=_unpack(body["offsets"], "<i8", shape),
        sizes=_unpack(body["sizes"], "<u4", shape),
        crc32=_unpack(body["crc32"], "<u4", shape),
        tar_bytes=body["tar_bytes"],
        tar_sha256=body["tar_sha256"],
        facts=body["facts"],
        schema=body["schema"],
    )
    if len(index.tokens) != shape[0] or sum(rows for _, _, rows in index.scenes) != shape[0]:
        raise InputError("it has not as many tokens, or keyframes of scenes, as keys")
    present = index.sizes != ABSENT
    if ((index.offsets < 0) | (index.offsets + index.sizes > index.tar_bytes))[present].any():
        raise InputError("it places a member beyond the end of the tar")
    if "layer" not in index.facts:  # a layer's rig is its shard's
        rig_of(index.facts, index.schema)  # raises RigError, a ValueError, for one that cannot be
    return index


def build_index(tar):
    """Compute the index of a shard from nothing but the tar: what preprocessing does last and `preprocess.index` again.

    Raises ShardError if the tar is damaged or holds another schema.
    """
    tar = Path(tar)
    rows, tokens, scenes, first = {}, [], [], None
    try:
        with tarfile.open(tar, "r:") as archive:  # offsets into a compressed one would be of no use
            for entry in archive:
                key, _, member = entry.name.partition(".")
                file = archive.extractfile(entry)
                data = file.read() if file else b""
                if len(data) != entry.size:
                    raise ShardError(f"{tar}: cut short in {entry.name}; copy it anew, or make it anew")
                rows.setdefault(key, {})[member] = (entry.offset_data, entry.size, zlib.crc32(data))
                if member == SAMPLE:
                    sample = parse_sample(data, f"{tar}: {entry.name}")
                    first = first or sample
                    tokens.append(sample["token"])
                    if not scenes or scenes[-1][0] != sample["scene"]["name"]:
                        scenes.append([sample["scene"]["name"], len(tokens) - 1, 0])
                    scenes[-1][2] += 1
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"{tar}: not a readable tar ({error}); copy it anew, or make it anew") from None
    except RecordError as error:
        raise ShardError(f"{error}; make it anew") from None
    if first is None or len(tokens) != len(rows):
        raise ShardError(
            f"{tar}: not a shard of this project, a sample in it has no {SAMPLE}; make it with {spelled('preprocess.run')}"
        )
    return index_of(tar, rows, tokens, scenes, tar.stat().st_size, file_sha256(tar), first["facts"], first["schema"])


def index_of(tar, rows, tokens, scenes, tar_bytes, tar_sha256, facts, schema=SCHEMA_VERSION):
    """ShardIndex from what was met in tar order.

    Args:
        rows: key -> {member name: (offset, size, crc32)}. tokens, scenes, tar_bytes, tar_sha256, facts, schema:
            see ShardIndex.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    absent = (0, ABSENT, 0)
    values = np.array([[row.get(name, absent) for name in names] for row in rows.values()], np.int64)
    values = values.reshape(len(rows), len(names), 3)
    return ShardIndex(
        tar=tar,
        keys=list(rows),
        tokens=tokens,
        scenes=scenes,
        members=names,
        offsets=values[..., 0],
        sizes=values[..., 1].astype(np.uint32),
        crc32=values[..., 2].astype(np.uint32),
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        facts=facts,
        schema=schema,
    )


def file_sha256(path):
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
