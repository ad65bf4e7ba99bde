"""Source images: every one is decoded once, so that training never meets a bad one; re-encoding to another size."""

import numpy as np
import simplejpeg
from PIL import Image

from common.record import MAX_IMAGE_PIXELS
from preprocess.errors import SourceError

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


def reencode(data, what, image_hw, quality):
    """(JPEG bytes of the image resized to (height, width), its size before). Raises SourceError as check_image does."""
    size = _check_header(data, what)
    pixels = Image.fromarray(_decode(data, what, "RGB"))
    small = pixels.resize((image_hw[1], image_hw[0]), Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=quality, colorsubsampling="420"), size


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
