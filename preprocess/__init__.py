"""nuScenes -> shards. `python -m preprocess.run` and the other commands begin here, before anything large is imported."""

from common.called import looking_for

if looking_for("preprocess"):  # a process that imports this package keeps its signals
    from common.interrupts import end_at_once

    end_at_once()
