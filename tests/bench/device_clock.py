"""How long something takes on a device, by the device's own clock where it is a GPU."""

import statistics

import torch

from tests.bench.measure import best_ms


def device_ms(action, device, repeats=20):
    """Median milliseconds of action() after two runs that do not count; by the GPU's own clock on CUDA."""
    on_cuda = torch.device(device).type == "cuda"
    times = []
    for number in range(repeats + 2):
        if on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            action()
            end.record()
            end.synchronize()
            took = begin.elapsed_time(end)
        else:
            took = best_ms(action, 1)
        times += [took] * (number > 1)
    return statistics.median(times)
