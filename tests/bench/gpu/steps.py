"""The training step by part, without loading data: encoder, unprojection, BEV network, losses, backward, optimizer."""

import statistics
import time

import torch

from tests.bench.step_bench import PARTS, Step


def by_part(settings, rows):
    """Rows of the benchmark's batch, in bfloat16 and in float32: medians of five steps."""
    size = (settings.zyx, settings.final_hw)
    for way in ("fused bf16", "fused fp32"):
        encoder, samples = ("res50", 1) if settings.dry else ("res101", settings.batch)
        step = Step(way, encoder, size[1], samples, settings.device, size[0])
        taken = [step.run(_clock(settings)) for _ in range(1 if settings.dry else 8)]
        medians = [statistics.median(part) for part in zip(*taken[-5:], strict=True)]
        rows.add(f"{way}, batch {samples}", 1e3 * sum(medians), "ms")
        for name, seconds in zip(PARTS, medians, strict=True):
            rows.add(f"{way}: {name}", 1e3 * seconds, "ms")
        del step
        if not settings.dry:
            torch.cuda.empty_cache()


def _clock(settings):
    """Seconds, once the device has done what it was given."""

    def now():
        if not settings.dry:
            torch.cuda.synchronize()
        return time.perf_counter()

    return now
