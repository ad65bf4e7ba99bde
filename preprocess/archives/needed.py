"""Which files recipes need, how large they are, and which of nuScenes' archives hold them."""

import re
from collections import Counter

# Bytes of a file, in the mean of nuScenes: tables do not say sizes, and a plan is made before there is a file to look at.
MEAN_BYTES = {"CAM": 150_000, "LIDAR": 695_000, "RADAR": 5_000}
_PART = re.compile(r"v1\.0-(?:trainval|test|mini)\d*")
KINDS = {"CAM": "camera", "LIDAR": "lidar", "RADAR": "radar"}


def files_of(frame):
    """Names of the files that a KeyframeRecipe reads, in the order in which it reads them."""
    sweeps = [*frame.lidar, *frame.radar]
    return [c.filename for c in frame.cameras] + [f.filename for sweep in sweeps for f in sweep]


def kind_of(filename):
    """CAM, LIDAR or RADAR, by the folder that a file of nuScenes lies in; "" of others."""
    folders = filename.split("/")
    return next((kind for folder in folders for kind in KINDS if folder.startswith(kind)), "")


def about_bytes(filenames):
    """Bytes of these files together, about."""
    counts = Counter(map(kind_of, filenames))
    return sum(MEAN_BYTES.get(kind, 0) * count for kind, count in counts.items())


def parts_of(filename):
    """The parts of a nuScenes download that hold a file, the smallest first: _keyframes or _lidar … , or the whole _blobs."""
    if filename.startswith("samples/"):
        return ("_keyframes", f"_blobs_{KINDS.get(kind_of(filename), 'camera')}", "_blobs")
    return (f"_blobs_{KINDS.get(kind_of(filename), 'camera')}", "_blobs")


def part_of(archive):
    """The numbered part of a nuScenes download that an archive belongs to, such as v1.0-trainval03; "" of others."""
    found = _PART.search(archive)
    return found[0] if found else ""


def holder(filename, archives):
    """A clause on which archive holds a missing file. archives: names of those that other files of its scene came from."""
    numbers = sorted(filter(None, map(part_of, archives)))
    names = " or ".join(f"{number}{part}.tgz" for number in numbers[:1] for part in parts_of(filename))
    if names:
        return f"its scene's other files came from {min(archives)}: give {names} too"
    kinds = " or ".join(f"{part}.tgz" for part in parts_of(filename))
    return f"no file of its scene was in them: give the part that holds it ({kinds} of its number)"


def advice(filenames):
    """Which of nuScenes' archives, of each numbered part, suffice for these files."""
    sweeps = sorted(
        {
            f"_blobs_{KINDS[kind]}"
            for name in filenames
            if name.startswith("sweeps/")
            for kind in [kind_of(name)]
            if kind
        }
    )
    suffice = (["_keyframes"] if any(name.startswith("samples/") for name in filenames) else []) + sweeps
    return ", ".join(f"v1.0-*{part}.tgz" for part in suffice)
