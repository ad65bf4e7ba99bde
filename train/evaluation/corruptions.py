"""RoboBEV's eight corruptions of camera images, in three severities.

They are those of Xie et al., "RoboBEV: Towards Robust Bird's Eye View Perception under Corruptions", 2023, with the constants
of its public code (github.com/Daniel-xsy/RoboBEV; its easy, mid and hard). Brightness, fog, snow and motion blur it takes from
imagecorruptions (Michaelis et al., 2019), after ImageNet-C (Hendrycks and Dietterich, 2019).

There they are made offline, on whole images of 1600x900 pixels. Here a network's own images are corrupted: lengths in pixels
shrink with them, and pixel noise is that of the mean of the pixels that each of theirs stands for, so no strength depends on
the size that a network looks at. Where this is not theirs to the letter: each image takes one of PATTERNS layers of fog or snow
instead of one of its own; crashed cameras are different ones, where their draw may take one twice; colours stay unrounded.

Everything random is a pure function of (seed, sample) and drawn on the CPU: two networks and two devices meet the same damage.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np
import torch

from common.errors import InputError
from train.data.order import sample_rng

STREAM = 7  # of random numbers; order, draws and flips have theirs
STRENGTHS = (1, 2, 3)  # easy, mid, hard
FULL_WIDTH = 1600  # columns of the images that the published lengths are of
PATTERNS = 8  # of fog and of snow

BRIGHTER = (0.2, 0.4, 0.5)  # added to the value of HSV
DARK = (
    (0.4, 120, 0.018),
    (0.3, 50, 0.026),
    (0.2, 30, 0.038),
)  # brightest level, photons of level 1, sigma of the sensor's noise
FOG = ((2.0, 2.0), (2.5, 1.5), (3.0, 1.4))  # density, decay of its fractal
BLUR = ((15, 5), (15, 12), (20, 15))  # radius and sigma, pixels
BITS = (4, 3, 2)  # kept of each channel's 8
LOST = (2 / 6, 4 / 6, 5 / 6)  # share of the cameras that crash; probability that a frame is lost


@dataclasses.dataclass(frozen=True)
class Snow:
    """Of one severity: normal noise of `mean` and `sigma`, enlarged `zoom` times, cut below `floor`, blurred, laid over.

    radius, blur: of the flakes' motion, as in BLUR. kept: share of the picture that the whitening leaves.
    """

    mean: float
    sigma: float
    zoom: float
    floor: float
    radius: int
    blur: float
    kept: float


SNOW = (
    Snow(0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    Snow(0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    Snow(0.55, 0.3, 4, 0.9, 12, 8, 0.7),
)


def _scale(images):
    return images.shape[-1] / FULL_WIDTH


def brightness(images, strength, rng):
    """The value of HSV is raised and hue and saturation kept, which scales all channels alike; black becomes grey."""
    value = images.amax(1, keepdim=True)
    raised = (value + BRIGHTER[strength - 1]).clamp(max=1.0)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-6)), raised)


def dark(images, strength, rng):
    """Levels squared and pressed under the brightest one, photons counted, noise of the sensor added."""
    top, photons, sigma = DARK[strength - 1]
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    levels = ((images - low) / (high - low).clamp(min=1e-6)).square() * top
    pixels = max(1.0, 1 / _scale(images) ** 2)  # of theirs in one of ours
    bits = torch.from_numpy(rng.integers(0, 1 << 32, images.shape, np.uint32).view(np.int32)).to(images.device)
    counts, noise = (
        table.to(images.device)
        for table in (_photons(top, round(photons * pixels)), _normal(sigma / math.sqrt(pixels)))
    )
    place = (levels * (_LEVELS / top)).to(torch.int32) * _QUANTILES + (bits & (_QUANTILES - 1))
    counted = counts.index_select(0, place.view(-1)).view(images.shape)
    added = noise.index_select(0, ((bits >> 16) & (_QUANTILES - 1)).view(-1)).view(images.shape)
    return counted + added


_LEVELS = 255  # of brightness, and
_QUANTILES = 2048  # of chance, in the tables that noise is looked up in: drawing it anew took ten times as long


@functools.lru_cache(maxsize=8)
def _photons(top, photons):
    """(256 * _QUANTILES,) float32: quantiles of Poisson counts over `photons`, at most 1, of each level up to `top`."""
    chance = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    most = int(photons * top + 10 * math.sqrt(photons * top) + 20)
    log_factorial = np.cumsum(np.log(np.maximum(np.arange(most + 1), 1)))
    out = []
    for level in np.arange(_LEVELS + 1):
        # The middle of the levels that are taken for this one.
        mean = min(level + 0.5, _LEVELS) / _LEVELS * top * photons
        mass = np.exp(np.arange(most + 1) * math.log(mean) - mean - log_factorial)
        out.append(np.searchsorted(np.cumsum(mass), chance).clip(max=most) / photons)
    return torch.from_numpy(np.concatenate(out).clip(0, 1).astype(np.float32))


@functools.lru_cache(maxsize=8)
def _normal(sigma):
    """(_QUANTILES,) float32 quantiles of a normal distribution about 0."""
    chance = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    return (sigma * math.sqrt(2) * torch.erfinv(2 * chance - 1)).float()


def fog(images, strength, rng):
    """A plasma fractal is added, and the sum brought back under the picture's brightest level."""
    density, _ = FOG[strength - 1]
    layers = _layers(_fog_layer, images, strength, rng)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + density * layers) * (brightest / (brightest + density))


@functools.lru_cache(maxsize=3 * PATTERNS)
def _fog_layer(number, strength, height, width):
    rng = np.random.default_rng((STREAM, number, strength))
    side = 1 << (max(height, width) - 1).bit_length()
    return plasma(side, FOG[strength - 1][1], rng)[:height, :width].copy()


def plasma(side, decay, rng):
    """(side, side) float32 in [0, 1]: heights of the diamond-square algorithm on a torus; side: a power of two.

    decay: what the size of the random steps is divided by from one level to the next.
    """
    out = np.zeros((side, side), np.float32)
    step, wobble = side, 100.0

    def moved(total):
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape).astype(np.float32)

    while step >= 2:
        half = step // 2
        corners = out[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        out[half::step, half::step] = moved(rows + np.roll(rows, -1, 1))
        middles = out[half::step, half::step]
        out[::step, half::step] = moved(middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1))
        out[half::step, ::step] = moved(middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wobble = half, wobble / decay
    out -= out.min()
    return out / out.max()


def snow(images, strength, rng):
    """The picture is whitened, and flakes laid over it twice, once turned by half a turn."""
    kept = SNOW[strength - 1].kept
    red, green, blue = images.split(1, 1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    return (
        kept * images
        + (1 - kept) * torch.maximum(images, 1.5 * grey + 0.5)
        + _layers(_snow_layer, images, strength, rng)
    )


@functools.lru_cache(maxsize=3 * PATTERNS)
def _snow_layer(number, strength, height, width):
    rng = np.random.default_rng((STREAM, number, strength))
    rows = max(height, round(height * FULL_WIDTH / width))  # flakes are made at their own size
    columns = max(width, FULL_WIDTH)
    layer = flakes(SNOW[strength - 1], rows, columns, rng)
    return cv2.resize(layer + layer[::-1, ::-1], (width, height), interpolation=cv2.INTER_AREA)


def flakes(how, rows, columns, rng):
    """(rows, columns) float32 in [0, 1]: flakes that fall, each a streak. how: Snow."""
    small = [math.ceil(n / how.zoom) for n in (rows, columns)]
    noise = rng.normal(how.mean, how.sigma, small).astype(np.float32)
    # Pixels of the corners stay where they are, as where scipy zooms.
    at = [np.linspace(0, n - 1, round(n * how.zoom), dtype=np.float32) for n in small]
    noise = cv2.remap(noise, *np.meshgrid(at[1], at[0]), cv2.INTER_LINEAR)
    noise[noise < how.floor] = 0
    angle = rng.uniform(-135, -45)
    return blurred(torch.from_numpy(noise.clip(0, 1)[None]), how.radius, how.blur, angle)[0, :rows, :columns].numpy()


def motion_blur(images, strength, rng):
    """Each picture is smeared to one side of every point, at an angle of at most 45 degrees to its rows."""
    radius, sigma = BLUR[strength - 1]
    angles = rng.uniform(-45, 45, len(images))
    return torch.stack([blurred(own, radius, sigma, a, _scale(images)) for own, a in zip(images, angles, strict=True)])


def blurred(image, radius, sigma, angle, scale=1.0):
    """An image (C, H, W) smeared along a line: half a Gaussian of `sigma` pixels over 2 * radius + 1 of them.

    angle: degrees. scale: pixels of the image to one of radius and sigma. Beyond its edges the image goes on as it ends.
    """
    away = np.arange(2 * radius + 1)
    weights = np.exp(-(away**2) / (2 * sigma**2))
    along = away * scale
    # Half a pixel goes to the nearer side, as published.
    shifts = [-np.ceil(along * trig(math.radians(angle)) - 0.5).astype(int) for trig in (math.sin, math.cos)]
    taps = {}
    for down, right, weight in zip(*shifts, weights / weights.sum(), strict=True):
        taps[down, right] = taps.get((down, right), 0.0) + weight
    pad = [max(abs(int(s.min())), abs(int(s.max()))) for s in shifts]
    wide = torch.nn.functional.pad(image[None], (pad[1], pad[1], pad[0], pad[0]), mode="replicate")[0]
    height, width = image.shape[-2:]
    out = torch.zeros_like(image)
    for (down, right), weight in taps.items():
        top, left = pad[0] - int(down), pad[1] - int(right)
        out.add_(wide[:, top : top + height, left : left + width], alpha=float(weight))
    return out


def _layers(make, images, strength, rng):
    """(S, 1, H, W): one of the patterns for each image."""
    numbers = rng.integers(0, PATTERNS, len(images))
    layers = np.stack([make(int(number), strength, *images.shape[-2:]) for number in numbers])
    return torch.from_numpy(layers[:, None]).to(images.device)


def colour_quantisation(images, strength, rng):
    """Only the highest bits of each channel are kept."""
    step = 1 << (8 - BITS[strength - 1])
    return (images * (255 / step) + 1e-4).floor() * (step / 255)


def frame_lost(images, strength, rng):
    """Each camera's frame is black with a probability."""
    lost = torch.from_numpy(rng.random(len(images)) < LOST[strength - 1]).to(images.device)
    return torch.where(lost[:, None, None, None], 0.0, images)


def crashed_cameras(names, strength, seed=0):
    """Which of the cameras' names are black throughout the set."""
    rng = sample_rng(seed, strength, 0, STREAM)
    ordered = sorted(names)
    return {ordered[n] for n in rng.permutation(len(ordered))[: round(LOST[strength - 1] * len(ordered))]}


_OF_IMAGES = {
    "brightness": brightness,
    "dark": dark,
    "fog": fog,
    "snow": snow,
    "motion blur": motion_blur,
    "colour quantisation": colour_quantisation,
    "frame lost": frame_lost,
}
CRASH = "camera crash"
CORRUPTIONS = (*list(_OF_IMAGES)[:-1], CRASH, "frame lost")


def corrupted(batch, name, strength, seed=0):
    """The batch with its images corrupted. name: of CORRUPTIONS. strength: 1, 2 or 3. Raises ValueError for others."""
    if name not in CORRUPTIONS or strength not in STRENGTHS:
        raise InputError(
            f"corruption {name!r} of strength {strength}; there are {', '.join(CORRUPTIONS)}, of 1, 2 and 3"
        )
    imgs = torch.empty_like(batch.imgs)
    for b, sample in enumerate(batch.indices):
        rng = sample_rng(seed, strength, sample, STREAM)
        for t, images in enumerate(batch.imgs[b]):
            if name == CRASH:
                crashed = crashed_cameras(batch.cams[b], strength, seed)
                gone = torch.tensor([camera in crashed for camera in batch.cams[b]], device=images.device)
                imgs[b, t] = torch.where(gone[:, None, None, None], 0.0, images)
            else:
                imgs[b, t] = _OF_IMAGES[name](images, strength, rng).clamp_(0, 1)
    return dataclasses.replace(batch, imgs=imgs)
