"""Pictures one after another, as a WebM by OpenCV's FFmpeg or a GIF by Pillow (torchvision brings it), by the file's name."""

import contextlib
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.errors import InputError
from common.files import new_path
from train.pictures import palette

SUFFIXES = (".webm", ".gif")


def write_video(path, pictures, frames_per_s):
    """Write (H, W, 3) uint8 RGB pictures of one size; the file gets its name when it is whole. Returns their number.

    Raises:
        ValueError: a name that is neither .webm nor .gif, or an OpenCV that can't write WebM.
    """
    path = Path(path)
    write = {".webm": _write_webm, ".gif": _write_gif}.get(path.suffix.lower())
    if write is None:
        raise InputError(f"{path}: a video ends in {' or '.join(SUFFIXES)}")
    with new_path(path) as temporary:
        return write(temporary, pictures, frames_per_s)


def _write_webm(path, pictures, frames_per_s):
    writer, count = None, 0
    try:
        for picture in pictures:
            even = picture[
                : picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2
            ]  # the codec halves the colours' size
            writer = writer or _open_webm(path, frames_per_s, even.shape)
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
            count += 1
    finally:
        if writer is not None:
            writer.release()
    return count


def _open_webm(path, frames_per_s, shape):
    for codec in ("VP90", "VP80"):
        with _quiet():
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), frames_per_s, (shape[1], shape[0]))
        if writer.isOpened():
            return writer
    raise InputError("this OpenCV has no VP8 or VP9 encoder for WebM: name a .gif, or install opencv-python-headless")


@contextlib.contextmanager
def _quiet():
    """Without what FFmpeg writes to the terminal about a codec tag, although it goes on to take another that fits."""
    sys.stderr.flush()
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


def _write_gif(path, pictures, frames_per_s):
    frames, table = [], None
    for picture in pictures:
        image = Image.fromarray(np.ascontiguousarray(picture))
        if table is None:  # one for all pictures, or still things would change their colours
            table = Image.new("P", (1, 1))
            table.putpalette(_gif_colours(image))
        frames.append(image.quantize(palette=table, dither=Image.Dither.NONE))
    if frames:
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / frames_per_s), loop=0)
    return len(frames)


def _gif_colours(image):
    """256 RGB triples, flat: those that mean something exactly, and of the rest what the image needs most."""
    named = [kind.colour for kind in palette.KINDS] + [palette.dimmed(kind.colour) for kind in palette.KINDS]
    named += [palette.PAGE, palette.GROUND, palette.LINE, palette.INK, palette.RADAR, palette.TRUTH, palette.MASKED]
    named += [palette.HIT, palette.FALSE, palette.MISSED]
    flat = [value for colour in named for value in colour]
    for table in (palette.HEIGHT_RAMP, palette.PROBABILITY_RAMP):
        flat += table[np.linspace(0, 255, 16).astype(int)].ravel().tolist()
    rest = 256 - len(flat) // 3
    return (flat + image.quantize(rest, method=0).getpalette()[: 3 * rest])[: 3 * 256]
