"""Voxels, network and losses on fake CUDA tensors: what can be known of a training step on a GPU without one."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from tests.fake_cuda import Watch, fake_mode, faked, host
from tests.small_step import GRID, SmallStep, grid, inputs
from train.data import Grid, make_vox_util
from train.model import Flips
from train.model.pillars import Pillars
from train.step import LossStep

# Operations of the small network's forward pass, losses included; what is added to the step has to be accounted for here.
# Of the ways to the camera mean; they take 364, 416 and 541.
CEILING = {"fused": 390, "plain": 450, "portable": 580}


def on_fake_cuda(step, batch, flips, watch):
    """The loss of the step and batch (real tensors on the CPU) as if all were on a CUDA device."""

    with fake_mode():
        to_fake_cuda(step)
        batch, flips = SimpleNamespace(**faked(vars(batch)), true_times=False), Flips(**faked(vars(flips)))
        with watch:
            return step(batch, flips)


def to_fake_cuda(network):
    """Parameters and buffers of a network; within fake_mode()."""
    for module in network.modules():
        module._parameters.update({k: torch.nn.Parameter(v) for k, v in faked(module._parameters).items()})
        module._buffers.update(faked(module._buffers))


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


def test_the_training_step_with_its_flips_and_figures_never_waits():
    """All that an update computes before its backward pass, which fake tensors do not have without a GPU."""
    batch, _ = inputs()
    step = LossStep(SmallStep(grid()).network, grid())
    with host() as own, fake_mode():
        to_fake_cuda(step)
        batch = SimpleNamespace(**faked(vars(batch)), indices=[3, 1], epoch=0, true_times=False)
        with Watch(own) as watch:
            loss, figures, outputs = step.train()(batch)
            with torch.no_grad():
                step.eval()(batch)
    assert watch.faults == [] and watch.sent == 3  # which images and axes to flip, in training alone
    assert {t.device.type for t in (loss, figures, *outputs.values())} == {"cuda"}
    assert figures.dtype == torch.float64 and figures.shape == (len(step.names(True)) + 2,) and step.names(True)


def test_the_grid_is_set_up_without_waiting():
    with fake_mode(), Watch() as watch:
        vox_util = make_vox_util(Grid((0, 1, 0), (-24, 24, -4, 4, -16, 16), GRID), "cuda")
        assert vox_util.ref_to_mem(torch.empty((5, 3), device="cuda")).is_cuda
    assert watch.faults == [] and watch.count > 0


def test_the_watch_sees_what_waits():
    there = torch.zeros(3)
    with host() as own, fake_mode():
        tensor = torch.empty(3, device="cuda")
        for action in (
            tensor.cpu,
            lambda: there.to("cuda"),
            lambda: there.pin_memory().to("cuda"),
            lambda: there.clone().to("cuda", non_blocking=True),
            lambda: tensor.copy_(there.clone(), non_blocking=True),
            lambda: tensor.copy_(there.pin_memory()),
            lambda: torch.zeros(3),
        ):
            with Watch(own) as watch:
                action()
            assert len(watch.faults) == 1, watch.faults
        with Watch(own) as watch, pytest.raises(DataDependentOutputException):
            tensor.sum().item()
        assert len(watch.faults) == 1
        with Watch(own) as watch:
            (there < 0.5).pin_memory().to("cuda", non_blocking=True)
            tensor.copy_(there.pin_memory(), non_blocking=True)
            tensor[0] = 1.0
        assert watch.faults == [] and watch.sent == 2


def of_a_window(batch, frames):
    """The batch of `inputs` with so many keyframes in its windows."""
    for name in ("imgs", "intrins", "rots", "trans", "ref_T_ego"):
        value = getattr(batch, name)
        setattr(batch, name, value.expand(-1, frames, *value.shape[2:]).contiguous())
    batch.ego_T_now = torch.eye(4).repeat(len(batch.imgs), frames, 1, 1)
    batch.age_s, batch.is_real = torch.rand(2, frames), torch.ones(2, frames, dtype=torch.bool)
    batch.lidar_extra = torch.rand_like(batch.lidar_data)
    return batch


@pytest.mark.parametrize("what", ["past", "pillars"])
def test_a_past_and_pillars_never_wait(what):
    batch, flips = inputs()
    past = 2 if what == "past" else 0
    step, watch = SmallStep(grid(), use_lidar=False, past=past), Watch()
    if what == "pillars":
        step.network = Pillars(*GRID, latent_dim=8, encoder_type="effb0")
    with fake_mode():
        to_fake_cuda(step)
        batch = SimpleNamespace(**faked(vars(of_a_window(batch, 1 + past))), true_times=False, lenses=None)
        flips = Flips(**faked(vars(flips)))
        with watch:
            loss = step(batch, flips)
    assert loss.device.type == "cuda" and watch.faults == [] and watch.sent == 0
