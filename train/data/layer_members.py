"""Members of layers, keyframe by keyframe -> what Batch.layers holds."""

import numpy as np
import torch


def batched(frames, shape, device):
    """name -> {member: of all keyframes}.

    Args:
        frames: B * T dicts of name -> {member: array or bytes}, window after window. shape: B, T. device: of the tensors.
    Returns:
        Arrays whose shapes agree are one tensor (B,T,...). Others are a list of B lists of T tensors, and `num_MEMBER` (B,T)
        int64 says how long each is along the axis that differs: the last of `*.planes.zst`, the first of other arrays.
        Bytes are a list of B lists of T. What a keyframe lacks, of a layer that may lack it, is None in the list.
    """
    out = {}
    for name in dict.fromkeys(name for frame in frames for name in frame):
        own = [frame.get(name, {}) for frame in frames]
        out[name] = {}
        for member in dict.fromkeys(member for each in own for member in each):
            out[name] |= _one(member, [each.get(member) for each in own], shape, device)
    return out


def _one(member, values, shape, device):
    if all(isinstance(value, np.ndarray) for value in values) and len({(v.shape, v.dtype) for v in values}) == 1:
        stacked = torch.from_numpy(np.stack(values)).unflatten(0, shape)
        return {member: stacked.to(device, non_blocking=True)}
    is_array = any(isinstance(value, np.ndarray) for value in values)
    tensors = [
        torch.from_numpy(value.copy()).to(device, non_blocking=True) if isinstance(value, np.ndarray) else value
        for value in values
    ]
    out = {member: [tensors[at : at + shape[1]] for at in range(0, len(tensors), shape[1])]}
    if is_array:
        axis = -1 if member.endswith(".planes.zst") else 0
        lengths = [0 if value is None else (value.shape or (1,))[axis] for value in values]
        out[f"num_{member}"] = (
            torch.tensor(lengths, dtype=torch.int64).unflatten(0, shape).to(device, non_blocking=True)
        )
    return out
