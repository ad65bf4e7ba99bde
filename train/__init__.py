"""Shards -> a trained network. `python -m train.run` and the other commands begin here, before anything large is imported."""

import os
import sys

# The interpreter, or bevshards, is looking for the command: importing torch will take seconds.
if os.path.basename(sys.argv[0]) in ("-m", "bevshards"):
    from train.processes import signals

    signals.end_at_once()
