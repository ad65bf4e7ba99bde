"""Normalisation with what follows it, a sum and ReLU: one pass over memory on CUDA, torch's own operations elsewhere."""

import torch
from torch import nn
from torch.nn import functional as F

CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normed(norm, x, residual=None, relu=False):
    """relu(norm(x) + residual), of a module here in one go on CUDA, of any other one after the other.

    Args:
        norm: module of (N,C,H,W) tensors. residual: (N,C,H,W) or None. relu: whether a ReLU follows.
    """
    if isinstance(norm, Fused):
        return norm(x, residual, relu)
    return _followed(norm(x), residual, relu)


def _followed(x, residual, relu):
    if residual is not None:
        x = x.add_(residual) if x.dtype == residual.dtype else x + residual
    return F.relu(x, inplace=True) if relu else x


class Fused:
    """What a norm that takes a residual and a ReLU along has in common; relu: whether one follows in every call."""

    relu = False

    def _in_one_go(self, x, residual, running, by_item, relu):
        """The result of the kernels; None where they don't run: not on CUDA, and in a compiler's or exporter's hands."""
        if not x.is_cuda or torch.compiler.is_compiling() or x.dtype not in CUDA_DTYPES or not x.numel():
            return None
        from train.model.norm.triton import normalise  # Triton is there where CUDA is

        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
        return normalise(x, (self.weight, self.bias), residual, running, by_item, relu, self.eps)


class BatchNorm(Fused, nn.BatchNorm2d):
    """nn.BatchNorm2d that also adds a residual and applies ReLU; its statistics follow torch's rule."""

    def forward(self, x, residual=None, relu=False):
        done = None
        if self.training and self.track_running_stats and self.momentum is not None:
            running = self.running_mean, self.running_var, self.num_batches_tracked, self.momentum
            done = self._in_one_go(x, residual, running, by_item=False, relu=relu)
        return _followed(super().forward(x), residual, relu) if done is None else done


class InstanceNorm(Fused, nn.InstanceNorm2d):
    """nn.InstanceNorm2d without parameters or statistics, quick for channels-last tensors.

    torch copies a channels-last tensor to and fro for it. Over one item it is what batch normalisation is over one batch,
    and that reads channels-last tensors as they lie: twice to three times as fast on the CPU. An exported network takes batches
    of any size, so it has no such branch. relu: whether a ReLU follows.
    """

    def __init__(self, channels, relu=False):
        super().__init__(channels)
        self.relu = relu

    def forward(self, x, residual=None, relu=False):
        relu = relu or self.relu
        done = self._in_one_go(x, residual, None, by_item=True, relu=relu)
        if done is not None:
            return done
        if not torch.compiler.is_exporting() and x.shape[0] == 1:
            x = F.batch_norm(x, None, None, training=True, eps=self.eps)
        else:
            x = super().forward(x)
        return _followed(x, residual, relu)
