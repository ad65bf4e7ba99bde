"""Many small arrays in one copy to the device: a copy's price is its launch, not its bytes."""

import numpy as np
import torch

from train.data.buffers import passed

ALIGN_BYTES = 64


class Parcel:
    """Named arrays that go to a device together. Each is written once, into its place among the bytes that are sent."""

    def __init__(self):
        self._items, self.size = [], 0

    def copy(self, name, arrays):
        """Arrays of one shape, stacked."""
        self._add(name, (len(arrays), *arrays[0].shape), arrays[0].dtype, lambda out: np.stack(arrays, out=out))

    def pad(self, name, arrays, value=0, axis=0):
        """Arrays that differ in length along an axis, padded to the longest, at least to 1, and stacked."""
        shape = list(arrays[0].shape)
        shape[axis] = max(1, *(array.shape[axis] for array in arrays))

        def fill(out):
            for place, array in zip(out, arrays, strict=True):
                place, array = np.moveaxis(place, axis, 0), np.moveaxis(array, axis, 0)
                place[: len(array)] = array
                place[len(array) :] = value

        self._add(name, (len(arrays), *shape), arrays[0].dtype, fill)

    def _add(self, name, shape, dtype, fill):
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self._items.append((name, shape, dtype, slice(self.size, self.size + nbytes), fill))
        self.size += -(-nbytes // ALIGN_BYTES) * ALIGN_BYTES

    def upload(self, device, pool):
        """The arrays as tensors on the device, by name. pool: BufferPool, page-locked where the device is a GPU."""
        if device.type == "cpu":
            sent = pool.lease((self.size,), np.uint8)
            self._pack(sent.numpy())
        else:
            packed = pool.take((self.size,))
            self._pack(packed)
            sent = torch.from_numpy(packed).to(device, non_blocking=True)
            pool.give([packed], passed(device))
        return self.unpack(sent)

    def _pack(self, packed):
        for _, shape, dtype, place, fill in self._items:
            fill(packed[place].view(dtype).reshape(shape))

    def unpack(self, sent):
        """The tensors in the bytes that were sent."""
        return {
            name: sent[place].view(getattr(torch, dtype.name)).view(shape)
            for name, shape, dtype, place, _ in self._items
        }
