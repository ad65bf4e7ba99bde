"""The manifests of what was preprocessed: see common.manifest."""

import json

from common.manifest import Manifest, ManifestShard, dump_manifest, manifest_name
from common.record import SCHEMA_VERSION
from common.rig import rig_of
from common.shard_index import parse_index
from preprocess.errors import SourceError
from preprocess.shard_writer import skipped_name


def write_manifests(store, recipes, options):
    """Write <split>.manifest.json of each split of the recipes, all of whose shards are finished or came out empty."""
    for split in dict.fromkeys(r.facts["split"] for r in recipes):
        shards, skipped = [], []
        facts = next(r.facts for r in recipes if r.facts["split"] == split)
        for name in (r.name for r in recipes if r.facts["split"] == split):
            skipped += read_skipped(store, name)
            if not store.exists(f"{name}.idx.json"):
                continue  # every sample of it was left out
            index = parse_index(store.read(f"{name}.idx.json"), store.path(f"{name}.tar"))
            scenes = [scene for scene, _, _ in index.scenes]
            shards.append(ManifestShard(f"{name}.tar", len(index.keys), scenes, index.tar_bytes, index.tar_sha256))
        told = {name: facts[name] for name in (*options.facts(), "sensors")}
        rig = rig_of(facts, SCHEMA_VERSION)
        manifest = Manifest(split, facts["version"], tuple(shards), told, rig.licence, skipped, rig=rig)
        store.write(manifest_name(split), dump_manifest(manifest))


def read_skipped(store, shard):
    """What --on-error skip left out of a finished shard: list of {key, token, why}. Raises SourceError for a damaged list."""
    name = skipped_name(shard)
    if not store.exists(name):
        return []
    try:
        skipped = json.loads(store.read(name))["skipped"]
        return [{part: entry[part] for part in ("key", "token", "why")} for entry in skipped]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{store.path(name)}: damaged list of what was left out ({error}); remove {shard}.idx.json and run "
            "preprocess.run again"
        ) from None
