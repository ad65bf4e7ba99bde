"""How the benchmarks measure: the best of a few runs, and ratios to one unit measured in the same process."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Row:
    """One line of the table: milliseconds per sample, or a plain figure where `unit` says so; `goal` as design.md has it."""

    name: str
    value: float
    unit: str = "ms"
    decodes: float | None = None
    goal: str = ""

    def __str__(self):
        ratio = f"{self.decodes:8.2f}" if self.decodes is not None else " " * 8
        return f"{self.name:<52}{self.value:>10.2f} {self.unit:<8}{ratio}  {self.goal}"


HEADER = f"{'':<52}{'':>10} {'':<8}{'decodes':>8}  goal"


def best_ms(action, repeats=3, count=1, clock=time.perf_counter):
    """Least milliseconds of `repeats` runs of action(), over the `count` samples that each run handles."""
    times = []
    for _ in range(repeats):
        start = clock()
        action()
        times.append((clock() - start) / count * 1e3)
    return min(times)


def paired_ms(action, unit, count, repeats=3, clock=time.process_time):
    """Medians over pairs, run in turn because a machine's speed drifts, of action() over its `count` samples and the unit.

    Returns:
        (milliseconds per sample, ratio to as many runs of unit()).
    """
    pairs = []
    for _ in range(repeats):
        one = best_ms(lambda: [unit() for _ in range(count)], 1, count, clock)
        pairs.append((best_ms(action, 1, count, clock), one))
    return statistics.median(a for a, _ in pairs), statistics.median(a / b for a, b in pairs)
