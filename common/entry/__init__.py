"""The package `bevshards`: the command of that name, and the way to train, common and preprocess from any folder.

It is installed under a name that nobody else has, since the folders' own names are common ones: a train.py of the user's would
hide `train`. Importing it puts the checkout first on the path, for this process and those that it starts.
"""

import importlib.util
import os
import platform
import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parents[1] if _HERE.name == "entry" else _HERE.parent  # the checkout, or where a wheel was unpacked


def _first_on_the_path():
    """This checkout before all else, and the current folder after all else: networks of the user's own lie there."""
    root, here = str(ROOT), os.getcwd()
    sys.path[:] = [root, *(p for p in sys.path if p not in (root, "", here)), here]


# What programs of one's own write shards with: loaded when it is asked for, so that the command starts at once.
_OF_WRITER = ("ShardWriter", "CameraImage", "PointCloud", "Box")
_OF_RIG = ("Rig", "Camera", "Distortion", "Radar", "Field", "Condition")


def __getattr__(name):
    if name in _OF_WRITER:
        from preprocess import (
            writer,  # the one module of another folder that is named here; tests/test_walls.py knows it
        )

        return getattr(writer, name)
    if name in _OF_RIG:
        from common import rig

        return getattr(rig, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main():
    """`bevshards COMMAND …`: the same as `python -m MODULE …` in the checkout."""
    from common.spelling import BY_NAME, COMMANDS, nearest  # which is found by now, whatever lies in the current folder

    there = {name: entry for name, entry in COMMANDS.items() if importlib.util.find_spec(entry[0])}
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("Usage: bevshards COMMAND [OPTIONS]\n\nCommands (each has --help):")
        for known, (_, meaning) in there.items():
            print(f"  {known:12} {meaning}")
        print("\nIn a checkout, python -m train.run, preprocess.run … are the same; README.md lists them.")
        return
    if name in ("-V", "--version"):
        from common.versions import own_version, version_of

        print(f"bevshards {own_version()}, Python {platform.python_version()}, torch {version_of('torch')}")
        return
    name = name.replace("_", "-")
    if name not in there:
        meant = nearest(name, {known: known for known in there})
        sys.exit(
            f"error: {name} is no command; "
            + (f"did you mean {meant}?" if meant else f"it is one of {', '.join(there)}")
        )
    os.environ[BY_NAME] = "1"
    sys.argv[:2] = [f"bevshards {name}"]
    runpy.run_module(there[name][0], run_name="__main__", alter_sys=True)


_first_on_the_path()
