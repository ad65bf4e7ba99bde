"""Source images: every one is decoded once, so that training never meets a bad one; re-encoding to another size."""

import numpy as np
import simplejpeg
from PIL import Image

from common.record import MAX_IMAGE_PIXELS
from preprocess.errors import SourceError

COLOUR_SPACES = ("YCbCr", "Gray", "RGB")  # what decodes to RGB; CMYK does not
CHECK_FACTOR = 8


def check_image(data, what):
    """(height, width) of a JPEG that decodes from its first byte to its last without a warning.

    A file that was cut, or overwritten in the middle, may well begin and end as a JPEG. What gives it away is its entropy
    code, which is read whole at any scale: a grey image of an eighth of the size finds the faults that a full decode in
    colour finds, in two fifths of its time. Progressive, grey and RGB images are legal. Raises SourceError, naming `what`.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        raise SourceError(f"{what}: not a JPEG image") from None
    if colours not in COLOUR_SPACES:
        raise SourceError(f"{what}: a JPEG image in {colours}, which does not decode to RGB; convert it")
    if height * width > MAX_IMAGE_PIXELS:
        raise SourceError(f"{what}: {height}x{width} pixels, more than the {MAX_IMAGE_PIXELS} that a reader takes")
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise SourceError(f"{what}: the JPEG image is cut short")
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=CHECK_FACTOR)
    except ValueError as error:
        raise SourceError(f"{what}: the JPEG image is damaged ({error})") from None
    return height, width


def reencode(data, image_hw, quality):
    """JPEG bytes of an image that check_image has passed, resized to (height, width)."""
    pixels = simplejpeg.decode_jpeg(data, "RGB")
    small = Image.fromarray(pixels).resize((image_hw[1], image_hw[0]), Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=quality, colorsubsampling="420")
