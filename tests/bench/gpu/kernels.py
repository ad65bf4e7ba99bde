"""The camera mean's kernels, in a process of their own that decides how they run before anything imports Triton."""

import os


def compare_and_time(settings, rows):
    """On the CPU they run under Triton's interpreter, and nothing is timed."""
    if settings.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    from tests.bench.gpu import kernel_shapes

    kernel_shapes.compare(settings, rows)
    if not settings.dry:
        kernel_shapes.time_blocks(settings, rows)
