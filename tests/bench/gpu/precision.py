"""bfloat16 against float32, on one batch: geometry and voxels are the same bits, the loss is nearly the same."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from train.processes.precision import on_device, set_precision
from train.setup import make_loaders, make_network
from train.step import LossStep

# Operations of the camera mean that take geometry, and which of their arguments is the features' (none of it).
OPERATIONS = {"bevshards::gather_voxels": 1, "bevshards::find_pairs": 0}


def compare(settings, rows):
    """Cameras and lidar, since lidar's voxels are geometry too."""
    options = settings.options(use_lidar=True, batch_size=settings.batch)
    device = torch.device(settings.device)
    set_precision(options, device)
    torch.backends.cudnn.benchmark = False  # one step in float32 is quick; trying every kernel for it takes minutes
    network, options = make_network(options)
    train, _, grid = make_loaders(options, device)
    batch = next(iter(train))
    runs = [_run(on_device(network, device, dtype), grid, dtype, batch) for dtype in (None, torch.bfloat16)]
    (exact, geometry, voxels), (half, theirs, other) = runs
    same = bool(geometry) and len(geometry) == len(theirs)
    same = same and all(torch.equal(a, b) for a, b in zip(geometry, theirs, strict=True))
    rows.add("geometry of the camera mean is the same bits", int(same), "", ">= 1")
    rows.add("lidar's voxels are the same bits", int(torch.equal(voxels, other) and bool(voxels.any())), "", ">= 1")
    rows.add("loss in float32", exact)
    rows.add("loss in bfloat16", half)
    rows.add("relative difference of the losses", abs(half / exact - 1), "", "<= 0.05")


def _run(network, grid, dtype, batch):
    """(loss, tensors of geometry that the camera mean got, lidar's voxels) of the batch in training, with its flips."""
    voxels = []
    hook = network.register_forward_pre_hook(lambda _, arguments: voxels.append(arguments[0].lidar_voxels))
    with _Geometry() as seen:
        loss = LossStep(network, grid, dtype).train()(batch)[0]
    hook.remove()
    return loss.item(), seen.tensors, voxels[0]


class _Geometry(TorchDispatchMode):
    """Keeps what the camera mean is given besides features."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        if name in OPERATIONS:
            self.tensors += [a.clone() for a in args[OPERATIONS[name] :] if isinstance(a, torch.Tensor)]
        return func(*args, **(kwargs or {}))
