"""Shards -> a trained network. `python -m train.run` and the other commands begin here, before anything large is imported."""

import sys

if sys.argv[:1] == ["-m"]:  # the interpreter is looking for the command: importing torch will take seconds
    from train import signals

    signals.end_at_once()
