"""What light and weather make of the colours of a scene."""

import cv2
import numpy as np

from preprocess.synth.roads import SURFACES

CAMERA_HEIGHT_M = 1.55
_SKIES = {
    "day": ((120, 165, 215), (205, 222, 235)),
    "dusk": ((70, 75, 120), (225, 150, 105)),
    "night": ((7, 8, 16), (24, 22, 30)),
}
_WET_SKY = ((128, 134, 142), (172, 176, 180))
_LIGHT = {"day": (0.85, 1.1), "dusk": (0.5, 0.62), "night": (0.2, 0.27)}
_GROUND = dict(
    walkway=(158, 152, 146),
    kerb=(188, 184, 178),
    carpark=(108, 106, 106),
    asphalt=(88, 88, 92),
    yellow=(225, 180, 60),
    white=(228, 228, 224),
)
_HEADLIGHT_M = 16.0


class Look:
    """Colours and grain of one scene's images; everything follows from its look_seed.

    light: what colours are multiplied by; ground: RGB of what is beside the walkways and of each surface; sky: RGB at
    the top and at the horizon; haze_m: metres after which 63 % of a colour is that of the horizon.
    """

    def __init__(self, scene, image_hw):
        rng = np.random.default_rng(scene.look_seed)
        conditions = scene.conditions
        self.rain, self.night = conditions.rain, conditions.light == "night"
        self.lamps = conditions.light != "day" or self.rain  # vehicles have their lights on
        self.light = rng.uniform(*_LIGHT[conditions.light]) * (0.8 if self.rain and not self.night else 1.0)
        self.haze_m = 90.0 if self.rain else 400.0
        sky = np.array(_WET_SKY if self.rain and not self.night else _SKIES[conditions.light], float)
        self.sky = (sky * rng.uniform(0.9, 1.08)).clip(0, 255)
        base = rng.choice([(112, 124, 82), (150, 138, 112), (138, 138, 134)]) + rng.uniform(-14, 14, 3)
        wet = {"asphalt": 0.62, "carpark": 0.66, "walkway": 0.74} if self.rain else {}
        self.base = base * (0.8 if self.rain else 1.0)
        tint = rng.uniform(0.88, 1.12)
        paved = {name: np.array(_GROUND[name]) * wet.get(name, 0.9 if self.rain else 1.0) for name in SURFACES}
        paved.update({name: paved[name] * tint for name in ("asphalt", "carpark", "walkway")})
        self.paved = paved
        self.skyline = _skyline(rng)
        self.background = self._background(image_hw)
        self.grain = self._grain(rng, image_hw)

    def _background(self, image_hw):
        """(H, W, 3) uint8: sky above the horizon, ground below it."""
        height, width = image_hw
        rows = np.linspace(0, 2, height)[:, None]
        sky = self.sky[0] + (self.sky[1] - self.sky[0]) * rows.clip(0, 1) ** 1.5
        ground = self.hazed(self.base * self.light, CAMERA_HEIGHT_M * 1.6 / (rows - 1).clip(0.004))
        column = np.where(rows < 1, sky, ground).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(column[:, None], (height, width, 3)))

    def _grain(self, rng, image_hw):
        """(H + 64, W + 64, 3) uint8 to add to an image, from any of 64 x 64 corners: noise and, in rain, streaks."""
        height, width = image_hw[0] + 64, image_hw[1] + 64
        grain = rng.integers(0, 12, (height // 4 + 1, width // 4 + 1), np.uint8)
        grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_NEAREST)
        if self.rain:
            for x, y, length in rng.uniform((0, 0, 0.02), (width, height, 0.07), (500, 3)):
                tip = (round(x - 0.12 * length * height), round(y + length * height))
                cv2.line(grain, (round(x), round(y)), tip, int(rng.integers(16, 46)), 1 + (image_hw[0] > 500))
        return cv2.merge([grain] * 3)

    def hazed(self, colour, metres):
        """Colour (..., 3) as seen from that far (..., broadcast against it)."""
        share = np.exp(-metres / self.haze_m)
        return colour * share + self.sky[1] * (1 - share)

    def lit(self, forward, left):
        """What the ego's headlights add to the light at points of its frame (metres), as a share of daylight."""
        if not self.night:
            return 0.0
        metres = np.hypot(forward, left)
        beam = np.exp(-((np.arctan2(left, forward) / 0.45) ** 2)) * (forward > 0)
        return 0.75 * beam * np.exp(-metres / _HEADLIGHT_M)


def _skyline(rng):
    """(n, 2): direction in radians and height over distance of far houses, all round."""
    edges = np.sort(rng.uniform(-np.pi, np.pi, 70))
    return np.column_stack([edges, rng.uniform(0.015, 0.11, len(edges))])
