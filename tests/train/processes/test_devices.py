"""Which device a process works on, and that nothing of it goes by way of another; without a GPU, by what torch is told."""

import pytest
import torch

from tests.fake_cuda import fake_mode, host
from train.loop import _on_its_way
from train.processes import distributed
from train.processes.distributed import Devices


@pytest.fixture
def two_gpus(monkeypatch):
    """As many as this machine seems to have, and the list of those that torch was told to work on."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("RANK", raising=False)
    return chosen


@pytest.mark.parametrize("name, ids", [("cuda:1", ()), ("cuda", (1,)), ("", (1,))])
def test_one_process_works_on_the_device_that_is_named_from_before_its_first_step(two_gpus, name, ids):
    seen = []
    distributed.launch(lambda world: seen.append((world.device, list(two_gpus))), (), Devices(name, ids, 1), None)
    cuda = torch.device("cuda", 1)
    assert seen == [(cuda, [cuda])]


def test_a_process_on_the_cpu_chooses_no_gpu(two_gpus):
    distributed.launch(lambda world: None, (), Devices("cpu", (), 1), None)
    assert two_gpus == []


def test_figures_are_there_when_the_stream_of_their_own_device_says_so():
    with host(), fake_mode():
        copied, event = _on_its_way(torch.empty((5, 3), dtype=torch.float64, device="cuda:1"))
    assert event.stream.device == torch.device("cuda:1") and copied.shape == (5, 3) and copied.device.type == "cpu"
