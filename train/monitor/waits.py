"""How long training stood still for data: the device where it works by itself, else this process."""

import time

import torch


class Waits:
    """Seconds without work around whatever `taken` is given.

    A GPU works while the host waits for a batch: what counts is how long it had nothing to do between the work that it was
    given before and the batch's arrival on its stream.

    Args:
        device: torch.device.
    """

    def __init__(self, device):
        self._device, self._spans = device, []

    def taken(self, take):
        """What `take()` returns; the time until then counts."""
        begin = self._now()
        taken = take()
        self._spans.append((begin, self._now()))
        return taken

    def _now(self):
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self):
        """Of all so far, whose last must have passed on the device."""
        if self._device.type != "cuda":
            return sum(end - begin for begin, end in self._spans)
        return sum(begin.elapsed_time(end) for begin, end in self._spans) / 1e3
