"""Names that programs outside this project call stay where they are, with these arguments."""

import importlib
import inspect

import pytest

NAMES = {
    "common.shard_set.find_shards": ("patterns", "split"),
    "common.manifest.Manifest": ("split", "version", "shards", "options", "licence", "skipped", "schema", "rig"),
    "common.manifest.ManifestShard": ("name", "keyframes", "scenes", "bytes", "sha256"),
    "common.manifest.dump_manifest": ("manifest",),
    "common.shard_index.build_index": ("tar",),
    "common.shard_index.dump_index": ("index",),
    "common.shard_index.parse_index": ("raw", "tar"),
    "common.keys.keyframe_key": (),
    "preprocess.plan.Planner": ("dataroot", "version", "options", "on_error", "keep_sequences", "say"),
    "preprocess.plan.Options": ("sweeps",),
    "preprocess.plan.read_splits": ("version", "split_file"),
    "preprocess.images.check_image": (),
    "train.data.sources.open_source": ("patterns", "config", "split"),
    "train.model.Needs": (),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_others_call_keep_their_arguments(name):
    module, _, own = name.rpartition(".")
    parameters = list(inspect.signature(getattr(importlib.import_module(module), own)).parameters)
    assert tuple(parameters[: len(NAMES[name])]) == NAMES[name]


def test_sources_are_configured_by_these_names():
    from train.data.sources import SourceConfig
    from train.data.sources.cache import LAYOUT

    SourceConfig(reader="auto", cache_dir="x", attempts=2, pause_s=0.1)
    assert LAYOUT == "v1"
