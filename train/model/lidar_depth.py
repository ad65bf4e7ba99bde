"""Lidar depth as maps of any size: what a network that predicts depth is taught by (BEVDepth, Li et al., AAAI 2023).

From layer `depth`, which a network asks for by `Needs(layers=DEPTH_LAYER)`, and so reads no lidar; or from the batch's lidar.
Points go through the pose that each camera has of its own, so that they lie where the image shows them when the car moves.
"""

import torch

from common.geometry import apply_4x4, merge_rt, rigid_inverse

MEMBER = "depth.planes.zst"
DEPTH_LAYER = {"depth": (MEMBER,)}
NEAREST_M = 0.5  # before a camera, of points that count; the layer's too


def depth_maps(batch, hw, flips=None, *, of_lidar=False, size=None):
    """Lidar depth in the batch's images, resized, cropped and left out as they are.

    Args:
        batch: Batch with images, and layer depth or lidar. hw: rows and columns of the maps, as of features. flips: Flips of
            the images. of_lidar: from the keyframe's sweep. size: rows and columns of images that the maps cover, more than the
            batch's where a network pads them on the right and below.
    Returns:
        (B,S,*hw) float32: metres along the camera's axis to the nearest point in each cell, at the present; 0 without a point.
    """
    image, cameras = batch.imgs.shape[-2:], batch.rots.shape[2]
    size = image if size is None else size
    out = torch.full((len(batch) * cameras * hw[0] * hw[1],), torch.inf, device=batch.rots.device)
    for b, points in enumerate(_of_lidar(batch) if of_lidar else _of_layer(batch)):
        if points is None:
            continue
        slots, x, y, depth = points
        inside = (slots >= 0) & (x >= -0.5) & (y >= -0.5) & (x < image[1] - 0.5) & (y < image[0] - 0.5)
        if flips is not None:
            x = torch.where(flips.image[b, slots.clamp(min=0)], size[1] - 1 - x, x)
        # Pixel 0 is the middle of the first one.
        row, column = ((v + 0.5) * (n / of) for v, n, of in ((y, hw[0], size[0]), (x, hw[1], size[1])))
        cell = ((b * cameras + slots) * hw[0] + row.long()) * hw[1] + column.long()
        out.scatter_reduce_(0, torch.where(inside, cell, 0), torch.where(inside, depth, torch.inf), "amin")
    return torch.where(out.isinf(), 0.0, out).view(len(batch), cameras, *hw)


def _of_layer(batch):
    """Of each sample (slots, x, y, depth) of its points, (n,) each, in pixels of imgs; slot -1 of a camera that it has not."""
    for b, (points, *_) in enumerate(batch.layers["depth"][MEMBER]):
        if points is None:
            yield None
            continue
        camera, u, v, depth = points
        slots = _slots(batch, b, camera)
        stored = torch.stack([u, v, torch.ones_like(u)], -1)
        x, y = (batch.pix_T_stored[b, 0, slots.clamp(min=0), :2] @ stored[..., None])[..., 0].unbind(-1)
        yield slots, x, y, depth


def _of_lidar(batch):
    """The same of the keyframe's sweep, seen by each camera."""
    ego = batch.lidar_data[:, 0].transpose(1, 2)
    ego_T_cams = batch.ego_T_camego[:, 0] @ merge_rt(batch.rots[:, 0], batch.trans[:, 0])
    cams = apply_4x4(rigid_inverse(ego_T_cams), ego[:, None])  # (B,S,N,3)
    depth = cams[..., 2]
    x, y, _ = (apply_4x4(batch.intrins[:, 0], cams) / depth.clamp(min=NEAREST_M)[..., None]).unbind(-1)
    number, slot = (torch.arange(n, device=ego.device) for n in (ego.shape[1], cams.shape[1]))
    counts = (depth >= NEAREST_M) & (number < batch.num_lidar0[:, 0, None, None])
    slots = torch.where(counts, slot[:, None], -1)
    return zip(*(value.flatten(1) for value in (slots, x, y, depth)), strict=True)


def _slots(batch, b, camera):
    """(n,) int64: the batch's slot of each point's camera, which the record numbers; -1 of one that the batch has not."""
    place = {name: slot for slot, name in enumerate(batch.cams[b])}
    own = torch.tensor([place.get(name, -1) for name in batch.facts[b][0].rig.camera_names])
    if camera.is_cuda:  # a copy that waits for nothing
        own = own.pin_memory()
    return own.to(camera.device, non_blocking=True)[camera.long()]
