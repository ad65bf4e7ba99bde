"""BEV label maps on the device: everything that follows from the drawn box numbers and the boxes themselves."""

import math
from dataclasses import dataclass

import torch

CENTER_RADIUS_CELLS = 3.0  # sigma of the centre's heat
CENTER_FLOOR = 0.001  # heat below this is none
_FAR = 1e9  # squared cells; its heat is zero


@dataclass
class Targets:
    """Label maps, all float32: seg, valid, center, ry, ycoord (B,1,Z,X), offset (B,2,Z,X), size (B,3,Z,X)."""

    seg: torch.Tensor
    valid: torch.Tensor
    center: torch.Tensor
    offset: torch.Tensor
    size: torch.Tensor
    ry: torch.Tensor
    ycoord: torch.Tensor


def bev_targets(numbers, valid, lrt_cam, num_boxes, vox_util):
    """Derive the label maps, batched over samples and boxes.

    Args:
        numbers: (B,Z,X) integer map of box number + 1, 0 elsewhere. valid: (B,Z,X), 0 where masked.
        lrt_cam: (B,N,19) float32 boxes in cam0, metres, padded. num_boxes: (B,) true counts.
        vox_util: VoxUtil whose Z, Y, X grid the maps have.
    Returns:
        Targets. As in the benchmark, offset is twice the cells from the rounded centre, and ry is the heading of the
        box's x axis about cam0's Y, plus a quarter turn, in [-pi, pi].
    """
    batch, rows, columns = numbers.shape
    boxes = lrt_cam.shape[1]
    numbers = numbers.long()
    lengths, cam_T_box = lrt_cam[..., :3], lrt_cam[..., 3:].reshape(batch, boxes, 4, 4)
    centers = cam_T_box[..., :3, 3]
    cells = vox_util.ref_to_mem(centers).round()  # x, y, z
    heading = torch.atan2(cam_T_box[..., 0, 0], cam_T_box[..., 2, 0]) + math.pi / 2
    heading = torch.atan2(torch.sin(heading), torch.cos(heading))

    # Row 0 is the background's.
    table = torch.cat([lengths, heading[..., None], centers[..., 1:2], cells[..., [0, 2]]], -1)
    table = torch.cat([table.new_zeros(batch, 1, table.shape[-1]), table], 1)
    picked = table.gather(1, numbers.view(batch, -1, 1).expand(-1, -1, table.shape[-1]))
    picked = picked.view(batch, rows, columns, -1).permute(0, 3, 1, 2)

    seg = (numbers > 0).float()[:, None]
    grid_x = torch.arange(columns, device=numbers.device, dtype=torch.float32)
    grid_z = torch.arange(rows, device=numbers.device, dtype=torch.float32)[:, None]
    offset = 2 * seg * torch.stack([grid_x - picked[:, 5], grid_z - picked[:, 6]], 1)
    return Targets(
        seg=seg,
        valid=valid.float()[:, None],
        center=_center_heat(cells, num_boxes, (rows, vox_util.Y, columns)),
        offset=offset,
        size=picked[:, :3],
        ry=picked[:, 3:4],
        ycoord=picked[:, 4:5],
    )


def _center_heat(cells, num_boxes, grid):
    """exp(-d^2 / 2 sigma^2) of the nearest centre, d in cells of the 3D grid, the best over its height.

    The nearest centre is searched before the exponential, which is then taken once a cell, not once a box and cell.
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
    nearest = (dz[:, :, :, None] + dx[:, :, None, :]).amin(1)
    heat = torch.exp(-nearest / (2 * CENTER_RADIUS_CELLS**2))
    return torch.where(heat < CENTER_FLOOR, 0.0, heat)[:, None]
