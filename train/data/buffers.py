"""Memory for images that is used again: fresh pages for 26 MB a frame would cost more than decoding into them."""

import threading
from collections import deque

import numpy as np
import torch


class BufferPool:
    """Byte buffers, each good for every array that fits into it.

    A request takes the smallest free buffer that is large enough. Where none is, one that is too small makes room for a
    larger one, so that there are never more buffers than were in use at once, whatever sizes images have. Thread-safe.

    pinned: page-locked, for asynchronous copies to a GPU. Copies run on after who started them has returned: a buffer goes
    back only when the event recorded behind its copies has passed, which is asked, never waited for.
    """

    def __init__(self, pinned=False):
        self._pinned, self._lock = pinned, threading.Lock()
        self._free = []
        self._in_copy = deque()  # (event, buffers)
        self.made = 0  # buffers that there are, used or free

    def take(self, shape, dtype=np.uint8):
        """An array of the shape, with whatever was left in it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
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
        buffers = [_whole(array) for array in arrays]
        with self._lock:
            if event is None:
                self._free += buffers
            else:
                self._in_copy.append((event, buffers))
            self._collect()

    def _collect(self):
        while self._in_copy and self._in_copy[0][0].query():
            self._free += self._in_copy.popleft()[1]

    def _make(self, size):
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return np.empty(size, np.uint8)


def _whole(array):
    """The buffer that an array of `take` is a part of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
