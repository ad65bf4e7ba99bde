"""The memory that training the built-in network takes on the CPU, by the shapes of its tensors: nothing is computed.

An update runs on fake tensors while the bytes that are alive are counted. What a process holds besides them is counted too:
oneDNN's convolutions work on copies of what they get, in an order of their own; the loader decodes and makes batches ahead;
and memory that tensors gave back stays the process's, in pieces that the next ones do not fill.
"""

import weakref
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.geometry import merge_rt, rigid_inverse
from train.classes import POSITIVES
from train.data import Grid, make_vox_util
from train.data.loader import BATCHES_AHEAD
from train.model.interface import build_network, complete, find_network
from train.options import Options
from train.processes.ranks import cores
from train.step import LossStep

CAMERAS, IMAGE_HW = 6, (900, 1600)  # of nuScenes
POINTS_PER_SWEEP, RADAR_POINTS_PER_SWEEP = 35_000, 600
# Bytes of glibc's heap, see precision.keep_freed_memory, over those in use at its fullest. Measured 1.14 to 1.28; 1.6 of a
# wide image in effb0, whose largest tensors are all of one size.
HEAP_OVER_USED = 1.35


class _Alive(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and oneDNN's copies, in a FakeTensorMode; peak: the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self._copied(*args[:2], out)
        elif func is torch.ops.aten.convolution_backward.default:
            (grad_x, grad_weight, _), (grad, x, weight) = out, args[:3]
            self._copied(grad, weight, grad_x)
            self._made(grad_x)
            self._copied(grad, x, grad_weight)
        for tensor in tree_leaves(out):
            self._made(tensor)
        return out

    def _copied(self, *tensors):
        """The arguments and the result of a convolution are there a second time; those in channels-last order are not."""
        copies = [t.nbytes for t in tensors if t is not None and t.is_contiguous()]
        self.peak = max(self.peak, self.now + sum(copies))

    def _made(self, tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage() in self._known:
            return
        storage = tensor.untyped_storage()
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size):
        self.now -= size


def training_bytes(options, image_hw=IMAGE_HW):
    """(bytes that training with these Options adds to a process on the CPU, those more while it writes a checkpoint).

    None where this is not known: of another network than Simple-BEV without a past, in bfloat16, compiled, in several
    processes. image_hw: of the stored images.
    """
    is_float32 = options.autocast_on(torch.device("cpu")) is None
    if options.model != Options.model or options.past:
        return None
    if not is_float32 or options.compile or len(options.device_ids) > 1:
        return None
    used, parameters = _used_bytes(options)
    height, width = options.data_aug_conf()["final_dim"]
    frame = 3 * (options.ncams or len(options.cams) or CAMERAS)
    batch = 4 * options.batch_size * frame * height * width
    threads = [options.nworkers, options.nworkers_val][: 1 + options.do_val]
    # A loader has a frame being decoded in each thread; the batch in use, one that is ready and those on their way.
    loaders = [min(n, cores()) * frame * image_hw[0] * image_hw[1] + (BATCHES_AHEAD + 3) * batch for n in threads]
    return int(HEAP_OVER_USED * used) + sum(loaders), 3 * parameters


def _used_bytes(options):
    """(most bytes that an update holds, those of the parameters)."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Alive() as alive:
        grid = make_vox_util(Grid.of(options))
        network = build_network(find_network(options.model), options, grid)
        network.needs, options = complete(network.needs, options)
        step = LossStep(network, grid, rand_flip=options.rand_flip).train()
        trained = [p for p in network.parameters() if p.requires_grad]
        # From the second update on there are the optimizer's two moments, from the second batch of an update on gradients.
        held = [torch.empty_like(p) for p in trained for _ in range(2 + (options.grad_acc > 1))]
        loss, figures, outputs = step(_batch(options))
        loss.backward()
        del held, figures, outputs
    return alive.peak, sum(p.nbytes for p in trained)


def _batch(options):
    """A batch of these options' shapes, as the loader gives it."""
    size, cameras = options.batch_size, options.ncams or len(options.cams) or CAMERAS
    lidar, radar = POINTS_PER_SWEEP * options.nsweeps, RADAR_POINTS_PER_SWEEP * options.nsweeps
    plane = (options.Z, options.X)
    classes = len(options.classes) or 1
    batch = SimpleNamespace(
        imgs=torch.rand((size, 1, cameras, 3, *options.data_aug_conf()["final_dim"])),
        intrins=torch.rand((size, 1, cameras, 4, 4)),
        rots=torch.rand((size, 1, cameras, 3, 3)),
        trans=torch.rand((size, 1, cameras, 3)),
        lidar_data=torch.rand((size, 1, 3, lidar)) if options.use_lidar else None,
        num_lidar=torch.full((size, 1), lidar),
        radar_data=torch.rand((size, 1, 19, radar)) if options.use_radar else None,
        num_radar=torch.full((size, 1), radar),
        seg_bev=torch.rand((size, 1, classes, *plane)),
        valid_bev=torch.rand((size, 1, classes, *plane)),
        box_bev=torch.rand((size, 1, 1, *plane)),
        class_weights=(1.0,) * classes,
        class_positives=(POSITIVES,) * classes,
        center_bev=torch.rand((size, 1, 1, *plane)),
        offset_bev=torch.rand((size, 1, 2, *plane)),
        indices=list(range(size)),
        epoch=0,
        true_times=False,
    )
    batch.ref_T_ego = rigid_inverse(merge_rt(batch.rots[:, :, 0], batch.trans[:, :, 0]))
    return batch
