"""What is missing of a download, and what --on-error skip left out, told by scene in a bounded number of lines."""

import os
from pathlib import Path

from common.plain import one_line

MAX_LINES = 12


class Files:
    """Which files of a nuScenes folder are there. A folder is listed once: looking up a million files takes minutes."""

    def __init__(self, dataroot):
        self.dataroot, self._folders = Path(dataroot), {}

    def __contains__(self, filename):
        folder, _, name = filename.rpartition("/")
        if folder not in self._folders:
            try:
                self._folders[folder] = set(os.listdir(self.dataroot / folder))
            except OSError:
                self._folders[folder] = frozenset()
        return name in self._folders[folder]


def missing_files(dataroot, recipes):
    """(sample key, file) of the first missing file of each keyframe that lacks one, in the order of the recipes."""
    files = Files(dataroot)
    out = []
    for frame in (f for recipe in recipes for f in recipe.keyframes):
        sweeps = [*frame.lidar, *frame.radar]
        wanted = [c.filename for c in frame.cameras] + [f.filename for sweep in sweeps for f in sweep]
        missing = next((name for name in wanted if name not in files), None)
        if missing is not None:
            out.append((frame, missing))
    return out


def by_scene(skipped, kept, names):
    """Lines about the samples left out: how many of each scene, and why the first.

    Args:
        skipped: list of {key, token, why}. kept: key of every sample that was or would be written. names: scene's part of a
            key (see common.keys) -> the scene's own name.
    """
    why, lost, there = {}, {}, {}
    for entry in skipped:
        scene = entry["key"].rpartition("_")[0]
        why.setdefault(scene, entry["why"])
        lost[scene] = lost.get(scene, 0) + 1
    for key in kept:
        scene = key.rpartition("_")[0]
        there[scene] = there.get(scene, 0) + 1
    lines = [
        f"  {_shown(names[scene])}: {n} of {n + there.get(scene, 0)} samples left out, the first: {one_line(why[scene])}"
        for scene, n in lost.items()
    ]
    if len(lines) > MAX_LINES:
        rest = list(lost.values())[MAX_LINES - 1 :]
        lines[MAX_LINES - 1 :] = [f"  and {sum(rest)} samples of {len(rest)} more scenes; the manifest lists them all"]
    return lines


def _shown(name):
    """A scene's name as a line may have it."""
    return one_line(name, 100) if name else repr(name)
