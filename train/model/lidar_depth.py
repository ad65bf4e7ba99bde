"""Layer `depth` -> depth maps of any size: what a network that predicts depth is taught by (BEVDepth, Li et al., AAAI 2023).

A network asks for the layer by `Needs(layers=DEPTH_LAYER)`, and so reads no lidar.
"""

import torch

MEMBER = "depth.planes.zst"
DEPTH_LAYER = {"depth": (MEMBER,)}


def depth_maps(batch, hw, flips=None):
    """Lidar depth in the batch's images, resized, cropped and left out as they are.

    Args:
        batch: Batch with layer depth and images. hw: rows and columns of the maps, as of features. flips: Flips of the images.
    Returns:
        (B,S,*hw) float32: metres along the camera's axis to the nearest point in each cell, at the present; 0 without a point.
    """
    size, cameras = batch.imgs.shape[-2:], batch.pix_T_stored.shape[2]
    out = torch.full((len(batch) * cameras * hw[0] * hw[1],), torch.inf, device=batch.rots.device)
    for b, points in enumerate(window[0] for window in batch.layers["depth"][MEMBER]):
        if points is None:
            continue
        slots = _slots(batch, b, points[0])
        pixels = (
            batch.pix_T_stored[b, 0, slots.clamp(min=0), :2]
            @ torch.cat([points[1:3], torch.ones_like(points[:1])]).T[..., None]
        )
        x, y = pixels[..., 0].T
        if flips is not None:
            x = torch.where(flips.image[b, slots.clamp(min=0)], size[1] - 1 - x, x)
        # Pixel 0 is the middle of the first one.
        row, column = ((v + 0.5) * (n / of) for v, n, of in ((y, hw[0], size[0]), (x, hw[1], size[1])))
        inside = (slots >= 0) & (row >= 0) & (row < hw[0]) & (column >= 0) & (column < hw[1])
        cell = ((b * cameras + slots) * hw[0] + row.long()) * hw[1] + column.long()
        out.scatter_reduce_(0, torch.where(inside, cell, 0), torch.where(inside, points[3], torch.inf), "amin")
    return torch.where(out.isinf(), 0.0, out).view(len(batch), cameras, *hw)


def _slots(batch, b, camera):
    """(n,) int64: the batch's slot of each point's camera, which the record numbers; -1 of one that the batch has not."""
    place = {name: slot for slot, name in enumerate(batch.cams[b])}
    own = [place.get(name, -1) for name in batch.facts[b][0].rig.camera_names]
    return torch.tensor(own, device=camera.device)[camera.long()]
