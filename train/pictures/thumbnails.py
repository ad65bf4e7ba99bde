"""Thumbnails of every sample of an evaluation, small enough that a page holds thousands: errors from above, and the cameras."""

import cv2
import numpy as np
import torch.nn.functional as F

from train.pictures.maps import ERROR_COLOURS, IS_FALSE, IS_HIT, IS_MASKED, IS_MISSED, NOTHING, worst_codes
from train.pictures.palette import PAGE
from train.pictures.view import array_of, maps_of_batch

MAP_PX, CAMERA_PX, COLUMNS, GAP = 100, 88, 3, 2
LOSSLESS, CAMERA_QUALITY = 101, 30  # of WebP
# Of several cells in one pixel the worst is shown.
_CODES = np.array([NOTHING, IS_MASKED, IS_HIT, IS_FALSE, IS_MISSED])
_RANKS = np.argsort(_CODES)


def thumbnails_of(batch, outputs, grid):
    """Key -> "errors" (where there is a seg), "cameras" (where there are images) -> WebP bytes, of each sample of a Batch."""
    images = None
    if batch.imgs is not None:
        height, width = batch.imgs.shape[-2:]
        small = (max(1, round(CAMERA_PX * height / width)), CAMERA_PX)
        images = F.interpolate(batch.imgs[:, 0].flatten(0, 1), small, mode="area").unflatten(0, batch.imgs.shape[:3:2])
        images = (array_of(images).transpose(0, 1, 3, 4, 2) * 255).round().astype(np.uint8)
    predicted = outputs["seg"].float().sigmoid() if "seg" in outputs else None
    out = {}
    for b, (facts, *_) in enumerate(batch.facts):
        own = out[facts.key] = {}
        if predicted is not None:
            seg = predicted[b] if predicted.shape[1] > 1 else predicted[b, 0]
            own["errors"] = _encoded(_errors(maps_of_batch(batch, b, grid, seg)), LOSSLESS)
        if images is not None:
            own["cameras"] = _encoded(_cameras(images[b], batch.cams[b], facts.rig.camera_names), CAMERA_QUALITY)
    return out


def _errors(maps):
    """The worst error of each block of cells, forward up; at most MAP_PX pixels to a side."""
    codes = _RANKS[worst_codes(maps)[::-1]]
    step = -(-max(codes.shape) // MAP_PX)
    padded = np.pad(codes, [(0, -n % step) for n in codes.shape])
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return ERROR_COLOURS[_CODES[blocks.max((1, 3))]]


def _cameras(images, names, order):
    """Three to a row in the order of the rig; images (S, H, W, 3)."""
    by_name = dict(zip(names, images, strict=True))
    shown = [by_name[name] for name in order if name in by_name]
    height, width = images.shape[1:3]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    out = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), PAGE, np.uint8)
    for place, image in enumerate(shown):
        top, left = (place // columns) * (height + GAP), (place % columns) * (width + GAP)
        out[top : top + height, left : left + width] = image
    return out


def _encoded(picture, quality):
    return cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
