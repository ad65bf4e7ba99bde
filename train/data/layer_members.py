"""Members of layers, keyframe by keyframe -> what Batch.layers holds."""

import numpy as np
import torch

from common.errors import InputError

_WIDER = {np.dtype("u2"): np.dtype("i4"), np.dtype("u4"): np.dtype("i8")}


def batched(frames, shape, device):
    """name -> {member: of all keyframes}.

    Args:
        frames: B * T dicts of name -> {member: array or bytes}, window after window. shape: B, T. device: of the tensors.
    Returns:
        Arrays whose shapes agree are one tensor (B,T,...). Others are a list of B lists of T tensors, and `num_MEMBER` (B,T)
        int64 says how long each is along the axis that differs: the last of `*.planes.zst`, the first of other arrays.
        Of an array of rows with several fields each field is so, in a dict by its name. Integers keep their type but uint16 and
        uint32, which torch hardly computes with: they are int32 and int64. Bytes are a list of B lists of T. What a keyframe
        lacks, of a layer that may lack it, is None in the list.
    """
    out = {}
    for name in dict.fromkeys(name for frame in frames for name in frame):
        own = [frame.get(name, {}) for frame in frames]
        out[name] = {}
        for member in dict.fromkeys(member for each in own for member in each):
            values = [each.get(member) for each in own]
            out[name][member] = _together(values, f"layer {name}: {member}", shape, device)
            if (lengths := _lengths(member, values)) is not None:
                out[name][f"num_{member}"] = (
                    torch.tensor(lengths, dtype=torch.int64).unflatten(0, shape).to(device, non_blocking=True)
                )
    return out


def _together(values, what, shape, device):
    """One tensor, or a list of lists, of one member; of an array with fields a dict of them."""
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    fields = {array.dtype.names for array in arrays}
    if len(fields) > 1:
        raise InputError(
            f"{what} has fields {' and '.join(map(str, fields))} in different keyframes; make the layer anew"
        )
    if fields and None not in fields:
        parts = {name: [None if value is None else value[name] for value in values] for name in fields.pop()}
        return {name: _together(own, what, shape, device) for name, own in parts.items()}
    if len(arrays) == len(values) and _agree(arrays):
        return torch.from_numpy(_computable(np.stack(arrays))).unflatten(0, shape).to(device, non_blocking=True)
    tensors = [
        torch.from_numpy(_computable(value.copy())).to(device, non_blocking=True)
        if isinstance(value, np.ndarray)
        else value
        for value in values
    ]
    return [tensors[at : at + shape[1]] for at in range(0, len(tensors), shape[1])]


def _lengths(member, values):
    """How long each keyframe's array is, where they are no one tensor; None where they are, and of bytes."""
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if not arrays or (len(arrays) == len(values) and _agree(arrays)):
        return None
    axis = -1 if member.endswith(".planes.zst") else 0
    return [0 if value is None else (value.shape or (1,))[axis] for value in values]


def _agree(arrays):
    return len({(array.shape, array.dtype) for array in arrays}) == 1


def _computable(array):
    """The array in a type that torch computes with."""
    return array.astype(_WIDER[array.dtype]) if array.dtype in _WIDER else array
