"""Batches made worse on purpose: what a network still says when a camera, the calibration, a sensor or the picture fails.

Every change is a pure function of the batch and of (seed, sample), so that two networks meet the same damage.
"""

import dataclasses
import math

import numpy as np
import torch

from common.errors import InputError
from train.data.augmentation import UNSEEN_PX
from train.data.order import sample_rng
from train.evaluation.corruptions import CORRUPTIONS, STREAM, STRENGTHS, corrupted

OFF = ((0.5, 0.02), (1.0, 0.05), (2.0, 0.10), (5.0, 0.20))  # degrees and metres of a calibration error


def without_camera(batch, camera):
    """The batch with one camera absent from the mean: nothing in the grid falls into its image any more."""
    intrins = batch.intrins.clone()
    for b, names in enumerate(batch.cams):
        for slot in _slots(names, camera):
            intrins[b, :, slot, :2, 2] = UNSEEN_PX
    return dataclasses.replace(batch, intrins=intrins)


def with_black_camera(batch, camera):
    """The batch with one camera's images black."""
    imgs = batch.imgs.clone()
    for b, names in enumerate(batch.cams):
        for slot in _slots(names, camera):
            imgs[b, :, slot] = 0.0
    return dataclasses.replace(batch, imgs=imgs)


def _slots(names, camera):
    return [slot for slot, name in enumerate(names) if name == camera]


def with_moved_cameras(batch, degrees, metres, seed=0):
    """The batch with each camera but the reference turned about a random axis and moved in a random direction.

    degrees, metres: of every turn and move. The reference camera stays, since labels are in its frame.
    """
    rots, trans = batch.rots.clone(), batch.trans.clone()
    for b, sample in enumerate(batch.indices):
        rng = sample_rng(seed, 0, sample, STREAM)
        for slot in range(1, rots.shape[2]):
            turn = torch.from_numpy(_rotation(rng, math.radians(degrees))).to(rots)
            move = rng.normal(size=3)
            move = torch.from_numpy(metres * move / np.linalg.norm(move)).to(trans)
            rots[b, :, slot] = rots[b, :, slot] @ turn
            trans[b, :, slot] = trans[b, :, slot] + move
    return dataclasses.replace(batch, rots=rots, trans=trans)


def _rotation(rng, radians):
    """(3,3) rotation by an angle about a random axis (Rodrigues)."""
    x, y, z = (axis := rng.normal(size=3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(radians) * cross + (1 - np.cos(radians)) * cross @ cross


def without_points(batch, sensor):
    """The batch with no returns of "lidar" or "radar": only padding, for networks that look at points themselves too."""
    counts = ("num_radar",) if sensor == "radar" else ("num_lidar", "num_lidar0")
    gone = {name: torch.zeros_like(getattr(batch, name)) for name in (f"{sensor}_data", *counts)}
    if sensor == "lidar":
        gone["lidar_extra"] = torch.full_like(batch.lidar_extra, -1.0)
    return dataclasses.replace(batch, **gone)


def offsets(degrees, centimetres):
    """((degrees, metres), …) of two comma lists, pair by pair. Raises ValueError."""
    try:
        pairs = list(zip(*([float(v) for v in text.split(",")] for text in (degrees, centimetres)), strict=True))
    except ValueError as error:
        raise InputError(
            f"--off_degrees {degrees}, --off_cm {centimetres}: two lists of as many numbers, such as 1,2 and 5,10 ({error})"
        ) from None
    return tuple((turn, move / 100) for turn, move in pairs)


def damages(cameras, sensors, seed=0, off=OFF):
    """Name -> Batch -> Batch of every damage.

    cameras: that the batches hold. sensors: of "lidar" and "radar" those that are used. off: (degrees, metres) of every
    calibration error.
    """
    out = {}
    for camera in cameras:
        out[f"without {camera}"] = lambda batch, c=camera: without_camera(batch, c)
    for camera in cameras:
        out[f"black {camera}"] = lambda batch, c=camera: with_black_camera(batch, c)
    for degrees, metres in off:
        name = f"calibration off by {degrees:g} degrees, {100 * metres:g} cm"
        out[name] = lambda batch, d=degrees, m=metres: with_moved_cameras(batch, d, m, seed)
    for sensor in sensors:
        out[f"without {sensor}"] = lambda batch, s=sensor: without_points(batch, s)
    for name in CORRUPTIONS:
        for strength in STRENGTHS:
            out[f"{name}, strength {strength}"] = lambda batch, n=name, s=strength: corrupted(batch, n, s, seed)
    return out
