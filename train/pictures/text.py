"""Text on pictures, anti-aliased: OpenCV's strokes, drawn large and taken down, so that they read well when small."""

import functools

import cv2
import numpy as np

from train.pictures.palette import INK

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAP_HEIGHT = 21  # pixels of a capital at scale 1
_LARGER = 4


@functools.lru_cache(maxsize=512)
def _mask(text, height, bold):
    """((rows, columns) float32 coverage, row of the base line) of a text whose capitals are `height` pixels high."""
    scale = height * _LARGER / _CAP_HEIGHT
    thickness = max(1, round(height * _LARGER * (0.19 if bold else 0.125)))
    (width, above), below = cv2.getTextSize(text, _FONT, scale, thickness)
    margin = thickness + _LARGER
    rows, columns = (-(-(n + 2 * margin) // _LARGER) * _LARGER for n in (above + below, width))
    large = np.zeros((rows, columns), np.uint8)
    base = -(-(above + margin) // _LARGER) * _LARGER
    cv2.putText(large, text, (margin, base), _FONT, scale, 255, thickness, cv2.LINE_AA)
    small = cv2.resize(large, (columns // _LARGER, rows // _LARGER), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255, base // _LARGER


def plain(text):
    """The text in the characters that the strokes have; others become question marks."""
    return str(text).encode("ascii", "replace").decode()


def text_width(text, height=9, bold=False):
    """Columns that a text takes."""
    return _mask(plain(text), height, bold)[0].shape[1]


def fitting(text, width, height=9):
    """The text, cut and ended with dots where it is wider than `width` columns."""
    text = plain(text)
    if text_width(text, height) <= width:
        return text
    while text and text_width(text + "...", height) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def lines_of(text, width, height=9):
    """The text in as many lines as it takes in `width` columns, broken between words; a word that is wider is cut."""
    lines = []
    for word in plain(text).split():
        if lines and text_width(f"{lines[-1]} {word}", height) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(fitting(word, width, height))
    return lines


def write(image, text, at, height=9, colour=INK, align="left", bold=False, halo=None):
    """Write on `image` (H, W, 3) uint8, in place.

    at: (column, row) of the base line's beginning, middle or end as `align` says. height: of a capital, pixels.
    halo: colour around the letters, so that they read on top of data.
    """
    if not text:
        return
    mask, base = _mask(plain(text), height, bold)
    left = round(at[0] - {"left": 1, "centre": mask.shape[1] / 2, "right": mask.shape[1] - 1}[align])
    top = round(at[1]) - base
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + mask.shape[0], image.shape[0]), min(left + mask.shape[1], image.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    cover = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
    under = image[y0:y1, x0:x1]
    if halo is not None:
        around = cv2.dilate(mask, np.ones((5, 5)))[y0 - top : y1 - top, x0 - left : x1 - left, None]
        under[:] = (under + (np.array(halo, np.float32) - under) * around).round().astype(np.uint8)
    under[:] = (under + (np.array(colour, np.float32) - under) * cover).round().astype(np.uint8)


def tag(image, text, at, height=9, colour=INK):
    """Write on a darkened plate whose upper left corner is `at`, so that it reads on any picture. In place."""
    x, y = at
    pad = max(3, height // 2)
    plate = image[y : y + height + 2 * pad, x : x + text_width(text, height) + 2 * pad - 2]
    plate[:] = plate // 4
    write(image, text, (x + pad, y + pad + height), height, colour)
