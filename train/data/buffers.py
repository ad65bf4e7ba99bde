"""Memory that is used again: fresh pages for 26 MB per frame would cost more than decoding into them."""

import math
import threading
import weakref
from collections import deque

import numpy as np
import torch


class BufferPool:
    """Byte buffers, each good for every array that fits into it.

    A request takes the smallest free buffer that is large enough. Where none is, one that is too small makes room for a
    larger one, so that there are never more buffers than were in use at once, whatever sizes images have. Thread-safe.

    Args:
        keep: free buffers that are kept; more than that are let go.
        pinned: page-locked, for asynchronous copies to a GPU. Copies run on after who started them has returned: a buffer
            goes back only when the event recorded behind its copies has passed, which is asked, never waited for.
    """

    def __init__(self, keep, pinned=False):
        self._keep, self._pinned, self._lock = keep, pinned, threading.Lock()
        self._free = []
        # What comes back. No lock guards it, since give() may be called by the garbage collector at any moment.
        self._returned = deque()  # (buffers, event or None)
        self._in_copy = deque()
        self.made = 0  # buffers that there are, used or free

    def take(self, shape, dtype=np.uint8):
        """An array of the shape, with whatever was left in it."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._lock:
            self._collect()
            fitting = [buffer for buffer in self._free if buffer.nbytes >= size]
            chosen = min(fitting or self._free, key=lambda buffer: buffer.nbytes, default=None)
            if chosen is not None:
                self._free = [buffer for buffer in self._free if buffer is not chosen]
            self.made += chosen is None
        if not fitting:
            del chosen
            chosen = self._make(size)
        return chosen[:size].view(dtype).reshape(shape)

    def give(self, arrays, event=None):
        """Take arrays of `take` back once `event` (anything with query()) has passed; at once where it is None."""
        self._returned.append(([_whole(array) for array in arrays], event))
        if len(self._returned) > self._keep and self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def lease(self, shape, dtype):
        """A CPU tensor over a buffer, which comes back when no tensor shows its memory any more."""
        array = self.take(shape, dtype)
        shown = array.view()  # which torch keeps as long as the tensor's storage
        weakref.finalize(shown, self.give, [array]).atexit = False
        return torch.from_numpy(shown)

    def _collect(self):
        while self._returned:
            buffers, event = self._returned.popleft()
            if event is None:
                self._free += buffers
            else:
                self._in_copy.append((buffers, event))
        while self._in_copy and self._in_copy[0][1].query():
            self._free += self._in_copy.popleft()[0]
        self.made -= len(self._free[self._keep :])
        del self._free[self._keep :]

    def _make(self, size):
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return np.empty(size, np.uint8)


def _whole(array):
    """The buffer that an array of `take` is a part of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class Pools:
    """A loader's memory by what it is for, since buffers of one pool grow alike: images of a frame, of whole batches, the rest.

    What batches return is kept for as many as are under way, and no more: a caller may have hoarded an epoch of them.
    """

    def __init__(self, under_way, pinned):
        self.scratch = BufferPool(1 << 10, pinned)
        self.batches = BufferPool(under_way, pinned)
        self.parcels = BufferPool(under_way, pinned)


def passed(device):
    """An event that passes when what was given to the current stream is done; None on a CPU, where it is."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
