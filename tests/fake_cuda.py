"""A CUDA device that is not there: fake tensors, page-locked memory, and a watch on what would make the host wait."""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten::equal")


def fake_mode():
    """Tensors made within are fake, on devices that need not be there; real ones, of the host, may be sent to these."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def faked(tensors):
    """Dict of fake CUDA tensors like those of a dict of tensors, None and other values left out; within fake_mode()."""
    tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    return {name: torch.empty(t.shape, dtype=t.dtype, device="cuda") for name, t in tensors.items()}


class Event:
    """Of a device that has always done what it was given."""

    def record(self, stream=None):
        self.stream = stream

    def query(self):
        return True


class Stream:
    """Of such a device; notes the calls that order it or make the host wait, those of all streams in one list."""

    def __init__(self, device=None, calls=None):
        self.device, self.calls = device, [] if calls is None else calls

    def wait_event(self, event):
        self.calls.append(("wait_event", self.device))

    def synchronize(self):
        self.calls.append(("synchronize", self.device))


class Host:
    """Host memory that the code asked torch to page-lock; within `host()`."""

    def __init__(self):
        self.locked = []  # tensors over it, which keep it
        self.calls = []  # of Streams

    def lock(self, tensor):
        self.locked.append(tensor)
        return tensor

    def is_locked(self, tensor):
        """Whether a tensor of the host lies in such memory."""
        if isinstance(tensor, FakeTensor):
            return False
        place = tensor.data_ptr()
        return any(own.data_ptr() <= place < own.data_ptr() + own.nbytes for own in self.locked)


@contextmanager
def host():
    """What of torch needs a GPU though it is about the host: page-locked memory, events and the current stream; a Host."""
    found, empty = Host(), torch.empty

    def empty_of(*size, pin_memory=False, **options):
        if not pin_memory:
            return empty(*size, **options)
        with _disable_current_modes():  # it is the host's, and real
            return found.lock(empty(*size, **options))

    with (
        patch.object(torch, "empty", empty_of),
        patch.object(torch.Tensor, "pin_memory", lambda tensor: found.lock(tensor.clone())),
        patch.object(torch.cuda, "Event", Event),
        patch.object(torch.cuda, "current_stream", lambda device=None: Stream(device, found.calls)),
    ):
        yield found


class Watch(TorchDispatchMode):
    """Counts what a device is given to do, and notes what waits for it, goes to and fro, or makes something on the CPU.

    It is entered within fake_mode(). What the host alone does to real tensors, such as random draws, stays real and is its own
    affair; what is made anew on the CPU is not.

    Args:
        host: Host, that knows what memory is page-locked; without it none is.
    """

    def __init__(self, host=None):
        super().__init__()
        # count: operations, but for views. sent: copies from the host.
        self.host, self.count, self.sent, self.faults = host or Host(), 0, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, given = func.name(), [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if given and not any(isinstance(t, FakeTensor) for t in given) and kwargs.get("device") is None:
            with _disable_current_modes():
                return func(*args, **kwargs)
        if any(word in name for word in WAITING):
            self.faults.append(f"{name} waits for the device")
        out = func(*args, **kwargs)
        self.count += not (name.startswith("prim::") or _is_view(func))
        devices = {t.device.type for t in given if t.dim()}
        made = {t.device.type for t in tree_leaves(out) if isinstance(t, torch.Tensor)}
        if len(devices | made) > 1:
            self._copied(name, func, args, kwargs, given, f"{name} from {devices} to {made}")
        elif "cpu" in made:
            self.faults.append(f"{name} on the CPU")
        return out

    def _copied(self, name, func, args, kwargs, given, what):
        """Only a copy that is said not to block, and from memory that is page-locked, does not wait."""
        is_asked = kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:] == (True,))
        source = given[1] if name == "aten::copy_" else given[0]
        if not is_asked:
            self.faults.append(what)
        elif source.device.type == "cpu":
            self.sent += 1
            if not self.host.is_locked(source):
                self.faults.append(f"{what}, which is not page-locked")


def _is_view(func):
    returns = func._schema.returns
    return bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
