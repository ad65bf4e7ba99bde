"""Features at twice their size, bilinearly, behind finer ones of that size: as torch gives them, without its copies on CUDA."""

import torch
from torch.nn import functional as F

CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def doubled(coarse, fine=None):
    """The coarse features at twice their height and width, with the fine ones before them.

    Under autocast torch doubles and joins in float32, and rounds then; on CUDA the result here has the dtype of `coarse`,
    computed in float32 and rounded once, which is what the convolution behind it would get.

    Args:
        coarse: (N,C,h,w). fine: (N,D,2h,2w) of its dtype, or None.
    Returns:
        (N,D+C,2h,2w).
    """
    if coarse.is_cuda and not torch.compiler.is_compiling() and coarse.dtype in CUDA_DTYPES and coarse.numel():
        from train.model.upsampling.triton import join  # Triton is there where CUDA is

        coarse = coarse.contiguous(memory_format=torch.channels_last)
        if fine is not None:
            fine = fine.to(coarse.dtype).contiguous(memory_format=torch.channels_last)
        return join(coarse, fine)
    large = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return large if fine is None else torch.cat([fine, large], 1)
