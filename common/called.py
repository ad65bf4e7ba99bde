"""How this process was called, while the interpreter is still looking for the module that it is to run."""

import os
import re
import sys


def looking_for(package):
    """Whether `python -m PACKAGE.…` or the command bevshards is what imports the package; else it is somebody's library."""
    if os.path.basename(sys.argv[0]) == "bevshards":
        return True
    if sys.argv[0] != "-m":  # which it is until the module is found, whichever it is
        return False
    words = sys.orig_argv[1:]
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if found := re.fullmatch(r"-[a-zA-Z]*?m(.*)", word):
            return (found[1] or after).partition(".")[0] == package
    return False
