"""How this process computes: random numbers, TF32, how kernels are chosen, and in how much memory."""

import ctypes
import os
import random
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

# Threads that load hold the interpreter for 5 ms at a time by default, in which a GPU gets no work. Set where there is one.
SWITCH_S = 0.0005
# Of glibc's mallopt(3).
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
_LARGEST_INT = 2**31 - 1


def set_precision(options, device):
    """Seed the generators, and set what it may trade accuracy or repeatability for on this device.

    fp32 on CUDA means fp32: torch by itself lets convolutions round their inputs to TF32's 10 bits; --precision tf32 asks
    for that, and for the same of matrix products. cuDNN may time its kernels, unless --deterministic.
    """
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    seed_all(options.seed)
    torch.use_deterministic_algorithms(options.deterministic, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
    torch.backends.cudnn.benchmark = device.type == "cuda" and not options.deterministic
    if device.type == "cpu":
        keep_freed_memory()
    else:
        sys.setswitchinterval(SWITCH_S)


def seed_all(number):
    """Seed torch's, NumPy's and Python's own generators, which a network may draw from, by any whole number."""
    torch.manual_seed(number % 2**64)
    np.random.seed(number % 2**32)
    random.seed(number)


@contextmanager
def full_float32():
    """float32 on CUDA means float32 within, or in the function so decorated, whatever the process has set."""
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


def keep_freed_memory():
    """Have this process keep large blocks that it frees, where its C library is glibc.

    glibc gives tensors of more than 32 MB back to the system at once, and the next step pays for the same pages again: a tenth
    of a training step on two cores. The process then never shrinks below its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def on_device(network, device, autocast=None):
    """The network there; with its convolutions' weights in channels-last order, which they then compute in, where that pays.

    It does on CUDA, and on the CPU in bfloat16; in float32 the CPU is slower for it. autocast: dtype of the arithmetic, None
    for float32.
    """
    network.to(device)
    if torch.device(device).type == "cuda" or autocast is not None:
        for parameter in network.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def peak_memory_gb(device):
    """Most memory that was in use so far: the device's by tensors on CUDA, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
        return int(peak.split()[1]) * 1024 / 1e9
    except (OSError, ValueError):  # another system than Linux; there, this counts the process that started this one too
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
