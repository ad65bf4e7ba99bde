"""What torch finds on this machine, and whether a batch fits: the second part of train.doctor."""

from pathlib import Path

import torch

from train.jobs.examination import Finding, memory_bytes, own_bytes
from train.jobs.step_memory import training_bytes

WITHIN = 0.2  # share that the estimate may be off by
_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # of processors: Intel's and AMD's, Intel's newer, Arm's


def devices(options):
    """Findings of CUDA and of bfloat16."""
    names = (
        [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    yield Finding("CUDA", *_cuda(names), stops=options.device.startswith("cuda") and not names)
    if names:
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Finding("bf16", "yes" if has else "not on this GPU", "" if has else "train with --precision fp32")
        return
    units = _processor_units()
    remedy = "train with --precision bf16 for speed" if units else "stay with --precision fp32, the default here"
    yield Finding("bf16", ", ".join(units) or "the processor has no unit for it", remedy)


def _cuda(names):
    """(text, remedy)."""
    if names:
        free = [torch.cuda.mem_get_info(n)[0] / 1e9 for n in range(len(names))]
        return ", ".join(f"{name}, {gb:.1f} GB free" for name, gb in zip(names, free, strict=True)), ""
    if torch.version.cuda is None:
        return "none: this torch is built without it", "training takes the CPU; with a GPU: make setup"
    return "no device that works", "nvidia-smi says what the driver sees; without a GPU, training takes the CPU"


def _processor_units():
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = {word for row in rows if row.startswith(("flags", "Features")) for word in row.partition(":")[2].split()}
    return [unit for unit in _UNITS if unit in flags]


def batch(options):
    """Finding: whether a batch of these Options can be trained with here, in the memory that is free."""
    height, width = options.data_aug_conf()["final_dim"]
    what = f"{options.batch_size} x {height} x {width}, {options.encoder_type}"
    on_cpu = options.device == "cpu" or not (options.device or torch.cuda.is_available())
    base = own_bytes()
    needed = training_bytes(options) if on_cpu and base else None
    if needed is None:
        known = "it is for the built-in network in fp32, in one process on the CPU"
        return Finding("batch", f"{what}: not known whether it fits; {known}", "the run's first updates tell")
    steps, saving = base + needed[0], needed[1]
    free = memory_bytes()[0] + base
    text = f"{what}: about {steps / 1e9:.1f} GB, and {saving / 1e9:.1f} GB more while a checkpoint is written"
    most = (1 + WITHIN) * (steps + saving)
    if most <= free:
        return Finding("batch", f"{text}: fits into {free / 1e9:.1f} GB")
    remedy = "lower --batch_size (and raise --grad_acc), --res_scale, or take --encoder_type effb0"
    if (1 - WITHIN) * steps > free:
        return Finding("batch", f"{text}: does not fit into {free / 1e9:.1f} GB", remedy, True)
    return Finding("batch", f"{text}: may not fit into {free / 1e9:.1f} GB", remedy)
