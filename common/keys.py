"""Keys of keyframes: what the tar, the index and every reader call a sample.

webdataset ends a key at the first dot of a file name, and a ustar name holds 100 bytes, so a key is at most 64 ASCII
characters without a dot or slash. nuScenes' own scene names are their own keys; any other name is escaped, with a hash
of the whole of it, and the true name stands in sample.json.
"""

import hashlib
import re

MAX_KEY_CHARS = 64
MAX_SCENE_CHARS = 56  # leaves room for "_" and seven digits of the keyframe's number

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
_ESCAPED = re.compile(r".*--[0-9a-f]{16}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*_[0-9]{4,7}", re.ASCII)


def scene_key(name):
    """The part of a key that stands for a scene, a pure function of its name; different names have different keys.

    A name of at most 56 letters, digits, "_" and "-" that begins with a letter or digit is its own key. Any other is
    written with "-" for every run of what is neither letter, digit nor "_", cut short, without "-" and "_" at its ends
    ("scene" if nothing is left), and followed by "--" and 16 hex digits of the SHA-256 of its UTF-8 bytes. Names that
    look so already are escaped too, which is what keeps the two kinds apart.
    """
    if _PLAIN.fullmatch(name) and len(name) <= MAX_SCENE_CHARS and not _ESCAPED.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", name)[: MAX_SCENE_CHARS - 18].strip("-_")
    return f"{readable or 'scene'}--{digest}"


def keyframe_key(scene_name, number):
    """Key of keyframe `number` of a scene."""
    return f"{scene_key(scene_name)}_{number:04d}"


def is_key(key):
    """Whether a string is a key that keyframe_key could have made."""
    return len(key) <= MAX_KEY_CHARS and _KEY.fullmatch(key) is not None
