"""Modules that bear no half precision, inside a network that is otherwise computed in it."""

import inspect

import torch

from common.errors import InputError


def in_float32(network):
    """Have the modules that network.float32_modules names (itself or their names) compute in float32 under autocast too."""
    modules = dict(network.named_modules())
    for item in getattr(network, "float32_modules", ()):
        module = modules.get(item) if isinstance(item, str) else item
        if module is None:
            raise InputError(f"float32_modules: {type(network).__name__} has no module {item}")
        if not isinstance(module.forward, _Float32):
            module.forward = _Float32(module.forward)


class _Float32:
    """A module's forward outside autocast, half-precision inputs widened."""

    def __init__(self, forward):
        self.forward, self.__signature__ = forward, inspect.signature(forward)

    def __call__(self, *args, **kwargs):
        args, kwargs = torch.utils._pytree.tree_map(_widened, (args, kwargs))
        tensors = [v for v in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        with torch.autocast(tensors[0].device.type if tensors else "cpu", enabled=False):
            return self.forward(*args, **kwargs)


def _widened(value):
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
