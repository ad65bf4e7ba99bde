"""Crop and resize of camera images on the device, with the intrinsics that go with it."""

import numpy as np
import torch
import torch.nn.functional as F

INTERPOLATIONS = ("bilinear", "nearest")


def crop_and_resize(images, intrins, resize_wh, crop_ltrb, final_hw, interpolation="bilinear"):
    """Resize each camera's image, then crop it: one resampling from the stored pixels, zero outside the image.

    Args:
        images: (S,H,W,3) uint8 on any device, or S images (H,W,3) of different sizes.
        intrins: (S,3,3) or (S,4,4) float32, stored pixels from cam.
        resize_wh: (S,2) ints, width and height to resize to. crop_ltrb: (S,4) ints, in resized pixels.
        final_hw: (h, w) of the result; each crop must have this size.
        interpolation: "bilinear", antialiased where it shrinks; "nearest", the pixels of PIL's nearest resize.
    Returns:
        images (S,3,h,w) float32 in [0,1], intrins (S,4,4) float32 in pixels of the result.
    Raises:
        ValueError: another interpolation, or a crop of another size than final_hw.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r}; it is one of {', '.join(INTERPOLATIONS)}")
    # Sizes stay on the host: they decide shapes, and reading them from a GPU would wait for it.
    resize_wh, crop_ltrb = np.asarray(resize_wh), np.asarray(crop_ltrb)
    height, width = final_hw
    if (crop_ltrb[:, 2:] - crop_ltrb[:, :2] != np.array([width, height])).any():
        raise ValueError(f"every crop must be {width}x{height} pixels, final_hw is {height}x{width}")
    device = images[0].device
    out = torch.zeros((len(images), 3, height, width), device=device)
    resample = _bilinear if interpolation == "bilinear" else _nearest
    for slot, image in enumerate(images):
        left, top, _, _ = crop_ltrb[slot].tolist()
        new_w, new_h = resize_wh[slot].tolist()
        # The part of the resized image that the crop keeps.
        x0, x1, y0, y1 = max(left, 0), min(left + width, new_w), max(top, 0), min(top + height, new_h)
        if x0 < x1 and y0 < y1:
            part = resample(image, new_h, new_w, (y0, y1), (x0, x1))
            out[slot, :, y0 - top : y1 - top, x0 - left : x1 - left] = part
    sizes = torch.tensor([image.shape[:2] for image in images])
    return out.div_(255.0), _moved_intrinsics(intrins, sizes, resize_wh, crop_ltrb)


def _moved_intrinsics(intrins, sizes_hw, resize_wh, crop_ltrb):
    device = intrins.device
    scale = torch.as_tensor(resize_wh) / sizes_hw.flip(-1).double()
    scale = scale.to(device, torch.float32, non_blocking=True)
    shift = torch.as_tensor(crop_ltrb[:, :2]).to(device, torch.float32, non_blocking=True)
    out = torch.eye(4, device=device).repeat(len(intrins), 1, 1)
    intrins = intrins.float()
    out[:, 0, 0] = intrins[:, 0, 0] * scale[:, 0]
    out[:, 1, 1] = intrins[:, 1, 1] * scale[:, 1]
    out[:, :2, 2] = intrins[:, :2, 2] * scale - shift
    return out


def _bilinear(image, new_h, new_w, rows, columns):
    """Antialiased as in PIL's bilinear resize: the kernel widens with the shrinking factor."""
    pixels = image.permute(2, 0, 1)[None]
    if pixels.device.type != "cpu":  # the CPU has a fast uint8 path, CUDA only float
        pixels = pixels.float()
    pixels = F.interpolate(pixels, (new_h, new_w), mode="bilinear", antialias=True)
    return pixels[0, :, rows[0] : rows[1], columns[0] : columns[1]]


def _nearest(image, new_h, new_w, rows, columns):
    y = torch.from_numpy(nearest_index(image.shape[0], new_h)[rows[0] : rows[1]])
    x = torch.from_numpy(nearest_index(image.shape[1], new_w)[columns[0] : columns[1]])
    y, x = y.to(image.device, non_blocking=True), x.to(image.device, non_blocking=True)
    return image.index_select(0, y).index_select(1, x).permute(2, 0, 1)


def nearest_index(size, new_size):
    """int64 source pixel of each of new_size pixels, as PIL finds it: a double that is accumulated along the row."""
    step = size / new_size
    steps = np.full(new_size, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), size - 1)
