"""Flipping some items of a batch, and undoing it: what is mirrored besides the cells changes its sign."""

import torch


def flip_where(which, x, dim):
    """x, with the items flipped along `dim` where `which` says so; never in place, never waiting for the device."""
    return torch.where(which.reshape(which.shape + (1,) * (x.dim() - which.dim())), x.flip(dim), x)


def unflipped(bev, flips, along_x=(), along_z=()):
    """A BEV map with the flips of its input undone: cells go back to their places, and vectors are mirrored with them.

    Args:
        bev: (B,C,Z,X), flipped as `flips` (Flips on its device) say: what a network made of flipped features.
        along_x, along_z: channels that hold a component along X or Z, such as 0 and 1 of offsets or velocities, or the sine of
            a heading: they change their sign with a flip along that axis.
    Returns:
        (B,C,Z,X).
    """
    for which, dim, channels in ((flips.bev_z, -2, along_z), (flips.bev_x, -1, along_x)):
        mirrored = bev.flip(dim)
        if channels:
            signs = torch.stack([mirrored.new_full((), -1.0 if c in channels else 1.0) for c in range(bev.shape[1])])
            mirrored = mirrored * signs[:, None, None]
        bev = torch.where(which[:, None, None, None], mirrored, bev)
    return bev
