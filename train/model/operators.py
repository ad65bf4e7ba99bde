"""Operators of torch's for our kernels, defined plainly.

torch.library.custom_op wraps what it defines in checks that cost the host some 0.1 ms per call, more than kernels on small
tensors take; at a hundred norms in a step a GPU would wait for it.
"""

import torch

_LIBRARY = torch.library.Library("bevshards", "FRAGMENT")


def operator(schema, run, fake):
    """Define bevshards::NAME and return it.

    Args:
        schema: "NAME(Tensor x, …) -> Tensor", in torch's notation. run: the function on tensors of a CUDA device, or, under
            Triton's interpreter, of the CPU. fake: of fake tensors, the same results without values.
    """
    _LIBRARY.define(schema)
    name = schema.partition("(")[0]
    for kind in ("CUDA", "CPU"):
        _LIBRARY.impl(name, run, kind)
    torch.library.register_fake(f"bevshards::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.bevshards, name).default
