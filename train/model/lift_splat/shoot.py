"""Lift-Splat-Shoot as published: constructor, geometry, forward and state-dict names of nv-tlabs/lift-splat-shoot."""

import torch
from torch import nn

from common.errors import InputError
from train.model.lift_splat.parts import BevEncode, CamEncode
from train.model.lift_splat.pool import pooled
from train.processes.ranks import say

DOWNSAMPLE = 16  # pixels of the image per pixel of the features
MULTIPLE = 32  # of the trunk's coarsest level: rows and columns of images are multiples of it
CONTEXT = 64  # channels of the features that are lifted


def grid_tensors(*bounds):
    """dx, bx (n,) float32 and nx (n,) int64: size, first centre and number of the cells of bounds (low, high, step)."""
    dx = torch.tensor([step for _, _, step in bounds], dtype=torch.float32)
    bx = torch.tensor([low + step / 2 for low, _, step in bounds], dtype=torch.float32)
    return dx, bx, torch.tensor([round((high - low) / step) for low, high, step in bounds])


def inverse_3x3(matrix):
    """Inverses of (...,3,3), by cross products: torch's own waits for the device, and no export knows it."""
    a, b, c = matrix.double().unbind(-2)
    columns = [torch.linalg.cross(*pair) for pair in ((b, c), (c, a), (a, b))]
    return (torch.stack(columns, -1) / (a * columns[0]).sum(-1)[..., None, None]).to(matrix.dtype)


def lifted(points, rots, trans, intrins):
    """Points (...,D,h,w,3), columns and rows of images and depths, -> (B,S,D,h,w,3) metres; the others as get_geometry's."""
    uv, depth = points[..., :2], points[..., 2:]
    rays = rots @ inverse_3x3(intrins)
    return turned(rays, torch.cat([uv * depth, depth], -1)) + trans[:, :, None, None, None]


def turned(matrix, points):
    """Points (...,D,h,w,3) under (B,S,3,3) -> (B,S,D,h,w,3); by columns: a product of matrices copies one per point."""
    columns = matrix[:, :, None, None, None].unbind(-1)
    return sum(column * points[..., axis : axis + 1] for axis, column in enumerate(columns))


class LiftSplatShoot(nn.Module):
    """Images of several cameras -> maps in the ego frame, x forward, y left, z up, metres.

    Args:
        grid_conf: dict of xbound, ybound, zbound (low, high, step) in metres, z a single cell, and dbound (first, end, step) of
            depths. data_aug_conf: dict whose final_dim is (rows, columns) of the images. outC: maps.
    Raises:
        ValueError: several cells along z.
    """

    decided_by = "--image_size, grid, number of classes or --model_args"

    def __init__(self, grid_conf, data_aug_conf, outC):
        super().__init__()
        self.image_hw = tuple(data_aug_conf["final_dim"])
        self.padded_hw = tuple(-(-n // MULTIPLE) * MULTIPLE for n in self.image_hw)
        self.dbound = tuple(grid_conf["dbound"])
        dx, bx, nx = grid_tensors(*(grid_conf[f"{axis}bound"] for axis in "xyz"))
        self.cells_xyz = tuple(nx.tolist())
        if self.cells_xyz[2] != 1:
            raise InputError(f"zbound {grid_conf['zbound']} has {self.cells_xyz[2]} cells; the BEV encoder takes one")
        for name, value in (("dx", dx), ("bx", bx), ("nx", nx), ("frustum", self.create_frustum())):
            self.register_buffer(name, value)
        self.camencode = CamEncode(len(self.frustum), CONTEXT)
        self.bevencode = BevEncode(CONTEXT, outC)

    def create_frustum(self):
        """(D,h,w,3) float32: column and row in the padded image, and depth, of each point that features are lifted to."""
        (rows, columns), depths = self.padded_hw, torch.arange(*self.dbound, dtype=torch.float32)
        h, w = rows // DOWNSAMPLE, columns // DOWNSAMPLE
        grid = torch.meshgrid(depths, torch.linspace(0, rows - 1, h), torch.linspace(0, columns - 1, w), indexing="ij")
        return torch.stack([grid[2], grid[1], grid[0]], -1)

    def get_geometry(self, rots, trans, intrins, post_rots, post_trans):
        """Where the frustum's points lie in the frame that rots and trans lead to.

        Args:
            rots (B,S,3,3), trans (B,S,3): that frame from each camera. intrins (B,S,3,3): pixels of source images from it.
            post_rots (B,S,3,3), post_trans (B,S,3): the network's pixels from those of source images.
        Returns:
            (B,S,D,h,w,3) metres.
        """
        points = self.frustum - post_trans[:, :, None, None, None]
        points = turned(inverse_3x3(post_rots), points)
        return lifted(points, rots, trans, intrins)

    def get_voxels(self, x, rots, trans, intrins, post_rots, post_trans):
        """The pooled features (B,64,X,Y), rows along x, columns along y."""
        depth, context = self.depth_and_context(x)
        geometry = self.get_geometry(rots, trans, intrins, post_rots, post_trans)
        return self.splat(depth.softmax(2), context, geometry)

    def depth_and_context(self, x):
        """Logits (B,S,D,h,w) of the depths and features (B,S,64,h,w) of images (B,S,3,H,W), padded and normalised."""
        depth, context = self.camencode(x.flatten(0, 1))
        return depth.unflatten(0, x.shape[:2]), context.unflatten(0, x.shape[:2])

    def splat(self, depth, context, geometry):
        """(B,64,X,Y): sums, in each cell, of features times shares of depth. geometry: (B,S,D,h,w,3) of lifted."""
        with torch.autocast(depth.device.type, enabled=False):
            (columns, rows, _), batch = self.cells_xyz, depth.shape[0]
            count, cells = columns * rows, self.cells(geometry)
            first = torch.arange(batch, device=cells.device).view(-1, 1, 1, 1, 1) * count
            cells = torch.where(cells < count, first + cells, batch * count)
            # A pixel's depths side by side.
            cells, shares = (value.permute(0, 1, 3, 4, 2).flatten(0, 3) for value in (cells, depth.float()))
            features = context.float().permute(0, 1, 3, 4, 2).flatten(0, 3)
            sums = pooled(features, shares, cells, batch * count)
            return sums.view(batch, columns, rows, -1).permute(0, 3, 1, 2)

    def cells(self, geometry):
        """(B,S,D,h,w) int64: number x * Y + y of the cell of each point of `lifted`, X * Y of those that lie in none.

        Truncated toward zero, as published: points up to one cell below a bound count.
        """
        columns, rows, _ = self.cells_xyz
        index = ((geometry - (self.bx - self.dx / 2)) / self.dx).long()
        inside = ((index >= 0) & (index < self.nx)).all(-1) & self._of_image()
        return torch.where(inside, index[..., 0] * rows + index[..., 1], columns * rows)

    def _of_image(self):
        """(D,h,w) bool: not of the padding, of which nothing is lifted."""
        u, v, _ = self.frustum.unbind(-1)
        return (u < self.image_hw[1]) & (v < self.image_hw[0])

    def forward(self, x, rots, trans, intrins, post_rots, post_trans):
        """(B,outC,X,Y) logits of images (B,S,3,H,W) normalised by ImageNet's colours; the others as get_geometry's."""
        return self.bevencode(self.get_voxels(x, rots, trans, intrins, post_rots, post_trans))

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        """As torch's; a frustum of another image size is left out, and the grid must be this one."""
        for name in ("dx", "bx", "nx"):
            given, own = state.get(f"{prefix}{name}"), getattr(self, name)
            if given is not None and given.shape == own.shape and not torch.allclose(given.to(own), own):
                raise InputError(
                    f"its grid's {name} is {given.tolist()}, this one's {own.tolist()}; give its --bounds, --Z and --X"
                )
        given, own = state.get(f"{prefix}frustum"), self.frustum
        if given is not None and given.shape != own.shape and torch.equal(given[:, 0, 0, 2].to(own), own[:, 0, 0, 2]):
            say(f"note: frustum of {tuple(given.shape)} is left out; that of images of {self.image_hw} is used")
            state = {**state, f"{prefix}frustum": own}
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
