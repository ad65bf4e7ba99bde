"""How lenses bend: Brown-Conrady and Kannala-Brandt (fisheye) as OpenCV defines them, on tensors, and how far they hold.

A lens is a row of LENS_SIZE numbers, so that cameras of all models go through one computation: its model (0 for a pinhole,
which bends nothing), how far from the axis its polynomial still rises, and up to 14 coefficients in OpenCV's order.
https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html and …/db/d58/group__calib3d__fisheye.html
"""

import functools

import numpy as np
import torch

from common.errors import InputError

LENS_SIZE = 16
PINHOLE, BROWN_CONRADY, KANNALA_BRANDT = 0, 1, 2
_MODELS = {"brown_conrady": BROWN_CONRADY, "kannala_brandt": KANNALA_BRANDT}
_FARTHEST = 20.0  # of Brown-Conrady, distance from the axis over depth: 87 degrees
_STEPS = 20_000
_AXIS = 1e-8


@functools.lru_cache(maxsize=256)
def lens_row(distortion):
    """(LENS_SIZE,) float32 of a common.rig.Distortion, or of None for a pinhole. Raises InputError for a tilted lens."""
    row = np.zeros(LENS_SIZE, np.float32)
    if distortion is not None:
        if any(distortion.coefficients[12:]):
            raise InputError(
                "a lens that tilts the image plane is not projected by; make the shards without --keep-distortion"
            )
        row[0] = _MODELS[distortion.model]
        row[1] = _reach(distortion)
        row[2 : 2 + len(distortion.coefficients)] = distortion.coefficients
    row.setflags(write=False)
    return row


def _reach(distortion):
    """Up to which distance from the axis (over depth; of a fisheye, angle in radians) the image of it grows.

    Beyond, a polynomial folds back, and what the lens cannot see would lie in the image.
    """
    k = [*distortion.coefficients, *[0.0] * 14]
    if distortion.model == "kannala_brandt":
        theta = np.linspace(0, np.pi, _STEPS)
        image = theta * (1 + np.polyval([k[3], k[2], k[1], k[0], 0], theta**2))
        return _last_rising(theta, image)
    radius = np.linspace(0, _FARTHEST, _STEPS)
    above, below = (1 + np.polyval([*three[::-1], 0], radius**2) for three in ((k[0], k[1], k[4]), k[5:8]))
    with np.errstate(divide="ignore", invalid="ignore"):
        image = np.where(below > 0, radius * above / below, -np.inf)
    return _last_rising(radius, image)


def _last_rising(where, image):
    falls = np.flatnonzero(~(np.diff(image) > 0))
    return float(where[falls[0]] if len(falls) else where[-1])


def bend(xyz, lenses):
    """Points in cameras' frames -> where pinhole cameras would have to see them: multiply x, y, 1 by the intrinsics.

    Args:
        xyz: (..., N, 3) metres. lenses: (..., LENS_SIZE) rows of lens_row.
    Returns:
        x, y (..., N), and whether the lens sees in that direction; for a pinhole too, whose x and y are those over depth.
    """
    (x, y, z), rows = xyz.unbind(-1), lenses[..., None]
    kind, reach, k = rows[..., 0, :], rows[..., 1, :], rows[..., 2:, :].unbind(-2)
    depth = z.clamp(min=1e-6)
    plain = x / depth, y / depth, z > 0
    brown = _brown(*plain[:2], plain[2], reach, k)
    fisheye = _fisheye(x, y, z, reach, k)
    return tuple(
        torch.where(kind == BROWN_CONRADY, b, torch.where(kind == KANNALA_BRANDT, f, p))
        for p, b, f in zip(plain, brown, fisheye, strict=True)
    )


def _brown(x, y, ahead, reach, k):
    squared = x * x + y * y
    radial = 1 + squared * (k[0] + squared * (k[1] + squared * k[4]))
    radial = radial / (1 + squared * (k[5] + squared * (k[6] + squared * k[7])))
    across = x * radial + 2 * k[2] * x * y + k[3] * (squared + 2 * x * x) + squared * (k[8] + squared * k[9])
    down = y * radial + k[2] * (squared + 2 * y * y) + 2 * k[3] * x * y + squared * (k[10] + squared * k[11])
    return across, down, ahead & (squared <= reach * reach)


def _fisheye(x, y, z, reach, k):
    radius = (x * x + y * y).sqrt()
    theta = torch.atan2(radius, z)
    squared = theta * theta
    bent = theta * (1 + squared * (k[0] + squared * (k[1] + squared * (k[2] + squared * k[3]))))
    scale = torch.where(radius > _AXIS, bent / radius.clamp(min=_AXIS), 1 / z.abs().clamp(min=_AXIS))
    return x * scale, y * scale, theta <= reach
