"""nuScenes -> shards. `python -m preprocess.run` and the other commands begin here, before anything large is imported."""

import os
import sys

# The interpreter, or bevshards, is looking for the command; a process that imports this package keeps its signals.
if os.path.basename(sys.argv[0]) in ("-m", "bevshards"):
    from common.interrupts import end_at_once

    end_at_once()
