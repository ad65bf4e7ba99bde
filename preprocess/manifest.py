"""The manifest of a split: source version, options, licence, every shard, and the samples left out."""

import json

from common.record import SCHEMA_VERSION, encode_json
from common.shard_index import parse_index
from preprocess.shard_writer import skipped_name

LICENCE = "nuScenes data: CC BY-NC-SA 4.0, https://www.nuscenes.org/terms-of-use; shards carry the same licence"


def write_manifests(store, recipes, version, options):
    """Write <split>.manifest.json of each split of the recipes, all of whose shards are finished or came out empty."""
    for split in dict.fromkeys(r.facts["split"] for r in recipes):
        shards, skipped = [], []
        facts = next(r.facts for r in recipes if r.facts["split"] == split)
        for name in (r.name for r in recipes if r.facts["split"] == split):
            skipped += read_skipped(store, name)
            if not store.exists(f"{name}.idx.json"):
                continue  # every sample of it was left out
            index = parse_index(store.read(f"{name}.idx.json"), store.path(f"{name}.tar"))
            shards.append(
                {
                    "name": f"{name}.tar",
                    "keyframes": len(index.keys),
                    "scenes": [scene for scene, _, _ in index.scenes],
                    "bytes": index.tar_bytes,
                    "sha256": index.tar_sha256,
                }
            )
        manifest = {
            "schema": SCHEMA_VERSION,
            "version": version,
            "split": split,
            "options": {name: facts[name] for name in (*options.facts(), "sensors")},
            "licence": LICENCE,
            "keyframes": sum(s["keyframes"] for s in shards),
            "shards": shards,
            "skipped": skipped,
        }
        store.write(f"{split}.manifest.json", encode_json(manifest))


def read_skipped(store, shard):
    """What --on-error skip left out of a finished shard: list of {key, token, why}."""
    name = skipped_name(shard)
    return json.loads(store.read(name))["skipped"] if store.exists(name) else []
