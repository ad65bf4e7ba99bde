"""Voxels, network and losses on fake CUDA tensors: what can be known of a training step on a GPU without one."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.small_step import GRID, SmallStep, grid, inputs
from train.data import make_vox_util
from train.model import Flips

# Operations of the small network's forward pass, losses included; what is added to the step has to be accounted for here.
# Of the ways to the camera mean; they take 556, 657 and 840.
CEILING = {"fused": 600, "plain": 700, "portable": 900}
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten::equal")


class Watch(TorchDispatchMode):
    """Counts operations, and notes those that wait for the device, cross to another, or make something on the CPU."""

    def __init__(self):
        super().__init__()
        self.count, self.faults = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name()
        if any(word in name for word in WAITING):
            self.faults.append(f"{name} waits for the device")
        out = func(*args, **kwargs)
        self.count += not name.startswith("prim::")  # questions about a tensor, which cost the device nothing
        devices = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim()}
        made = {t.device.type for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        if len(devices | made) > 1:
            # Only copies from pinned memory that are said not to block do not wait.
            if not kwargs.get("non_blocking") and not (name == "aten::copy_" and args[2:] == (True,)):
                self.faults.append(f"{name} from {devices} to {made}")
        elif "cpu" in made:
            self.faults.append(f"{name} on the CPU")
        return out


def on_fake_cuda(step, batch, flips, watch):
    """The loss of the step and batch (real tensors on the CPU) as if all were on a CUDA device."""

    def fake(tensors):
        return {k: torch.empty(v.shape, dtype=v.dtype, device="cuda") for k, v in tensors.items() if v is not None}

    with FakeTensorMode():
        for module in step.modules():
            module._parameters.update({k: torch.nn.Parameter(v) for k, v in fake(module._parameters).items()})
            module._buffers.update(fake(module._buffers))
        batch, flips = SimpleNamespace(**fake(vars(batch))), Flips(**fake(vars(flips)))
        with watch:
            return step(batch, flips)


@pytest.mark.parametrize("way", CEILING)
def test_a_step_stays_on_the_device_and_never_waits(way, monkeypatch):
    monkeypatch.setattr("train.model.camera_mean.HAS_TRITON", way == "fused")
    if way == "fused":
        pytest.importorskip("triton", reason="Triton is not installed")
    watch = Watch()
    step = SmallStep(grid(), unprojection="plain" if way == "plain" else "fused")
    assert on_fake_cuda(step, *inputs(), watch).device.type == "cuda"
    assert watch.faults == []
    assert watch.count <= CEILING[way]


@pytest.mark.parametrize("options", [{"use_radar": True}, {"use_radar": True, "use_metaradar": True}])
def test_radar_beside_lidar_neither(options):
    watch = Watch()
    assert on_fake_cuda(SmallStep(grid(), **options), *inputs(), watch).device.type == "cuda"
    assert watch.faults == []


def test_the_grid_is_set_up_without_waiting():
    watch = Watch()
    with FakeTensorMode(), watch:
        vox_util = make_vox_util((None, (-24, 24, -4, 4, -16, 16), GRID), "cuda")
        assert vox_util.ref_to_mem(torch.empty((5, 3), device="cuda")).is_cuda
    assert watch.faults == [] and watch.count > 0


def test_the_watch_sees_what_waits():
    with FakeTensorMode():
        tensor, host = torch.empty(3, device="cuda"), torch.empty(3)
        for action in (tensor.cpu, lambda: host.to("cuda"), lambda: tensor.copy_(host), lambda: torch.zeros(3)):
            watch = Watch()
            with watch:
                action()
            assert len(watch.faults) == 1
        watch = Watch()
        with watch, pytest.raises(DataDependentOutputException):
            tensor.sum().item()
        assert len(watch.faults) == 1
        watch = Watch()
        with watch:
            host.to("cuda", non_blocking=True)
            tensor[0] = 1.0
        assert watch.faults == []
