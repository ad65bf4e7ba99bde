"""Which errors are told in one line: those of ours, and the system's where we asked it for something. The rest are faults.

A fault inside a network of the user's own, or inside a library, needs its traceback; a wrong option needs none.
"""

import sysconfig
from pathlib import Path

from common.errors import InputError
from train.errors import DataError, NotFinite, PeersLost

_ROOT = Path(__file__).resolve().parents[1]
_OURS = tuple(f"{_ROOT / name}/" for name in ("common", "preprocess", "train", "tests"))
_STANDARD = tuple({f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib")})  # and what it generates
_INSTALLED = ("/site-packages/", "/dist-packages/")


def told_in_a_line(error):
    """Whether an error's message is all that its reader needs."""
    places = set(_places(error.__traceback__))
    if isinstance(error, (InputError, DataError, NotFinite, PeersLost)):
        return "theirs" not in places
    return isinstance(error, OSError) and places <= {"ours", "standard"}


def _places(trace):
    """Of each call that the error has passed, whose code it is."""
    while trace is not None:
        yield _whose(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next


def _whose(file):
    if file.startswith(_OURS):
        return "ours"
    if any(part in file for part in _INSTALLED):
        return "installed"
    return "standard" if file.startswith((*_STANDARD, "<frozen ", "<string>")) else "theirs"
