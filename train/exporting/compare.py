"""An exported file beside the network that it was made of: differences, cells, IoU and time, sample by sample, in pairs."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from common.errors import InputError
from train.exporting.writing import quiet
from train.metrics import Segmentation

BOUND = 1e-4  # of float32 logits, from PyTorch's; of other outputs too; --bound sets another
NEAR = 1e-4  # of a logit from the threshold, within which a cell may fall on either side


@dataclass
class Comparison:
    """What was found over some samples.

    differences: output -> largest absolute difference. cells, other, near: cells of all maps; those predicted otherwise; those
    of these whose logit lies within NEAR of the threshold in the network. whole, exported: Segmentation of either. seconds:
    CPU time of all threads of (network, file) for each sample. kept: (key, tensors, outputs of the network) of the first.
    """

    differences: dict = field(default_factory=dict)
    cells: int = 0
    other: int = 0
    near: int = 0
    whole: Segmentation = field(default_factory=Segmentation)
    exported: Segmentation = field(default_factory=Segmentation)
    seconds: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    samples: int = 0

    def add(self, batch, want, got):
        """One more sample: Batch, outputs of the network and of the file."""
        self.samples += len(batch.facts)
        for name, value in want.items():
            if not bool(got[name].isfinite().all()):
                raise InputError(f"the exported file's {name} of {batch.facts[0][0].key} is not finite")
            apart = float((value - got[name]).abs().max())
            self.differences[name] = max(apart, self.differences.get(name, 0.0))
        if "seg" in want:
            self.whole.update(want, batch)
            self.exported.update(got, batch)
            self._count(want["seg"], got["seg"])

    def _count(self, want, got):
        other = (want > 0) != (got > 0)
        self.cells += want.numel()
        self.other += int(other.sum())
        self.near += int((other & (want.abs() <= NEAR)).sum())

    def cpu_s(self):
        """Median CPU seconds of a sample: (network, file)."""
        return tuple(float(value) for value in np.median(np.array(self.seconds), 0))

    def iou(self):
        """(network, file): {name: IoU}; empty without a seg."""
        return tuple({name: s.value for name, s in one.figures().items()} if one.counts is not None else {}
                     for one in (self.whole, self.exported))  # fmt: skip


def compare(reference, run, samples, keep=0):
    """Comparison of a Graph with a function of arrays, over samples.

    samples: of (Batch of one, its tensors). keep: how many are kept. Network and file take turns in beginning.
    """
    found = Comparison()
    for number, (batch, tensors) in enumerate(samples):
        arrays = {name: tensors[name].numpy() for name in reference.inputs}
        runs = [lambda t=tensors: reference.run(t), lambda a=arrays: as_tensors(run(a))]
        timed = [None, None]
        for place in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()  # which neighbours on the machine change least
            timed[place] = runs[place](), time.process_time() - began
        (want, first), (got, second) = timed
        found.seconds.append((first, second))
        found.add(batch, want, got)
        if len(found.kept) < keep:
            found.kept.append((batch.facts[0][0].key, tensors, want))
    return found


def own_spread(reference, tensors):
    """How far PyTorch's outputs of a sample lie from its own when it adds in another order, without oneDNN; the largest.

    What a file differs by from PyTorch is rounding as far as this goes.
    """
    want = reference.run(tensors)
    with quiet(), torch.backends.mkldnn.flags(enabled=False):  # which warns of TF32, whatever it is told
        other = reference.run(tensors)
    return max(float((want[name] - other[name]).abs().max()) for name in want)


def check_batches(run, reference, kept, none):
    """Largest difference of batches of 2 and 3 from the network's own of one; by size. All kept samples are in batches of 3.

    none: cell of points that lie in no column of the grid, with which cells are padded.
    """
    out = {}
    batches = [(2, 0), *((3, first) for first in range(0, len(kept), 3))]
    for size, first in batches:
        chosen = [kept[n % len(kept)] for n in range(first, first + size)]
        fill = {name: none for name in reference.inputs if name.endswith("_cells")}
        arrays = {
            name: joined([tensors[name] for _, tensors, _ in chosen], fill.get(name, 0)).numpy()
            for name in reference.inputs
        }
        got = as_tensors(run(arrays))
        apart = [
            float((value[0] - got[name][row]).abs().max())
            for row, (_, _, want) in enumerate(chosen)
            for name, value in want.items()
        ]
        out[size] = max(apart + [out.get(size, 0.0)])
    return out


def joined(tensors, fill=0):
    """One batch of several of one; points are padded to the longest with `fill`."""
    longest = max(tensor.shape[1] if tensor.dim() > 1 else 0 for tensor in tensors)
    return torch.cat([_filled(tensor, longest, fill) for tensor in tensors])


def _filled(tensor, longest, fill):
    if tensor.dim() < 2 or tensor.shape[1] == longest:
        return tensor
    more = tensor.new_full((tensor.shape[0], longest - tensor.shape[1], *tensor.shape[2:]), fill)
    return torch.cat([tensor, more], 1)


def as_tensors(arrays):
    return {name: torch.from_numpy(np.ascontiguousarray(value)).float() for name, value in arrays.items()}
