"""How far away things are, from lidar: the depth that a network should give each pixel (as BEVDepth, Li et al., AAAI 2023).

Points go through the pose that each camera has of its own, so that they lie where the image shows them even when the car moves,
whether the grid's geometry heeds those poses or not. Of several points of a pixel the nearest counts.
"""

from typing import NamedTuple

import torch

from common.geometry import apply_4x4, merge_rt, rigid_inverse

LAYER, MEMBER = "depth", "depth.planes.zst"  # of preprocess.layer; camera, u, v in stored pixels, depth
NEAREST_M = 0.5  # before a camera, of points that count; the layer's too
SOURCES = ("none", "lidar", "layer")


class Seen(NamedTuple):
    """Points of a keyframe in its images: slot (n,) int64, uv (n,2) pixels of imgs, depth_m (n,), counts (n,) bool."""

    slot: torch.Tensor
    uv: torch.Tensor
    depth_m: torch.Tensor
    counts: torch.Tensor


def depth_bins(batch, source, frustum):
    """(B,S,h,w) int64: of the frustum's depths the one nearest to what lidar measured, -1 where none is or it measured nothing.

    Args:
        batch: Batch with what the source takes. source: "lidar", points of the batch, or "layer".
        frustum: (D,h,w,3) columns and rows of the images and depths, each at equal steps.
    """
    seen = of_layer(batch) if source == "layer" else of_lidar(batch)
    slots, image_hw = batch.imgs.shape[2], batch.imgs.shape[-2:]
    nearest = [nearest_m(each, (slots, *frustum.shape[1:3]), image_hw, frustum) for each in seen]
    return bins_of(torch.stack(nearest), frustum)


def bins_of(nearest, frustum):
    """(...) metres, infinity where there are none -> (...) int64, the nearest of the frustum's depths, -1 beyond them."""
    depths = frustum[:, 0, 0, 2]
    bins = torch.round((nearest - depths[0]) / (depths[1] - depths[0]))
    return torch.where((bins >= 0) & (bins < len(depths)), bins, -1.0).long()


def of_lidar(batch):
    """Seen of each sample's keyframe sweep: the present's."""
    xyz = batch.lidar_data[:, 0].transpose(1, 2)
    valid = torch.arange(xyz.shape[1], device=xyz.device) < batch.num_lidar0[:, 0, None]
    ego_T_cams = batch.ego_T_camego[:, 0] @ merge_rt(batch.rots[:, 0], batch.trans[:, 0])
    cams = apply_4x4(rigid_inverse(ego_T_cams), xyz[:, None])  # (B,S,N,3)
    depth = cams[..., 2]
    uv = apply_4x4(batch.intrins[:, 0], cams)[..., :2] / depth.clamp(min=NEAREST_M)[..., None]
    counts = valid[:, None] & (depth >= NEAREST_M)
    slot = torch.arange(cams.shape[1], device=xyz.device)[:, None].expand(depth.shape[1:]).flatten()
    parts = (uv.flatten(1, 2), depth.flatten(1), counts.flatten(1))
    return [Seen(slot, *own) for own in zip(*parts, strict=True)]


def of_layer(batch):
    """Seen of each sample in layer depth: the present's."""
    out = []
    for b, window in enumerate(batch.layers[LAYER][MEMBER]):
        record = [camera.name for camera in batch.facts[b][0].rig.cameras]
        # The slot of each of the record's cameras, -1 of one that the sample goes without.
        slots = torch.tensor([batch.cams[b].index(name) if name in batch.cams[b] else -1 for name in record])
        camera, u, v, depth = window[0]
        slot = _sent(slots, depth.device)[camera.long()]
        matrix = batch.pix_T_stored[b, 0][slot.clamp(min=0)]
        uv = (matrix @ torch.stack([u, v, torch.ones_like(u)], -1)[..., None])[:, :2, 0]
        out.append(Seen(slot, uv, depth, slot >= 0))
    return out


def _sent(value, device):
    """A tensor of the host on the device, without waiting for what that is busy with."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value


def nearest_m(seen, shape, image_hw, frustum):
    """(S,h,w) metres to the nearest of the points of each pixel of features, infinity where there is none."""
    slots, h, w = shape
    u, v = seen.uv.unbind(-1)
    inside = (u >= -0.5) & (v >= -0.5) & (u < image_hw[1] - 0.5) & (v < image_hw[0] - 0.5)
    # Where the frustum has its points: the ray that a pixel's features are lifted along, not the middle of what they see.
    column = torch.round(u * (w - 1) / frustum[0, 0, -1, 0]).long().clamp(0, w - 1)
    row = torch.round(v * (h - 1) / frustum[0, -1, 0, 1]).long().clamp(0, h - 1)
    place = torch.where(seen.counts & inside, (seen.slot * h + row) * w + column, slots * h * w)
    out = seen.depth_m.new_full((slots * h * w + 1,), torch.inf)
    return out.scatter_reduce(0, place, seen.depth_m, "amin")[:-1].view(slots, h, w)
