"""BEV label maps on the device: everything that follows from the drawn box numbers and the boxes themselves."""

import math
from dataclasses import dataclass

import torch

CENTER_RADIUS_CELLS = 3.0  # sigma of the centre's heat
CENTER_FLOOR = 0.001  # heat below this is none
_FAR = 1e9  # squared cells; its heat is zero
_COLD = -4 * CENTER_RADIUS_CELLS**2 * math.log(CENTER_FLOOR)  # squared cells whose heat is far below the floor


@dataclass
class Targets:
    """Label maps, all float32: seg, valid (B,K,Z,X), box, center (B,1,Z,X), offset (B,2,Z,X)."""

    seg: torch.Tensor
    valid: torch.Tensor
    box: torch.Tensor
    center: torch.Tensor
    offset: torch.Tensor


def bev_targets(numbers, valid, lrt_ref, num_boxes, vox_util, seg=None):
    """Derive the label maps, batched over samples and boxes; nothing here waits for a GPU.

    Args:
        numbers: (B,Z,X) integer map of box number + 1, 0 elsewhere. valid: (B,Z,X) or, of K classes, (B,K,Z,X), 0 where masked.
        lrt_ref: (B,N,19) float32 boxes in ref, metres, padded. num_boxes: (B,) true counts.
        vox_util: VoxUtil whose Z, Y, X grid the maps have. seg: (B,K,Z,X) of several classes; None for one, where any box is.
    Returns:
        Targets. As in the benchmark, offset is twice the cells from the rounded centre.
    """
    _, rows, columns = numbers.shape
    cells = vox_util.ref_to_mem(_centers(lrt_ref)).round()  # x, y, z
    picked = _of_box_on_top(numbers, cells)
    any_box = (numbers > 0).float()[:, None]
    grid_x = torch.arange(columns, device=numbers.device, dtype=torch.float32)
    grid_z = torch.arange(rows, device=numbers.device, dtype=torch.float32)[:, None]
    return Targets(
        seg=any_box if seg is None else seg.float(),
        valid=valid.float() if valid.dim() == 4 else valid.float()[:, None],
        box=any_box,
        center=_center_heat(cells, num_boxes, (rows, vox_util.Y, columns)),
        offset=2 * any_box * torch.stack([grid_x - picked[:, 0], grid_z - picked[:, 2]], 1),
    )


def box_maps(numbers, lrt_ref):
    """Maps of the boxes' own figures, which no loss uses; arguments as in bev_targets.

    Returns:
        dict of float32 maps: size (B,3,Z,X) l, w, h; ry (B,1,Z,X) the heading of the box's x axis about ref's Y, plus a
        quarter turn, in [-pi, pi]; ycoord (B,1,Z,X) height of the centre along ref's Y.
    """
    ref_T_box = lrt_ref[..., 3:].unflatten(-1, (4, 4))
    heading = torch.atan2(ref_T_box[..., 0, 0], ref_T_box[..., 2, 0]) + math.pi / 2
    heading = torch.atan2(torch.sin(heading), torch.cos(heading))
    table = torch.cat([lrt_ref[..., :3], heading[..., None], _centers(lrt_ref)[..., 1:2]], -1)
    size, ry, ycoord = _of_box_on_top(numbers, table).split([3, 1, 1], 1)
    return {"size": size, "ry": ry, "ycoord": ycoord}


def _centers(lrt_ref):
    return lrt_ref[..., 3:].unflatten(-1, (4, 4))[..., :3, 3]


def _of_box_on_top(numbers, table):
    """(B,C,Z,X): the figures (B,N,C) of the box that lies on top of each cell, zero where none does."""
    # Row 0 is the background's.
    table = torch.cat([table.new_zeros(len(table), 1, table.shape[2]), table], 1)
    flat = numbers.flatten(1).long()[:, None].expand(-1, table.shape[2], -1)
    return table.transpose(1, 2).gather(2, flat).unflatten(2, numbers.shape[1:])


def _center_heat(cells, num_boxes, grid):
    """exp(-d^2 / 2 sigma^2) of the nearest centre, d in cells of the 3D grid, the best over its height.

    The nearest centre is searched before the exponential, which is then taken once per cell, not once per box and cell.
    """
    rows, levels, columns = grid
    batch, boxes, _ = cells.shape
    if boxes == 0:
        return torch.zeros((batch, 1, rows, columns), device=cells.device)
    x, y, z = cells.unbind(-1)

    def squared(n, centre):
        return (torch.arange(n, device=cells.device, dtype=torch.float32) - centre[..., None]) ** 2

    height = squared(levels, y).amin(-1)
    is_padding = torch.arange(boxes, device=cells.device) >= num_boxes[:, None]
    height = torch.where(is_padding, _FAR, height)
    dz, dx = squared(rows, z) + height[..., None], squared(columns, x)
    least = _least_sum(dz, dx).clamp_(max=_COLD)  # results below float32's normal range would take ten times as long
    heat = torch.exp(least / (-2 * CENTER_RADIUS_CELLS**2))
    return torch.where(heat < CENTER_FLOOR, 0.0, heat)[:, None]


def _least_sum(dz, dx):
    """(B,N,Z), (B,N,X) -> (B,Z,X): the least of dz + dx over N >= 1."""
    if dz.device.type != "cpu":
        return (dz[:, :, :, None] + dx[:, :, None, :]).amin(1)
    # Box by box: what is added up stays in the processor's cache.
    out = dz[:, 0, :, None] + dx[:, 0, None, :]
    each = torch.empty_like(out)
    for n in range(1, dz.shape[1]):
        torch.minimum(out, torch.add(dz[:, n, :, None], dx[:, n, None, :], out=each), out=out)
    return out
