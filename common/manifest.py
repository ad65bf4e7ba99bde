"""The manifest of a split: its shards with their digests, how they were made, and the samples left out.

`<split>.manifest.json` lies beside the shards and is written after the last of them. It carries a digest of itself, as
indexes do, and is what a set of shards is checked against. shards/README.md is the specification.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property

from common.errors import InputError, ShardError
from common.record import SCHEMA_VERSION
from common.rig import Rig, parse_rig
from common.shard_index import check_schema, dump_sealed
from common.spelling import spelled

MAX_MANIFEST_BYTES = 64 << 20
SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class ManifestShard:
    """One shard of a manifest: name of the tar, keyframes, scene names in order, bytes and hex SHA-256 of the tar."""

    name: str
    keyframes: int
    scenes: list
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What one manifest says.

    Attributes:
        split, version: of the source data. options: of preprocessing. licence: of the data.
        shards: ManifestShard of each, in order. skipped: samples left out, {key, token, why} each.
        rig: that all the shards share; None where it was not said, as in schema 2.
    """

    split: str
    version: str
    shards: tuple
    options: dict = field(default_factory=dict)
    licence: str = ""
    skipped: list = field(default_factory=list)
    schema: int = SCHEMA_VERSION
    rig: Rig | None = None

    @property
    def keyframes(self):
        """Keyframes of all the shards."""
        return sum(shard.keyframes for shard in self.shards)

    @cached_property
    def by_name(self):
        """Name of the tar -> ManifestShard."""
        return {shard.name: shard for shard in self.shards}


def manifest_name(split):
    """File name of a split's manifest."""
    return f"{split}{SUFFIX}"


def dump_manifest(manifest):
    """Canonical bytes of a manifest."""
    body = {k: v for k, v in asdict(manifest).items() if k != "shards"}
    body["shards"] = [asdict(shard) for shard in manifest.shards]
    if manifest.rig is None:
        del body["rig"]
    body["keyframes"] = manifest.keyframes
    return dump_sealed(body)


def parse_manifest(raw, where):
    """Manifest from its bytes; `where` names it in messages.

    Raises ShardError for damage, or a schema that this version does not know.
    """
    try:
        body = json.loads(raw)
        check_schema(body["schema"], where)
        if bytes(raw) != dump_sealed(body):  # byte for byte, so that no flipped one goes unseen
            raise InputError("it was changed after it was written")
        shards = tuple(
            ManifestShard(s["name"], int(s["keyframes"]), list(s["scenes"]), int(s["bytes"]), str(s["sha256"]))
            for s in body["shards"]
        )
        manifest = Manifest(
            body["split"],
            body["version"],
            shards,
            body["options"],
            body.get("licence", ""),
            body.get("skipped", []),
            body["schema"],
            parse_rig(body["rig"]) if "rig" in body else None,
        )
        if body["keyframes"] != manifest.keyframes:
            raise InputError("its keyframes are not the sum of its shards'")
        if len(manifest.by_name) != len(shards) or any("/" in s.name or "\\" in s.name for s in shards):
            raise InputError("it names a shard twice, or one in another folder")
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"{where}: damaged manifest ({error}); copy it anew, or run {spelled('preprocess.run')} again"
        ) from None
    return manifest
