"""The camera mean in operators that every runtime has: what stands in Segnet.unprojection while it is exported.

Sampled takes calibration as it comes: a 4-D GridSample per camera. Tall and Gathered hold what one calibration makes of it as
constants: every voxel's cameras are few (two at most, of six that look outwards), so two samplings of the cameras' maps, one
under another, do for all; or each voxel's pixels and their weights, by Gather. A camera counts where it has some weight, as in
the fused mean; in none of them does a shape or a branch depend on a value.

Voxels run Y, Z, X: the sampled volume then lies in memory as the compressor's convolution reads it, heights within features.

Shape legend: B batch, S cameras, C features, h and w rows and columns of feature maps, N = Y*Z*X voxels, V the most cameras
that see one voxel.
"""

import torch
import torch.nn.functional as F
from torch import nn

from common.vox import project, sampling_coordinate
from train.model.camera_mean.reference import COUNT_FLOOR

OUTSIDE = -2.0  # coordinate of GridSample from which no pixel is near enough to have a weight


class View(nn.Module):
    """A camera mean that Segnet takes as its unprojection; subclasses have volume, whose arguments are those of mean."""

    def mean(self, feats, pix_T_refs, cams_T_ref, grid, lenses=None):
        """As train.model.camera_mean.camera_mean, without flips: (B,C,Z,Y,X)."""
        return self.volume(feats.float(), pix_T_refs, cams_T_ref, grid, lenses).transpose(2, 3)

    def convolved(self, feats, pix_T_refs, cams_T_ref, grid, kernels, lenses=None):
        """As train.model.camera_mean.convolved_mean, without flips: (B,O,Z,X)."""
        volume = self.volume(feats.float(), pix_T_refs, cams_T_ref, grid, lenses).flatten(1, 2)
        return F.conv2d(volume, kernels.permute(1, 2, 0, 3, 4).flatten(1, 2), padding=kernels.shape[-1] // 2)


class Sampled(View):
    """Calibration is an input; right for any."""

    def volume(self, feats, pix_T_refs, cams_T_ref, grid, lenses=None):
        """(B,C,Y,Z,X) float32."""
        across, down, seen = _places(pix_T_refs, cams_T_ref, lenses, grid, feats.shape[-2:])
        where = torch.stack([torch.where(seen, across, OUTSIDE), down], -1).unflatten(2, (grid.Y * grid.Z, grid.X))
        total = 0
        for s in range(feats.shape[1]):
            total = total + F.grid_sample(feats[:, s], where[:, s], align_corners=False)
        total = total * (1 / (seen.float().sum(1) + COUNT_FLOOR)).view(-1, 1, grid.Y * grid.Z, grid.X)
        return total.unflatten(2, (grid.Y, grid.Z))


class Tall(View):
    """One calibration; V samplings of all cameras' maps, one under another with a row of zeros between.

    Args:
        feat_hw: h, w. pix_T_refs, cams_T_ref: (1,S,4,4) of the calibration. grid: VoxUtil. lenses: of camera_mean.
    """

    def __init__(self, feat_hw, pix_T_refs, cams_T_ref, grid, lenses=None):
        super().__init__()
        height, cameras = feat_hw[0], pix_T_refs.shape[1]
        across, down, seen = (v[0] for v in _places(pix_T_refs, cams_T_ref, lenses, grid, feat_hw))
        rows = cameras * (height + 1)
        # Of rows of all maps instead of one: half a pixel lies over the first row here as there.
        down = ((down + 1) * height + 2 * (height + 1) * torch.arange(cameras)[:, None]) / rows - 1
        wheres = []
        for camera, some in _by_turns(seen):
            x, y = (v.gather(0, camera)[0] for v in (across, down))
            wheres.append(torch.stack([torch.where(some, x, OUTSIDE), y], -1))
        shape = (grid.Y * grid.Z, grid.X)
        self.register_buffer("wheres", torch.stack(wheres).unflatten(1, shape)[:, None])
        self.register_buffer("shares", (1 / (seen.float().sum(0) + COUNT_FLOOR)).view(1, 1, *shape))

    def volume(self, feats, pix_T_refs, cams_T_ref, grid, lenses=None):
        """(B,C,Y,Z,X) float32."""
        maps = F.pad(feats, (0, 0, 0, 1)).transpose(1, 2).flatten(2, 3)
        total = 0
        for where in self.wheres:
            total = total + F.grid_sample(maps, where.expand(maps.shape[0], -1, -1, -1), align_corners=False)
        return (total * self.shares).unflatten(2, (grid.Y, grid.Z))


class Gathered(View):
    """One calibration; of each voxel 4 V rows of the features, one pixel a row, with constant weights. Arguments as Tall's."""

    def __init__(self, feat_hw, pix_T_refs, cams_T_ref, grid, lenses=None):
        super().__init__()
        height, width = feat_hw
        across, down, seen = (v[0] for v in _places(pix_T_refs, cams_T_ref, lenses, grid, feat_hw))
        x, y = _pixel(across, width), _pixel(down, height)
        share = 1 / (seen.float().sum(0) + COUNT_FLOOR)
        rows, weights = [], []
        for camera, some in _by_turns(seen):
            own_x, own_y = x.gather(0, camera)[0], y.gather(0, camera)[0]
            for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
                column, row = own_x.floor() + right, own_y.floor() + below
                inside = some & (column >= 0) & (column < width) & (row >= 0) & (row < height)
                weights.append((1 - (own_x - column).abs()) * (1 - (own_y - row).abs()) * inside * share)
                pixel = (camera[0] * height + row.clamp(0, height - 1).long()) * width
                rows.append(pixel + column.clamp(0, width - 1).long())
        self.register_buffer("rows", torch.stack(rows))
        self.register_buffer("weights", torch.stack(weights)[..., None])

    def volume(self, feats, pix_T_refs, cams_T_ref, grid, lenses=None):
        """(B,C,Y,Z,X) float32."""
        table = feats.permute(0, 1, 3, 4, 2).flatten(1, 3)
        total = 0
        for rows, weights in zip(self.rows, self.weights, strict=True):
            total = total + table.index_select(1, rows) * weights
        return total.transpose(1, 2).unflatten(2, (grid.Y, grid.Z, grid.X))


BAKED = (Tall, Gathered)


class Witness(View):
    """Notes what it is called with: calls, a list of (feats, pix_T_refs, cams_T_ref, kernels or None, lenses)."""

    def __init__(self):
        super().__init__()
        self.calls, self.view = [], Sampled()

    def mean(self, feats, pix_T_refs, cams_T_ref, grid, lenses=None):
        self.calls.append((feats, pix_T_refs, cams_T_ref, None, lenses))
        return self.view.mean(feats, pix_T_refs, cams_T_ref, grid, lenses)

    def convolved(self, feats, pix_T_refs, cams_T_ref, grid, kernels, lenses=None):
        self.calls.append((feats, pix_T_refs, cams_T_ref, kernels, lenses))
        return self.view.convolved(feats, pix_T_refs, cams_T_ref, grid, kernels, lenses)


def _centers(grid, device):
    """(N,3) float32 voxel centres in ref, in the order Y, Z, X."""
    axes = (torch.arange(n, dtype=torch.float32, device=device) for n in (grid.Y, grid.Z, grid.X))
    y, z, x = torch.meshgrid(*axes, indexing="ij")
    return grid.mem_to_ref(torch.stack([x, y, z], -1).reshape(-1, 3))


def _places(pix_T_refs, cams_T_ref, lenses, grid, feat_hw):
    """GridSample's coordinates of each voxel in each camera, across and down, and whether it has some weight: (B,S,N)."""
    shape, (height, width) = pix_T_refs.shape[:2], feat_hw
    pix_T_refs, cams_T_ref = pix_T_refs.flatten(0, 1), cams_T_ref.flatten(0, 1)
    lenses = None if lenses is None else lenses.flatten(0, 1)
    x, y, valid = project(_centers(grid, pix_T_refs.device), pix_T_refs, cams_T_ref, feat_hw, lenses)
    across, down = sampling_coordinate(x, width), sampling_coordinate(y, height)
    for coordinate, size in ((across, width), (down, height)):
        pixel = _pixel(coordinate, size)
        valid = valid & (pixel > -1) & (pixel < size)
    return across.unflatten(0, shape), down.unflatten(0, shape), valid.unflatten(0, shape)


def _pixel(coordinate, size):
    """Where GridSample looks along an axis of that many pixels."""
    return ((coordinate + 1) * size - 1) / 2


def _by_turns(seen):
    """Of (S,N) bool, turn by turn until every camera had its own: a camera (1,N) int64 that sees each voxel, some (N,) bool."""
    left = seen.float()
    for _ in range(max(int(seen.sum(0).max()), 1)):
        camera = left.argmax(0, keepdim=True)
        yield camera, left.gather(0, camera)[0] > 0
        left = left.scatter(0, camera, 0.0)
