"""Which card, and with which libraries."""

import importlib.metadata
import os
import platform

import torch


def describe(settings, rows):
    """Rows of the machine, without anything that names it. Raises RuntimeError where there is no CUDA device."""
    if not settings.dry:
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device here; --dry goes through every part on the CPU")
        card = torch.cuda.get_device_properties(0)
        rows.add("card", card.name)
        rows.add("multiprocessors", card.multi_processor_count)
        rows.add("memory", card.total_memory / 1e9, "GB")
        rows.add("CUDA of torch", torch.version.cuda)
        rows.add("cuDNN", torch.backends.cudnn.version())
    rows.add("CPU cores", os.cpu_count())
    rows.add("python", platform.python_version())
    for name in ("torch", "torchvision", "triton", "numpy", "opencv-python-headless", "simplejpeg"):
        rows.add(name, _version(name))


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
