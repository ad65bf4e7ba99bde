"""The device stage: what it makes on the device is what it makes on the CPU; nvJPEG; its pieces, each alone."""

import time

import torch

from tests.bench import device_bench
from tests.bench.gpu.settings import GRID
from tests.bench.gpu.training import short_training
from train.data import compile_data

LEVEL = 1 / 255
DERIVED = ("size_bev", "ycoord_bev")


def compare(settings, rows):
    """Every field of the batches of an epoch, made on the device and on the CPU: at most how far apart."""
    for interpolation in ("nearest", "bilinear"):
        loaders = (_loader(settings, device, interpolation=interpolation) for device in ("cpu", settings.device))
        far = {}
        for ours, theirs in zip(*loaders, strict=True):
            if ours.indices != theirs.indices:
                raise AssertionError("the device's batches are of other samples than the CPU's")
            for name, value in _differences(ours, theirs):
                far[name] = max(far.get(name, 0.0), value)
        for name, value in far.items():
            rows.add(f"{interpolation}: {name}: largest difference from the CPU", value, "", _tolerance(name))


def _tolerance(name):
    """Bytes are rounded after each of two passes on the CPU, and once on a device; the rest is the same arithmetic."""
    return f"<= {1.3 * LEVEL:.5f}" if name == "imgs" else "<= 0.0001"


def _differences(one, other):
    """(name, largest difference) of every tensor of two batches. Angles go round: their difference is the short way."""
    fields = {name: value for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    for name in (*fields, *DERIVED, "ry_bev"):
        ours, theirs = getattr(one, name), getattr(other, name).cpu()
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise AssertionError(f"{name} is {ours.shape} {ours.dtype} on the CPU, {theirs.shape} {theirs.dtype} there")
        apart = ours.double() - theirs.double()
        if name == "ry_bev":
            apart = torch.remainder(apart + torch.pi, 2 * torch.pi) - torch.pi
        yield (
            name,
            apart.abs().nan_to_num(float("inf") if not torch.equal(ours.isnan(), theirs.isnan()) else 0).max().item(),
        )


def nvjpeg(settings, rows):
    """Images decoded by the device against the host's; how many samples per second each way gives, alone and to a training."""
    host, device = (_loader(settings, settings.device, decode=decode) for decode in ("host", "device"))
    apart = [(a.imgs - b.imgs).abs().mean().item() / LEVEL for a, b in zip(host, device, strict=True)]
    rows.add("images decoded by the device, mean difference", max(apart), "levels", "<= 1")
    for decode, loader in (("host", host), ("device", device)):
        rows.add(f"loader alone, decoded by the {decode}", _samples_per_s(loader, settings), "1/s")
    short_training(settings, rows, "decoded by the device", 5, decode="device")


def _samples_per_s(loader, settings):
    """Of epochs of at least two seconds in all, after one that does not count."""
    for _ in loader:
        pass
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < (0.1 if settings.dry else 2.0):
        for batch in loader:
            count += len(batch)
        if not settings.dry:
            torch.cuda.synchronize()
    return count / (time.perf_counter() - begin)


def pieces(settings, rows):
    """Milliseconds of each piece of the stage: of 16 samples on CUDA, of one on a CPU."""
    for row in device_bench.rows(settings.train_shards[0], None, settings.device, 1 if settings.dry else 20):
        rows.add(row.name, row.value, row.unit)


def _loader(settings, device, interpolation="bilinear", decode="host"):
    options = settings.options()
    loader, _ = compile_data(
        settings.train_shards,
        None,
        options.data_aug_conf(),
        *GRID,
        settings.zyx,
        settings.batch,
        options.nworkers,
        nsweeps=3,
        get_tids=True,
        interpolation=interpolation,
        device=device,
        decode=decode,
    )
    return loader
