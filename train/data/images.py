"""The JPEGs of a batch -> what the device stage begins with, frame by frame in the threads that load them.

Three forms, for three places of the work: resampled (the CPU does everything), decoded (a GPU resamples), encoded (the device
decodes too). Each has add(), which any number of threads call for different frames.
"""

import threading

import numpy as np
import simplejpeg
import torch

from common.record import CAMERAS_MEMBER, RecordError, image_member
from train.augment import resample_into


def decode_jpeg(data, camera, buffer=None):
    """(H,W,3) uint8 of a JPEG whose size is checked, in `buffer` if given. Raises RecordError if it is damaged."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except ValueError as error:
        raise RecordError(f"{image_member(camera)}: does not decode ({error})") from None


def check_size(data, camera, stored_hw):
    """Raise RecordError for a JPEG whose header claims another size: it decides how much memory decoding takes."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise RecordError(f"{image_member(camera)}: not a JPEG image ({error})") from None
    if (height, width) != tuple(stored_hw):
        raise RecordError(f"{image_member(camera)}: {height}x{width} pixels, {CAMERAS_MEMBER} says otherwise")


def check_sizes(encoded, cams, sizes_hw):
    """Raise RecordError for the first JPEG that claims another size than its record."""
    for data, camera, size in zip(encoded, cams, sizes_hw, strict=True):
        check_size(data, camera, size)


def encoded_images(members, cams):
    """The JPEGs of the cameras, of a dict from member name to bytes. Raises RecordError for one that is missing."""
    try:
        return [members[image_member(camera)] for camera in cams]
    except KeyError as error:
        raise RecordError(f"its member {error} is missing") from None


class ResampledImages:
    """Decoded into a scratch buffer and resampled from there, a frame at a time.

    tensor: (frames,S,3,h,w) float32 in [0,1]; its memory returns to the pool with the last tensor that shows it.
    """

    def __init__(self, pools, frames, slots, stage):
        shape = (frames, slots, 3, *stage.final_hw)
        self.tensor = pools.batches.lease(shape, np.float32)
        self.pool, self.interpolation = pools.scratch, stage.interpolation

    def add(self, frame, encoded, cams, sizes_hw, resize_wh, crop_ltrb):
        check_sizes(encoded, cams, sizes_hw)
        ends = np.cumsum([3 * height * width for height, width in sizes_hw])
        buffer = self.pool.take((int(ends[-1]),))
        try:
            places = [part.reshape(*size, 3) for part, size in zip(np.split(buffer, ends[:-1]), sizes_hw, strict=True)]
            # All are decoded before the first is resampled: what is done six times in a row finds its code in the cache, which
            # saves more than pixels that still lie there.
            for data, camera, place in zip(encoded, cams, places, strict=True):
                decode_jpeg(data, camera, place)
            for out, pixels, wh, ltrb in zip(self.tensor[frame], places, resize_wh, crop_ltrb, strict=True):
                resample_into(out, torch.from_numpy(pixels), wh, ltrb, self.interpolation)
        finally:
            self.pool.give([buffer])


class DecodedImages:
    """Decoded into page-locked memory: frames of one image size into one buffer for the batch, so that one copy takes them all.

    whole: (frames,S,H,W,3) uint8 where all are of one size, else None. images: by frame, S images (H,W,3).
    """

    def __init__(self, pools, frames, slots, stage):
        self.pools, self.frames, self.slots = pools, frames, slots
        self.lock = threading.Lock()
        self.shared, self.odd, self.images = None, [], [None] * frames

    def add(self, frame, encoded, cams, sizes_hw, resize_wh, crop_ltrb):
        check_sizes(encoded, cams, sizes_hw)
        places = self._places(frame, sizes_hw)
        for data, camera, place in zip(encoded, cams, places, strict=True):
            decode_jpeg(data, camera, place)
        self.images[frame] = places

    def _places(self, frame, sizes_hw):
        with self.lock:
            if self.shared is None:
                self.shared = self.pools.batches.take((self.frames, self.slots, *sizes_hw[0], 3))
            if set(sizes_hw) == {self.shared.shape[2:4]}:
                return self.shared[frame]
            places = [self.pools.scratch.take((*size, 3)) for size in sizes_hw]
            self.odd += places
            return places

    @property
    def whole(self):
        return None if self.odd else self.shared

    def give_back(self, event):
        """Return the memory once the event has passed."""
        self.pools.batches.give([self.shared], event)
        self.pools.scratch.give(self.odd, event)


class EncodedImages:
    """Left as they are for the device to decode: by frame, S JPEGs, their cameras and the sizes they must have."""

    def __init__(self, pools, frames, slots, stage):
        self.encoded, self.cams, self.sizes_hw = ([None] * frames for _ in range(3))

    def add(self, frame, encoded, cams, sizes_hw, resize_wh, crop_ltrb):
        check_sizes(encoded, cams, sizes_hw)
        self.encoded[frame], self.cams[frame], self.sizes_hw[frame] = encoded, cams, sizes_hw

    def check(self, frame):
        """Raise RecordError for the first image of a frame that does not decode here either."""
        for data, camera in zip(self.encoded[frame], self.cams[frame], strict=True):
            decode_jpeg(data, camera)


class NoImages:
    """Of a batch without them."""

    def __init__(self, pools, frames, slots, stage):
        pass


def images_of(stage, use_cameras=True):
    """Which of the three forms a StageConfig wants, or none."""
    if not use_cameras:
        return NoImages
    if stage.decode == "device":
        return EncodedImages
    return DecodedImages if stage.on_cuda else ResampledImages
