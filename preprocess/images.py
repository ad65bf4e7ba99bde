"""Source images: every one is decoded once, so that training never meets a bad one; some are rectified or resized."""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from common.record import MAX_IMAGE_PIXELS
from preprocess.errors import SourceError
from preprocess.rectify import rectified

COLOUR_SPACES = ("YCbCr", "Gray", "RGB")  # what decodes to RGB; CMYK does not


def check_image(data, what):
    """(height, width) of a JPEG that decodes from its first byte to its end marker without a warning.

    A file that was cut, or overwritten in the middle, may well begin and end as a JPEG. What gives it away is its entropy
    code, which is read whole at any scale: a grey image of an eighth of the size finds the faults that a full decode in
    colour finds, in half of its time. Progressive, grey and RGB images are legal, and so is what follows the end marker: a
    line feed, a maker's trailer, spare bytes of an MJPEG frame. Raises SourceError, naming `what`.
    """
    size = _check_header(data, what)
    _decode(data, what, "GRAY", min_height=1, min_width=1)  # the smallest scale that there is
    return size


@dataclass(frozen=True)
class StoredImage:
    """JPEG bytes, their (height, width), intrinsics (3, 3) of their pixels, and the (height, width) of the source image."""

    data: bytes
    hw: tuple
    intrinsics: np.ndarray
    source_hw: tuple


def stored_image(data, what, intrinsics, image_hw=None, quality=90, distortion=None):
    """The StoredImage of a source JPEG: the same bytes, unless it is rectified or resized.

    Args:
        intrinsics: (3, 3) of the source's pixels. image_hw: (height, width) to resize to; None keeps the size. quality: of the
            JPEG where it is encoded anew. distortion: common.rig.Distortion to be taken out; None leaves pixels where they are.
    Raises:
        SourceError: as check_image does.
    """
    if not image_hw and distortion is None:
        size = check_image(data, what)
        return StoredImage(data, size, intrinsics, size)
    size = _check_header(data, what)
    pixels, intrinsics = _decode(data, what, "RGB"), np.array(intrinsics, np.float64)
    if distortion is not None:
        pixels, intrinsics = rectified(pixels, intrinsics, distortion)
    if image_hw:
        small = Image.fromarray(pixels).resize((image_hw[1], image_hw[0]), Image.Resampling.BICUBIC)
        pixels = np.asarray(small)
        intrinsics[0] *= image_hw[1] / size[1]
        intrinsics[1] *= image_hw[0] / size[0]
    return StoredImage(encode(pixels, quality), pixels.shape[:2], intrinsics, size)


def encode(pixels, quality):
    """JPEG bytes of (H, W, 3) uint8 RGB pixels."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="420")


def _check_header(data, what):
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        raise SourceError(f"{what}: not a JPEG image; copy it anew") from None
    if colours not in COLOUR_SPACES:
        raise SourceError(f"{what}: a JPEG image in {colours}, which does not decode to RGB; convert it")
    if height * width > MAX_IMAGE_PIXELS:
        raise SourceError(
            f"{what}: {height}x{width} pixels, and readers take {MAX_IMAGE_PIXELS} at most; make it smaller"
        )
    return height, width


def _decode(data, what, colours, **scale):
    try:
        return simplejpeg.decode_jpeg(data, colours, **scale)
    except ValueError as error:
        raise SourceError(f"{what}: the JPEG image is damaged ({error}); copy it anew") from None
