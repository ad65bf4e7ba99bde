"""The voxel utility: one grid that turns metres into cells, for labels, points and features alike.

Follows the voxel utility of Simple-BEV (Harley et al., "Simple-BEV: What Really Matters for Multi-Sensor BEV Perception?",
ICRA 2023). `ref` is the reference camera's frame in metres (X right, Y down, Z forward); `mem` are voxel indices, the centre of
voxel i at i. Tensors keep the order B, C, Z, Y, X; points are x, y, z.
"""

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import InputError
from common.lens import LENS_SIZE, PINHOLE, bend

ORIGIN_RADIUS_CELLS = 0.1  # points this close to the reference camera are none
DEPTH_FLOOR_M = 1e-6


class VoxUtil:
    """A grid of Z x Y x X voxels over `bounds` around `scene_centroid`.

    Args:
        scene_centroid: (1, 3) x, y, z in metres, in the reference camera's frame.
        bounds: XMIN, XMAX, YMIN, YMAX, ZMIN, ZMAX around the centroid, metres.
        pad: (Z, Y, X) voxels to widen the bounds by on each side; the number of voxels stays.
        assert_cube: require voxels as high as wide and deep.
    Raises:
        ValueError: empty bounds, or voxels that are not cubes with assert_cube.
    """

    def __init__(self, Z, Y, X, scene_centroid, bounds, pad=None, assert_cube=False):
        self.Z, self.Y, self.X = Z, Y, X
        # In float64: Simple-BEV adds Python numbers.
        if isinstance(scene_centroid, torch.Tensor):
            scene_centroid = scene_centroid.detach().cpu()
        centroid = np.asarray(scene_centroid, np.float64).reshape(-1)[:3]
        low, high = (
            np.array(bounds[0::2], np.float64) + centroid,
            np.array(bounds[1::2], np.float64) + centroid,
        )
        cells = np.array([X, Y, Z])
        if (cells < 1).any() or not (low < high).all():
            raise InputError(
                f"a grid of {Z}, {Y}, {X} cells (Z, Y, X) over bounds {tuple(bounds)} has none; give 1 of each at least, and "
                "bounds whose lower number comes first"
            )
        size = (high - low) / cells
        if assert_cube and not np.allclose(size, size[0]):
            raise InputError(f"voxels of {size.round(4).tolist()} m (x, y, z) are not cubes; change bounds or Z, Y, X")
        if pad is not None:
            margin = size * np.array(pad[::-1])
            low, high = low - margin, high + margin
            size = (high - low) / cells
        self.low_m, self.high_m, self.voxel_m = low, high, size  # (3,) float64 x, y, z
        # mem = ref * scale + shift along x, y, z, as Python numbers: a kernel takes them, a tensor would have to be sent.
        scale = 1.0 / size
        self.scale, self.shift = tuple(scale.tolist()), tuple(((-low - size / 2) * scale).tolist())
        self._constants = {}

    def to(self, device):
        """Itself, with its constants for that device made now rather than at their first use; nothing waits for it."""
        self._on(torch.device(device))
        return self

    def _constant(self, name, device, build):
        """build(), kept for each device; made anew in a compiled graph, which would be compiled again when more is kept."""
        if torch.compiler.is_compiling():
            return build()
        key = f"{name} {device}"
        if key not in self._constants:
            self._constants[key] = build()
        return self._constants[key]

    def _on(self, device):
        """(scale, shift) float32 of mem = ref * scale + shift, on a device."""

        def build():
            # Filled in place: a tensor made from a list is copied to the device, and the copy waits for it.
            return tuple(
                torch.stack([torch.full((), v, dtype=torch.float32, device=device) for v in values])
                for values in (self.scale, self.shift)
            )

        return self._constant("affine", device, build)

    def affine(self, device):
        """(6,) float32 on a device: scale x, y, z and shift x, y, z of mem = ref * scale + shift."""
        return torch.cat(self._on(device))

    def ref_to_mem(self, xyz):
        """(..., 3) metres in ref -> (..., 3) float32 voxel coordinates."""
        scale, shift = self._on(xyz.device)
        return xyz.float() * scale + shift

    def mem_to_ref(self, xyz):
        """(..., 3) voxel coordinates -> (..., 3) float32 metres in ref."""
        scale, shift = self._on(xyz.device)
        return (xyz.float() - shift) / scale

    def get_inbounds(self, xyz, already_mem=False, padding=0.0):
        """(..., N) bool: whether points (..., N, 3) lie in the grid, `padding` voxels from its border.

        A point whose voxel coordinate z is exactly 0 counts as outside, as in Simple-BEV.
        """
        mem = xyz if already_mem else self.ref_to_mem(xyz)
        inside = mem[..., 2] != 0
        # Axis by axis against Python numbers: a tensor of bounds would have to be sent to the device each time.
        for axis, cells in enumerate((self.X, self.Y, self.Z)):
            inside = inside & (mem[..., axis] - padding > -0.5) & (mem[..., axis] + padding < cells - 0.5)
        return inside

    def voxel_of(self, xyz, valid):
        """(B, N) int64 flat voxel of each point; Z*Y*X, one past the last, for points that fill none."""
        mem = self.ref_to_mem(xyz)
        origin = self.ref_to_mem(torch.zeros(3, device=xyz.device))
        x, y, z = (mem - origin).unbind(-1)  # a norm over a last axis of three is slow
        keep = self.get_inbounds(mem, already_mem=True) & ((x * x + y * y + z * z).sqrt() >= ORIGIN_RADIUS_CELLS)
        if valid is not None:
            keep = keep & valid
        x, y, z = (mem[..., i].round().clamp(0, n - 1).long() for i, n in enumerate((self.X, self.Y, self.Z)))
        flat = (z * self.Y + y) * self.X + x
        # Voxel 0 is where Simple-BEV drops what is out of bounds, and empties: it never holds anything.
        return torch.where(keep & (flat > 0), flat, self.Z * self.Y * self.X)

    def voxelize_xyz(self, xyz, valid=None):
        """Occupancy (B, 1, Z, Y, X) float32 in {0, 1} of points (B, N, 3) in ref.

        valid: (B, N) bool, False for padding. Points out of bounds or at the origin fill nothing, and voxel (0, 0, 0)
        is always empty.
        """
        voxel = self.voxel_of(xyz, valid)
        out = torch.zeros((xyz.shape[0], self.Z * self.Y * self.X + 1), device=xyz.device)
        return self.from_flat(out.scatter_(1, voxel, 1.0)[:, :-1, None])

    def voxelize_xyz_and_feats(self, xyz, feats, valid=None):
        """Features (B, D, Z, Y, X) float32 of points (B, N, 3) with feats (B, N, D).

        Where points share a voxel, the last in stored order wins, on every device alike.
        """
        voxel = self.voxel_of(xyz, valid)
        batch, count, _ = feats.shape
        cells = self.Z * self.Y * self.X
        # The highest point number per voxel sees: scatter with duplicates would be a race on CUDA.
        number = torch.arange(1, count + 1, device=xyz.device).expand(batch, count)
        last = torch.zeros((batch, cells + 1), dtype=torch.int64, device=xyz.device)
        last = last.scatter_reduce(1, voxel, number, "amax")[:, :-1]
        padded = torch.cat([torch.zeros_like(feats[:, :1]), feats], 1).float()
        return self.from_flat(padded.gather(1, last[..., None].expand(-1, -1, feats.shape[-1])))

    def from_flat(self, flat):
        """Of every voxel (B, Z*Y*X, D) -> (B, D, Z, Y, X)."""
        return flat.unflatten(1, (self.Z, self.Y, self.X)).permute(0, 4, 1, 2, 3)

    def centers_ref(self, device):
        """(Z*Y*X, 3) float32 voxel centres in ref."""

        def build():
            axes = [torch.arange(n, device=device, dtype=torch.float32) for n in (self.Z, self.Y, self.X)]
            z, y, x = torch.meshgrid(*axes, indexing="ij")
            return (self.mem_to_ref(torch.stack([x, y, z], -1).reshape(-1, 3)),)

        return self._constant("centers", device, build)[0]

    def sampling_grid(self, pix_T_ref, cam_T_ref, feat_hw, lenses=None):
        """Where each voxel centre falls in an image.

        Args:
            pix_T_ref: (B, 4, 4), pixels of the feature map from ref. cam_T_ref: (B, 4, 4). feat_hw: its rows and columns.
            lenses: see project.
        Returns:
            grid (B, Z*Y, X, 2) float32 for grid_sample, valid (B, 1, Z, Y, X) bool.
        """
        x, y, valid = project(self.centers_ref(pix_T_ref.device), pix_T_ref, cam_T_ref, feat_hw, lenses)
        grid = torch.stack([sampling_coordinate(x, feat_hw[1]), sampling_coordinate(y, feat_hw[0])], -1)
        return grid.reshape(-1, self.Z * self.Y, self.X, 2), valid.view(-1, 1, self.Z, self.Y, self.X)

    def unproject_image_to_mem(self, feat, pix_T_ref, cam_T_ref):
        """Sample an image feature at every voxel that the camera sees, bilinearly.

        Args:
            feat: (B, C, H, W). pix_T_ref: (B, 4, 4), pixels of feat from ref. cam_T_ref: (B, 4, 4).
        Returns:
            (B, C, Z, Y, X), zero where a voxel is behind the camera or outside the image.
        """
        grid, valid = self.sampling_grid(pix_T_ref, cam_T_ref, feat.shape[-2:])
        values = F.grid_sample(feat, grid.to(feat.dtype), align_corners=False)
        return values.unflatten(2, (self.Z, self.Y)) * valid


def project(points, pix_T_ref, cam_T_ref, feat_hw, lenses=None):
    """Points (N, 3) in ref -> their pixels x and y (B, N) float32 in a map of feat_hw rows and columns, and valid (B, N).

    Valid: in front of the camera, and inside the image. pix_T_ref, cam_T_ref: (B, 4, 4). float32 whatever the autocast.
    lenses: (B, LENS_SIZE + 6), rows of common.lens, each followed by the upper 2 x 3 of the map's intrinsics; of a pinhole
    among them nothing changes, to the bit.
    """
    height, width = feat_hw
    with torch.autocast(points.device.type, enabled=False):
        depth = points @ cam_T_ref[:, 2, :3, None].float() + cam_T_ref[:, None, 2, 3:].float()
        matrix = pix_T_ref.float()
        pix = points @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3]
        x, y = (pix[..., :2] / pix[..., 2:].clamp(min=DEPTH_FLOOR_M)).unbind(-1)
        ahead = depth[..., 0] > 0
        if lenses is not None:
            x, y, ahead = _bent(points, cam_T_ref.float(), lenses.float(), (x, y, ahead))
        valid = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5) & ahead
    return x, y, valid


def _bent(points, cam_T_ref, lenses, straight):
    """x, y and whether a lens sees there, of `project`; `straight`, those of pinholes, for the pinholes among the cameras."""
    rows, intrinsics = lenses[:, :LENS_SIZE], lenses[:, LENS_SIZE:].unflatten(1, (2, 3))
    x, y, seen = bend(points @ cam_T_ref[:, :3, :3].transpose(1, 2) + cam_T_ref[:, None, :3, 3], rows)
    (a, b, c), (d, e, f) = (row.unsqueeze(-1).unbind(1) for row in intrinsics.unbind(1))
    bent = a * x + b * y + c, d * x + e * y + f, seen
    return tuple(torch.where(rows[:, :1] == PINHOLE, s, b) for s, b in zip(straight, bent, strict=True))


def sampling_coordinate(pixel, size):
    """Pixel coordinates along an axis of that many pixels -> those of grid_sample without aligned corners.

    Normalised for aligned corners but sampled without: half a pixel off at the border, and what the published weights
    were trained with.
    """
    return (2.0 * pixel / max(size - 1, 1) - 1.0).clamp(-2.0, 2.0)
