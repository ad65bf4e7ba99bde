"""Images of lenses that bend -> images of pinhole cameras, once, at preprocessing: what every network can project into."""

import functools

import cv2
import numpy as np

from common.rig import Distortion

# Of a fisheye's rectified image: further out a pinhole's pixels grow without bound, and what lies there is lost.
MAX_HALF_ANGLE_RAD = np.deg2rad(60.0)


def can_keep(distortion):
    """Whether networks can project by a distortion, or None: all but tilted lenses, which are rectified."""
    return distortion is None or not any(distortion.coefficients[12:])


def rectified(pixels, intrinsics, distortion):
    """(pixels, intrinsics (3, 3)) of a pinhole camera in the same place, the image as large as before.

    Of Brown-Conrady the largest field of view of which every pixel was seen; of a fisheye as far to the sides as it saw, up to
    60 degrees each way. Remapped bilinearly.

    Args:
        pixels: (H, W, 3) uint8. intrinsics: (3, 3) of its pixels. distortion: common.rig.Distortion.
    """
    height, width = pixels.shape[:2]
    new, *maps = _maps(tuple(np.asarray(intrinsics, np.float64).ravel().tolist()), distortion, height, width)
    return cv2.remap(pixels, *maps, cv2.INTER_LINEAR), new.copy()


@functools.lru_cache(maxsize=64)
def _maps(intrinsics, distortion: Distortion, height, width):
    """(intrinsics of the pinhole, the two maps of cv2.remap)."""
    old, coefficients = np.array(intrinsics).reshape(3, 3), np.array(distortion.coefficients)
    size, turn = (width, height), np.eye(3)
    if distortion.model == "kannala_brandt":
        new = _pinhole_of_fisheye(old, distortion, height, width)
        return new, *cv2.fisheye.initUndistortRectifyMap(old, coefficients, turn, new, size, cv2.CV_16SC2)
    new, _ = cv2.getOptimalNewCameraMatrix(old, coefficients, size, 0)
    return new, *cv2.initUndistortRectifyMap(old, coefficients, turn, new, size, cv2.CV_16SC2)


def _pinhole_of_fisheye(old, distortion, height, width):
    theta = np.linspace(0, MAX_HALF_ANGLE_RAD, 6001)
    k1, k2, k3, k4 = distortion.coefficients
    bent = theta * (1 + np.polyval([k4, k3, k2, k1, 0], theta**2))
    rising = np.flatnonzero(np.diff(bent) <= 0)
    last = rising[0] if len(rising) else len(theta) - 1
    edge = min(old[0, 2] + 0.5, width - 0.5 - old[0, 2]) / old[0, 0]
    half = theta[min(np.searchsorted(bent[: last + 1], edge), last)]
    focal = width / 2 / np.tan(half)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal * old[1, 1] / old[0, 0], (height - 1) / 2], [0, 0, 1.0]])
