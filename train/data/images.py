"""The JPEGs of a batch -> what the device stage begins with, image by image in the threads that load its frames.

Three forms, for three places of the work: resampled (the CPU does everything), decoded (a GPU resamples), encoded (the device
decodes too). Each has add(), which any number of threads call for different frames.
"""

import threading

import numpy as np
import simplejpeg
import torch

from common.record import RecordError, image_member
from train.augment import resample_into

MAX_PIXELS = 64 << 20  # of an image, before memory is taken for it


def decode_jpeg(data, camera, stored_hw, buffer=None):
    """(H,W,3) uint8 of a JPEG, in `buffer` if given. Raises RecordError if it is damaged or of another size."""
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except ValueError as error:
        raise RecordError(f"{image_member(camera)}: does not decode ({error})") from None
    if image.shape[:2] != tuple(stored_hw):
        raise RecordError(f"{image_member(camera)}: {image.shape[:2]} pixels, cameras.npy says otherwise")
    return image


def check_sizes(cams, sizes_hw):
    """Raise RecordError for images larger than any camera's, or of no size at all."""
    for camera, (height, width) in zip(cams, sizes_hw, strict=True):
        if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
            raise RecordError(f"{image_member(camera)}: claims {height}x{width} pixels, the limit is {MAX_PIXELS}")


class ResampledImages:
    """Decoded one by one into a scratch buffer and resampled from there, while its pixels are in the cache.

    tensor: (frames,S,3,h,w) float32 in [0,1]; its memory returns to the pool with the last tensor that shows it.
    """

    def __init__(self, pools, frames, slots, stage):
        shape = (frames, slots, 3, *stage.final_hw)
        self.tensor = pools.batches.lease(shape, np.float32)
        self.pool, self.interpolation = pools.scratch, stage.interpolation

    def add(self, frame, encoded, cams, sizes_hw, resize_wh, crop_ltrb):
        check_sizes(cams, sizes_hw)
        for slot, (data, camera, size) in enumerate(zip(encoded, cams, sizes_hw, strict=True)):
            pixels = self.pool.take((*size, 3))
            try:
                image = torch.from_numpy(decode_jpeg(data, camera, size, pixels))
                resample_into(self.tensor[frame, slot], image, resize_wh[slot], crop_ltrb[slot], self.interpolation)
            finally:
                self.pool.give([pixels])


class DecodedImages:
    """Decoded into page-locked memory: frames of one image size into one buffer for the batch, so that one copy takes them all.

    whole: (frames,S,H,W,3) uint8 where all are of one size, else None. images: by frame, S images (H,W,3).
    """

    def __init__(self, pools, frames, slots, stage):
        self.pools, self.frames, self.slots = pools, frames, slots
        self.lock = threading.Lock()
        self.shared, self.odd, self.images = None, [], [None] * frames

    def add(self, frame, encoded, cams, sizes_hw, resize_wh, crop_ltrb):
        check_sizes(cams, sizes_hw)
        places = self._places(frame, sizes_hw)
        for data, camera, size, place in zip(encoded, cams, sizes_hw, places, strict=True):
            decode_jpeg(data, camera, size, place)
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
        self.encoded[frame], self.cams[frame], self.sizes_hw[frame] = encoded, cams, sizes_hw

    def check(self, frame):
        """Raise RecordError for the first image of a frame that does not decode here either."""
        check_sizes(self.cams[frame], self.sizes_hw[frame])
        for data, camera, size in zip(self.encoded[frame], self.cams[frame], self.sizes_hw[frame], strict=True):
            decode_jpeg(data, camera, size)


def images_of(stage):
    """Which of the three forms a StageConfig wants."""
    if stage.decode == "device":
        return EncodedImages
    return DecodedImages if stage.on_cuda else ResampledImages
