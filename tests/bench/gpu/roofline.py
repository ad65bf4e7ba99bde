"""What this card allows a step, operation by operation the slower of its arithmetic and its traffic; the share reached."""

import json
from pathlib import Path

import torch

from tests.bench.device_clock import device_ms
from tests.bench.gpu import profile
from tests.bench.gpu.rows import read
from tests.bench.gpu.runner import FILE
from tests.bench.gpu.training import UNITS
from tests.bench.train_bench import SPEED


def share(settings, rows):
    """Rows of the ceilings measured here, of what they allow the profiled step, and of what the trainings reached of that."""
    limit = _ceilings(settings, rows)
    operations = [profile.Operation(**row) for row in json.loads(Path(settings.out, profile.FILE).read_text())]
    allowed = sum(max(o.flops / limit["bf16" if o.half else "fp32"], o.nbytes / limit["copy"]) for o in operations)
    rows.add("a step: arithmetic", sum(o.flops for o in operations) / 1e12, "TFLOP")
    rows.add("a step: bytes moved", sum(o.nbytes for o in operations) / 1e9, "GB")
    rows.add("a step: the ceilings allow", 1e3 * allowed, "ms")
    rows.add("a step: the ceilings allow", settings.batch / allowed, "samples/s")
    measured = sum(o.ms for o in operations)
    rows.add("a step: share of that reached while the device works", 1e5 * allowed / measured, "%")
    for row in read(Path(settings.out, FILE)):
        if row["name"] in (f"{name}: {UNITS[SPEED][0]}" for name in ("batch 8", "--compile")) and not settings.dry:
            rows.add(f"{row['name']}: share reached", 100 * row["value"] * allowed / settings.batch, "%")


def _ceilings(settings, rows):
    """{"fp32", "bf16": operations per second of a matrix product of random numbers, "copy": bytes per second}."""
    side, found = (128 if settings.dry else 8192), {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn((side, side), device=settings.device).to(dtype) for _ in range(2))
        found[name] = 2e3 * side**3 / device_ms(lambda a=a, b=b: a @ b, settings.device, 5)
        rows.add(f"ceiling: matrix product, {name}", found[name] / 1e12, "TFLOP/s")
    source = torch.randn(2**12 if settings.dry else 2**29, device=settings.device)
    target = torch.empty_like(source)
    found["copy"] = 2e3 * source.nbytes / device_ms(lambda: target.copy_(source), settings.device, 5)
    rows.add("ceiling: copy, read and written", found["copy"] / 1e9, "GB/s")
    return found
