"""Which of several forms of a view is the quickest here."""

import tempfile
import time
from pathlib import Path

from torch import nn

from train.exporting.runtime import open_file
from train.exporting.view import Sampled
from train.exporting.writing import export_program, write_onnx

ROUNDS = 3


class Alone(nn.Module):
    """A View and the convolution after it, of features, and where calibration is an input, of that.

    grid: VoxUtil. kernels: of convolved_mean, or None for the mean alone.
    """

    outputs = ("bev",)

    def __init__(self, view, grid, kernels):
        super().__init__()
        self.view, self.grid, self.kernels = view, grid, kernels
        self.inputs = ("feats", "pix_T_refs", "cams_T_ref") if isinstance(view, Sampled) else ("feats",)

    def forward(self, *tensors):
        feats, *where = tensors
        where = where or (None, None)
        if self.kernels is None:
            return (self.view.mean(feats, *where, self.grid),)
        return (self.view.convolved(feats, *where, self.grid, self.kernels),)


def quickest(views, feats, grid, kernels):
    """(view, {its name: seconds}) of baked Views as onnxruntime runs each with its convolution; they take turns.

    feats: (1,S,C,h,w). grid: VoxUtil. kernels: of convolved_mean, or None for the mean alone.
    """
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for view in views:
            alone, path = Alone(view, grid, kernels), Path(folder, f"{type(view).__name__}.onnx")
            write_onnx(export_program(alone, {"feats": feats}), alone, path)
            runs.append(open_file(path))
        arrays = {"feats": feats.numpy()}
        for _ in range(ROUNDS):
            for view, run in zip(views, runs, strict=True):
                began = time.perf_counter()
                run(arrays)
                name = type(view).__name__
                seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - began)
    return min(views, key=lambda view: seconds[type(view).__name__]), seconds
