"""Photometric augmentation: brightness, contrast, saturation and hue of each image, as one affine map of its colours."""

import math

import numpy as np
import torch

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_MOST_HUE = math.radians(36)  # of a whole strength; a tenth of the circle, as far as torchvision's jitter usually goes
_GREY = 0.5  # what contrast goes about


def draw_colours(rng, strength, shape):
    """(*shape, 3, 4) float32: new colours in [0, 1] from old ones and a 1.

    rng: numpy Generator of the sample. strength: 0 to 1; brightness, contrast and saturation are multiplied by 1 - strength to
    1 + strength. shape: T, S; whatever T, the first are drawn alike.
    """
    draws = rng.uniform(-1.0, 1.0, (*shape, 4))
    brightness, contrast, saturation = (1 + strength * draws[..., i, None, None] for i in range(3))
    grey = np.broadcast_to(_LUMA, (3, 3))
    turned = saturation * (_hue_turn(strength * _MOST_HUE * draws[..., 3]) @ (np.eye(3) - grey)) + grey
    shift = np.broadcast_to(_GREY * (1 - contrast), (*shape, 3, 1))
    return (brightness * np.concatenate([contrast * turned, shift], -1)).astype(np.float32)


def _hue_turn(angle):
    """(..., 3, 3): turns about the axis of greys (Rodrigues)."""
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    cos, sin = np.cos(angle)[..., None, None], np.sin(angle)[..., None, None]
    return np.eye(3) + sin * cross + (1 - cos) * cross @ cross


def recoloured(images, colours):
    """Images (n,3,h,w) in [0,1] with colours (n,3,4) applied, in new memory; nothing waits for the device."""
    out = torch.baddbmm(colours[..., 3:], colours[..., :3], images.flatten(2))
    return out.clamp_(0.0, 1.0).view(images.shape)
