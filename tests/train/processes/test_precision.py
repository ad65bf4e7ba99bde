"""What a precision means: TF32, cuDNN's choice of kernels, the order of weights in memory, bfloat16 where it pays."""

from types import SimpleNamespace

import pytest
import torch

from tests.small_step import SmallStep, grid, inputs
from train.model import Needs
from train.options import Options
from train.processes.precision import on_device, set_precision
from train.samples import Network, predict

TF32 = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def torch_s_own(monkeypatch):
    """The process's settings as some other code may have left them; they come back after the test."""
    places = [*((place, "allow_tf32", True) for place in TF32), (torch.backends.cudnn, "benchmark", False)]
    before = [getattr(place, name) for place, name, _ in places]
    for place, name, value in places:
        setattr(place, name, value)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    for (place, name, _), value in zip(places, before, strict=True):
        setattr(place, name, value)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision,rounds", [("fp32", False), ("", False), ("bf16", False), ("tf32", True)])
def test_fp32_means_fp32_and_cudnn_times_its_kernels_on_cuda(precision, rounds, device):
    set_precision(Options(precision=precision), torch.device(device))
    assert [place.allow_tf32 for place in TF32] == [rounds, rounds]
    assert torch.backends.cudnn.benchmark is (device == "cuda")
    set_precision(Options(precision=precision, deterministic=True), torch.device(device))
    assert not torch.backends.cudnn.benchmark and torch.are_deterministic_algorithms_enabled()


class Asks(torch.nn.Module):
    """A network that notes whether it may round to TF32."""

    needs = Needs(lidar=False, radar=False)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch, grid):
        self.seen += [place.allow_tf32 for place in TF32]
        return {"seg": torch.zeros_like(batch.seg_bev[:, 0])}


def test_predictions_from_python_are_fp32_and_leave_the_process_as_it_was():
    """As from a notebook and train.show, which set nothing up before."""
    network, (batch, _) = Asks(), inputs()
    batch.facts = [[SimpleNamespace(key="one")] for _ in batch.seg_bev]
    assert (
        predict(Network(Options(), network, 1, torch.device("cpu")), batch, grid())[0].shape == batch.seg_bev.shape[3:]
    )
    assert network.seen == [False] * 2 and all(place.allow_tf32 for place in TF32)


def test_convolutions_are_channels_last_in_bfloat16_alone():
    network = SmallStep(grid()).network
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    kernels = [
        p for p in network.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1
    ]  # of the rest there is one order
    assert len(kernels) > 20
    on_device(network, "cpu")
    assert all(p.is_contiguous() for p in network.parameters())
    on_device(network, "cpu", torch.bfloat16)
    assert all(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_encoder_upsamples_in_the_precision_of_the_network(dtype):
    encoder, seen = SmallStep(grid()).network.encoder, []
    encoder.upsampling_layer.register_forward_hook(lambda _, args, out: seen.extend(a.dtype for a in (*args, out)))
    encoder.upsampling_layer.conv.register_forward_hook(
        lambda _, args, out: seen.append(args[0].dtype)
    )  # doubled, joined
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        assert encoder(torch.rand(1, 3, 64, 96)).dtype == (dtype or torch.float32)
    assert seen == [dtype or torch.float32] * 4
