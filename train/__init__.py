"""Shards -> a trained network. `python -m train.run` and the other commands begin here, before anything large is imported."""

from common.called import looking_for

if looking_for("train"):  # importing torch will take seconds; a process that imports this package keeps its signals
    from train.processes import signals

    signals.end_at_once()
