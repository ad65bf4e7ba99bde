"""Layers: members added beside finished shards, in tars of their own that never touch these.

`layers/NAME/train-000.tar`, with an index and a manifest as shards have them, belongs to the `train-000.tar` two folders up.
Its keys are a subset of that shard's, in its order. shards/README.md is the specification.
"""

import os
import re
import tarfile
import zlib
from dataclasses import dataclass, field

import numpy as np

from common import addresses
from common.errors import InputError, ShardError
from common.record import RecordError, decode_json, encode_json
from common.shard_index import file_sha256, index_of

FOLDER = "layers"
HEADER = "__layer__"  # the first member of a layer's tar; webdataset leaves out what is named so
MISSING = ("error", "empty")  # what a reader makes of a keyframe that a layer lacks
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class LayerFacts:
    """What a layer's tar says of itself, in its header and its index.

    layer: name. base_tar, base_sha256: file name and hex SHA-256 of the shard that it belongs to. missing: "error" where
    every keyframe has it or a reader that wants it must stop, "empty" where keyframes may do without. options: whatever it was
    made with. made_with: hex digest of how it was made, by which a later run knows that it may be kept.

    Raises ValueError: a name that is no folder's everywhere, or an unknown `missing`.
    """

    layer: str
    base_tar: str
    base_sha256: str
    missing: str = "error"
    options: dict = field(default_factory=dict)
    made_with: str = ""

    def __post_init__(self):
        check_name(self.layer)
        if self.missing not in MISSING:
            raise InputError(f"missing {self.missing!r}; it is one of {', '.join(MISSING)}")

    def as_dict(self):
        """What an index has as its facts."""
        return dict(vars(self))

    def dump(self):
        """Bytes of the header."""
        return encode_json(self.as_dict())

    @classmethod
    def parse(cls, facts, where):
        """LayerFacts of an index's facts, or of a header's bytes. Raises ShardError, which names `where`."""
        try:
            if isinstance(facts, (bytes, memoryview)):
                facts = decode_json(facts, HEADER)
            return cls(**{name: facts[name] for name in cls.__dataclass_fields__})
        except (RecordError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{where}: its index is no layer's ({error}); make the layer anew") from None


def check_name(name):
    """Raise ValueError for a name that no layer can have."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"layer {name!r}: a name has up to 64 letters, digits, - and _")


def layer_folder(folder, name):
    """Address of a layer's folder, beside the shards in `folder`."""
    check_name(name)
    return addresses.join(addresses.join(folder, FOLDER) if folder else FOLDER, name)


def rows_in(index, base, facts, where):
    """(n,) int64: by row of the shard `base`, the row of a layer's index, or -1.

    Raises ShardError where the layer is another's: another digest, keys that the shard lacks, or keys in another order.
    """
    _check_base(facts, base, where)
    place = {key: row for row, key in enumerate(base.keys)}
    rows = [place.get(key, -1) for key in index.keys]
    if any(row < 0 for row in rows) or any(a >= b for a, b in zip(rows, rows[1:], strict=False)):
        raise ShardError(f"{where}: its keys are not those of {facts.base_tar}, in its order; make the layer anew")
    out = np.full(len(base.keys), -1, np.int64)
    out[rows] = np.arange(len(rows))
    return out


def _check_base(facts, base, where):
    if facts.base_sha256 != base.tar_sha256:
        raise ShardError(
            f"{where}: belongs to another {facts.base_tar} than the one there (SHA-256 {facts.base_sha256[:12]}…, not "
            f"{base.tar_sha256[:12]}…); make the layer anew, or copy the shards that it was made for"
        )


def base_folder(folder):
    """Address of the folder of the shards that a layer's folder lies beside; None for a folder that is no layer's."""
    parent, name = addresses.split(str(folder).rstrip("/") if "?" not in str(folder) else folder)
    base, layers = addresses.split(parent)
    return base if layers == FOLDER and _NAME.fullmatch(name) else None


def is_layer(tar):
    """Whether a local tar is one of a layer. Raises OSError."""
    try:
        with tarfile.open(tar, "r:") as archive:
            first = archive.next()
            return first is not None and first.name == HEADER
    except tarfile.TarError:
        return False


def build_layer_index(tar, base):
    """Compute the index of a local tar of a layer from the tar and the ShardIndex of its shard.

    Raises ShardError: a damaged tar, or one of another shard.
    """
    scene_of = {key: scene for scene, first, rows in base.scenes for key in base.keys[first : first + rows]}
    token_of = dict(zip(base.keys, base.tokens, strict=True))
    rows, scenes, facts = {}, [], None
    try:
        with tarfile.open(tar, "r:") as archive:
            for entry in archive:
                data = archive.extractfile(entry).read()
                if facts is None:
                    facts = LayerFacts.parse(data, tar)
                    _check_base(facts, base, tar)
                    continue
                key, _, member = entry.name.partition(".")
                if key not in scene_of:
                    raise ShardError(f"{tar}: {key} is no sample of {facts.base_tar}; make the layer anew")
                if key not in rows:
                    if not scenes or scenes[-1][0] != scene_of[key]:
                        scenes.append([scene_of[key], len(rows), 0])
                    scenes[-1][2] += 1
                rows.setdefault(key, {})[member] = (entry.offset_data, entry.size, zlib.crc32(data))
    except (tarfile.TarError, EOFError, AttributeError) as error:
        raise ShardError(f"{tar}: not a readable tar ({error}); make the layer anew") from None
    if facts is None:
        raise ShardError(f"{tar}: not a layer's tar, it is empty; make the layer anew")
    tokens = [token_of[key] for key in rows]
    size = os.path.getsize(tar)
    index = index_of(tar, rows, tokens, scenes, size, file_sha256(tar), facts.as_dict())
    rows_in(index, base, facts, tar)
    return index


def layers_beside(store):
    """Names of the layers in a folder of shards."""
    return [name.rstrip("/") for name in store.list(FOLDER) if name.endswith("/") and _NAME.fullmatch(name.rstrip("/"))]
