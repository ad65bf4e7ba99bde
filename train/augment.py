"""Crop and resize of camera images in one resampling, with the intrinsics that go with it.

Two forms of the same arithmetic: image by image in bytes, for the loader's threads on a CPU, and all images at once as matrix
products, for a GPU. They agree within one level of 255. `resize_wh` is the size that an image is resized to, `crop_ltrb` the
window of the resized image that is kept, zero where it reaches beyond; both in pixels, as Simple-BEV draws them.
"""

import threading

import cv2
import numpy as np
import torch

from common.errors import InputError

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
        raise InputError(f"interpolation {interpolation!r}; it is one of {', '.join(INTERPOLATIONS)}")
    # Sizes stay on the host: they decide shapes, and reading them from a GPU would wait for it.
    resize_wh, crop_ltrb = np.asarray(resize_wh), np.asarray(crop_ltrb)
    height, width = final_hw
    if (crop_ltrb[:, 2:] - crop_ltrb[:, :2] != np.array([width, height])).any():
        raise InputError(f"every crop must be {width}x{height} pixels, final_hw is {height}x{width}")
    sizes_hw = np.array([image.shape[:2] for image in images])
    moved = moved_intrinsics(intrins, sizes_hw, resize_wh, crop_ltrb)
    if images[0].device.type == "cpu":
        out = torch.empty((len(images), 3, height, width))
        for image, place, wh, ltrb in zip(images, out, resize_wh, crop_ltrb, strict=True):
            resample_into(place, image, wh, ltrb, interpolation)
        return out, moved
    plan = sampling_plan(sizes_hw, resize_wh, crop_ltrb, final_hw, interpolation)
    plan = torch.from_numpy(plan).pin_memory().to(images[0].device, non_blocking=True)
    return resample(stacked(images), plan, final_hw, interpolation), moved


def pix_T_stored(sizes_hw, resize_wh, crop_ltrb):
    """(n,3,3) float32, pixels after resizing and cropping from those before; arguments as moved_intrinsics's."""
    out = np.zeros((len(sizes_hw), 3, 3), np.float32)
    scale = np.asarray(resize_wh, np.float64) / np.asarray(sizes_hw)[:, ::-1]
    out[:, 0, 0], out[:, 1, 1], out[:, 2, 2] = scale[:, 0], scale[:, 1], 1.0
    out[:, :2, 2] = -np.asarray(crop_ltrb)[:, :2]
    return out


def moved_intrinsics(intrins, sizes_hw, resize_wh, crop_ltrb):
    """Intrinsics (N,3,3) or (N,4,4) of stored pixels -> (N,4,4) float32 of the resized and cropped ones."""
    device = intrins.device
    scale = torch.as_tensor(np.asarray(resize_wh) / np.asarray(sizes_hw)[:, ::-1], dtype=torch.float32)
    shift = torch.as_tensor(np.asarray(crop_ltrb)[:, :2], dtype=torch.float32)
    if device.type == "cuda":
        scale, shift = scale.pin_memory(), shift.pin_memory()
    scale, shift = scale.to(device, non_blocking=True), shift.to(device, non_blocking=True)
    out = torch.eye(4, device=device).repeat(len(intrins), 1, 1)
    intrins = intrins.float()
    out[:, 0, 0] = intrins[:, 0, 0] * scale[:, 0]
    out[:, 1, 1] = intrins[:, 1, 1] * scale[:, 1]
    out[:, :2, 2] = intrins[:, :2, 2] * scale - shift
    return out


def resample_into(out, image, resize_wh, crop_ltrb, interpolation):
    """One image (H,W,3) uint8, resized and cropped, into `out` (3,h,w) float32 in [0,1]; tensors of the CPU."""
    left, top, _, _ = (int(n) for n in crop_ltrb)
    new_w, new_h = (int(n) for n in resize_wh)
    height, width = out.shape[1:]
    stored_h, stored_w, _ = image.shape
    # The part of the resized image that the crop keeps.
    x0, x1, y0, y1 = max(left, 0), min(left + width, new_w), max(top, 0), min(top + height, new_h)
    if x0 >= x1 or y0 >= y1:
        out.zero_()
        return
    resize = _resize_rows if interpolation == "bilinear" else _pick_rows
    count, columns = y1 - y0, x1 - x0
    padded = -(-count // 4) * 4  # whole pixels of four bytes, see _resize_rows
    half, turned = _scratch(3 * max((y1 + 1) * stored_w, padded * stored_w, (x1 + 1) * padded))
    # Rows first, then columns, as the rows of the turned image: a row's bytes lie side by side, and neither pass cares what
    # they mean. Turned back, the colours lie apart, as networks want them. Few and plain calls: after each of these passes
    # the processor's caches are cold, and an interpreter is slow there.
    resize(half, image.contiguous(), (stored_h, 3 * stored_w), new_h, y0, y1)
    cv2.transpose(_rows(half, 3 * stored_w, y0, y1), _rows(turned, padded, 0, 3 * stored_w)[:, :count])
    resize(half, turned, (stored_w, 3 * padded), new_w, x0, x1)
    cv2.transpose(_rows(half, 3 * padded, x0, x1), _rows(turned, columns, 0, 3 * padded))
    planes = turned.as_strided((3, count, columns), (padded * columns, columns, 1))
    if (count, columns) != (height, width):
        above, before = y0 - top, x0 - left
        out[:, :above] = 0
        out[:, above + count :] = 0
        out = out[:, above : above + count]
        out[:, :, :before] = 0
        out[:, :, before + columns :] = 0
        out = out[:, :, before : before + columns]
    # Colour by colour and in two steps: dividing bytes in one call makes floats of all of them in new memory first.
    for plane, colour in zip(out, planes, strict=True):
        plane.copy_(colour)
        plane.div_(255.0)


_kept = threading.local()


def _scratch(size):
    """Two tensors of `size` bytes or more that this thread uses for every image: fresh pages cost more than what fills them."""
    kept = getattr(_kept, "pair", None)
    if kept is None or len(kept[0]) < size:
        kept = _kept.pair = tuple(torch.from_numpy(np.empty(max(size, 8 << 20), np.uint8)) for _ in range(2))
    return kept


def _rows(flat, width, first, last):
    """Rows first … last of a flat tensor that holds rows of `width` bytes, as an array."""
    return flat.numpy()[first * width : last * width].reshape(last - first, width)


def _resize_rows(out, matrix, shape, new_size, first, last):
    """The matrix of `shape`, rows and bytes, resized to new_size rows; antialiased as in PIL's bilinear resize."""
    rows, width = shape
    # To the operator, an axis that keeps its length is not resized, whatever the scale: one more, then, which nobody reads.
    count = last + (last == rows != new_size)
    # As pixels of four bytes, the width that vector units like, it takes a fifth of the time.
    channels = 4 if width % 4 == 0 else 1
    pixels, resized = (
        m.as_strided((1, channels, n, width // channels), (n * width, 1, width, channels))
        for m, n in ((matrix, rows), (out, count))
    )
    torch.ops.aten._upsample_bilinear2d_aa.out(
        pixels, (count, width // channels), False, new_size / rows, 1.0, out=resized
    )


def _pick_rows(out, matrix, shape, new_size, first, last):
    rows, width = shape
    index = torch.from_numpy(nearest_index(rows, new_size)[first:last])
    torch.index_select(
        matrix.as_strided(shape, (width, 1)), 0, index, out=out[first * width : last * width].view(-1, width)
    )


def nearest_index(size, new_size):
    """int64 source pixel of each of new_size pixels, as PIL finds it: a double that is accumulated along the row."""
    step = size / new_size
    steps = np.full(new_size, step)
    steps[0] = step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), size - 1)


def stacked(images):
    """N images (H,W,3) uint8 as one tensor (N,H,W,3), those of other sizes in the upper left corner of the largest."""
    if isinstance(images, torch.Tensor):
        return images
    if len({image.shape for image in images}) == 1:
        return torch.stack(images)
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    out = images[0].new_zeros((len(images), height, width, 3))
    for place, image in zip(out, images, strict=True):
        place[: image.shape[0], : image.shape[1]].copy_(image, non_blocking=True)
    return out


def sampling_plan(sizes_hw, resize_wh, crop_ltrb, final_hw, interpolation):
    """What `resample` needs to know of N images, made on the host: float32, one row per image.

    bilinear: (N,2,4): for rows and for columns, stored pixels a resized one, first resized pixel of the crop, resized and
    stored size. nearest: (N,h+w): the stored row of each row and the stored column of each column, -1 outside the image.
    """
    sizes = np.asarray(sizes_hw, np.float64)
    new, first = np.asarray(resize_wh)[:, ::-1], np.asarray(crop_ltrb)[:, 1::-1]
    if interpolation == "bilinear":
        return np.stack([sizes / new, first, new, sizes], -1).astype(np.float32)
    out = np.full((len(sizes), sum(final_hw)), -1, np.float32)  # image sizes are exact in float32
    for row, own_sizes, own_new, own_first in zip(out, sizes.astype(int), new.tolist(), first.tolist(), strict=True):
        start = 0
        for size, count, offset, length in zip(own_sizes, own_new, own_first, final_hw, strict=True):
            inside = slice(max(offset, 0), max(min(offset + length, count), 0))
            picked = nearest_index(size, count)[inside]
            begin = start + inside.start - offset
            row[begin : begin + len(picked)] = picked
            start += length
    return out


def resample(images, plan, final_hw, interpolation, dtype=None):
    """All images at once: the number of operations does not grow with theirs, and nothing waits for the device.

    Args:
        images: (N,H,W,3) uint8. plan: of sampling_plan, on the same device. dtype: of the products; float16 on a GPU, whose 11
            bits err by a fifth of a level, else float32.
    Returns:
        (N,3,h,w) float32 in [0,1].
    """
    height, width = final_hw
    if interpolation == "nearest":
        y, x = plan.long().split([height, width], 1)
        number = torch.arange(len(images), device=images.device)[:, None, None]
        picked = images[number, y.clamp(min=0)[:, :, None], x.clamp(min=0)[:, None, :]]
        inside = (y >= 0)[:, :, None, None] & (x >= 0)[:, None, :, None]
        return (
            (picked * inside).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
        )
    if dtype is None:
        dtype = torch.float16 if images.device.type == "cuda" else torch.float32
    rows = resample_weights(plan[:, 0], height, images.shape[1]).to(dtype)
    columns = resample_weights(plan[:, 1], width, images.shape[2]).to(dtype)
    half = (rows @ images.flatten(2).to(dtype)).unflatten(2, (-1, 3))
    out = half.permute(0, 3, 1, 2).flatten(1, 2) @ columns.transpose(1, 2)
    return out.float().unflatten(1, (3, height)).div_(255.0).clamp_(max=1.0)


def resample_weights(plan, count, size):
    """(N, count, size) float32: the share that each of `size` stored pixels has in each of `count` pixels of the crop.

    A triangle around the pixel's place, as wide as a resized pixel where that is larger than a stored one; no share of what
    lies outside, so that scaling, cropping and the zero border are one product.
    """
    scale, first, new_size, own_size = plan[..., None].unbind(1)
    place = torch.arange(count, device=plan.device) + first
    stored = torch.arange(size, device=plan.device) + 0.5
    # In place: of a batch, these are the largest tensors of all.
    weights = (stored - ((place + 0.5) * scale)[..., None]).abs_().div_(scale.clamp(min=1.0)[..., None])
    weights.neg_().add_(1.0).clamp_(min=0.0).mul_((stored < own_size)[:, None])
    inside = (place >= 0) & (place < new_size)
    # A pixel inside has a sum of at least a half, so the floor is for those outside alone.
    return weights.mul_((inside / weights.sum(-1).clamp(min=0.25))[..., None])
