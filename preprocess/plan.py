"""A data set -> one compact recipe per shard: everything that a worker needs to write it, but for the sensor files.

Recipes are small and plain (dataclasses of strings, numbers and float64 arrays), so that a worker never holds the
tables, and their digest says whether a shard on disk is the one that would be written now.
"""

import numpy as np

from common.keys import keyframe_key
from common.plain import one_line
from preprocess.datasets import dataset
from preprocess.errors import SourceError, sample_error
from preprocess.options import Options
from preprocess.recipe import ShardRecipe
from preprocess.splits import Part, read_split_file, scene_of

__all__ = ["DEFAULT_SHARDS", "Options", "Planner", "read_splits"]

DEFAULT_SHARDS = {"train": 100, "val": 20}


def read_splits(version, split_file=None):
    """split -> entries, see read_split_file: nuScenes' official splits, or those of a file. Raises SourceError."""
    return read_split_file(split_file) if split_file else dataset(Options.dataset).official_splits(version)


class Planner:
    """Reads what a data set has of tables once and makes recipes.

    Args:
        dataroot: its folder. version: of it. options: Options. on_error, keep_sequences: as in write_shard, for samples that
            the tables leave incomplete. say: called with a line of text now and then.
    Raises:
        SourceError: tables that are missing, damaged or, unless errors are skipped, inconsistent.
    """

    def __init__(self, dataroot, version, options, on_error="stop", keep_sequences=False, say=lambda text: None):
        self.data = dataset(options.dataset).Dataset(dataroot, version, options, on_error, say)
        self.version, self.options = self.data.version, options
        self.skips, self.keep_sequences = on_error == "skip", keep_sequences

    @property
    def scenes(self):
        """The data set's scenes."""
        return self.data.scenes

    @property
    def rig(self):
        """The Rig of the shards."""
        return self.data.rig

    @property
    def sensors(self):
        """Kinds of sensors that the shards hold."""
        return ["camera"] + ["lidar"] * bool(self.rig.lidars) + ["radar"] * bool(self.rig.radars)

    def check_splits(self, splits, complete, whole=True):
        """Names of the scenes that no split names, which are left out.

        Raises SourceError for such a scene unless errors are skipped or not all are wanted (`whole`) and, if `complete`, for a
        name that is no scene.
        """
        there = {scene["name"] for scene in self.scenes}
        named = {scene_of(entry) for entries in splits.values() for entry in entries}
        left = sorted(there - named)
        if left and whole and not self.skips:
            raise SourceError(f"scene {left[0]}: in no split of {self.version}; give --split-file, or --on-error skip")
        if complete and named - there:
            raise SourceError(f"scene {min(named - there)}: named by the split file, but not in the tables")
        return left

    def facts(self, split, entries=()):
        """What all samples of a split's shards share. entries: of the split; parts of scenes among them are told."""
        facts = {
            "version": self.version,
            "split": split,
            "sensors": self.sensors,
            "min_distance_m": self.data.min_distance_m,
            "rig": self.rig.as_dict(),
            **self.options.facts(),
        }
        if not self.data.annotated:
            facts["annotated"] = False
        parts = {entry.scene: [entry.first, entry.last] for entry in entries if isinstance(entry, Part)}
        if parts:
            facts["frames"] = parts
        return facts

    def shards(self, split, entries, count, on_scene=lambda: None):
        """Recipes of one split's shards: scenes, or parts of them, in the order of scene tokens (Simple-BEV's), spread evenly.

        entries: names of scenes, and Parts. on_scene: called after each scene.
        """
        wanted = {scene_of(entry): entry for entry in entries}
        scenes = sorted((s for s in self.scenes if s["name"] in wanted), key=lambda s: s["token"])
        count = min(count, len(scenes))
        facts = self.facts(split, entries)
        recipes = []
        for i, group in enumerate(np.array_split(np.arange(len(scenes)), count) if count else []):
            recipe = ShardRecipe(f"{split}-{i:03d}", facts)
            for j in group:
                entry = wanted[scenes[j]["name"]]
                part = entry if isinstance(entry, Part) else None
                recipe.keyframes += self.scene_keyframes(scenes[j], recipe.skipped, part)
                on_scene()
            recipes.append(recipe)
        return recipes

    def scene_keyframes(self, scene, skipped=None, part=None):
        """Recipes of a scene's keyframes, or of a Part's, in time order; what --on-error skip leaves out goes to `skipped`."""
        skipped = [] if skipped is None else skipped
        try:
            tokens = self.data.tokens(scene)
        except SourceError as error:
            if not self.skips:
                raise sample_error(str(error)) from None
            skipped += self._whole_scene(scene, one_line(error))
            return []
        keys = [keyframe_key(scene["name"], i) for i in range(len(tokens))]
        recipes, failed = [], []
        chosen = self._chosen(scene, tokens, part)
        for i in chosen:
            try:
                recipes.append(self.data.keyframe(scene, tokens, keys, i))
            except SourceError as error:
                if not self.skips:
                    raise sample_error(str(error)) from None
                failed.append({"key": keys[i], "token": tokens[i], "why": one_line(error)})
        if failed and self.keep_sequences:
            why = failed[0]["why"]
            failed = [{"key": keys[i], "token": tokens[i], "why": why} for i in chosen]
            recipes = []
        skipped += failed
        return recipes

    def _chosen(self, scene, tokens, part):
        """Places of the keyframes that a Part has. Raises SourceError where it has none."""
        if part is None:
            return range(len(tokens))
        numbers = self.data.numbers(scene, tokens)
        chosen = [i for i, number in enumerate(numbers) if part.first <= number <= part.last]
        if not chosen:
            there = f"{numbers[0]} to {numbers[-1]}"
            raise SourceError(
                f"scene {part.scene}: frames {part.first} to {part.last} hold no keyframe; there are {there}"
            )
        return chosen

    def _whole_scene(self, scene, why):
        """What to list of a scene whose samples cannot be put in order."""
        tokens = self.data.tokens_at_least(scene)
        return [{"key": keyframe_key(scene["name"], n), "token": token, "why": why} for n, token in enumerate(tokens)]
