"""Each corruption against its published definition, written out in loops over pixels, at the size that it is published for."""

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch

from train.evaluation import corruptions
from train.evaluation.corruptions import CORRUPTIONS, FULL_WIDTH, SNOW, corrupted, crashed_cameras

NAMES = tuple(f"CAM_{n}" for n in range(6))


@pytest.fixture(scope="module")
def wide():
    """(1, 3, 16, 1600) images: as wide as those of the definitions, so that nothing is scaled."""
    return torch.rand((1, 3, 16, FULL_WIDTH), generator=torch.Generator().manual_seed(0))


class Drawn:
    """A generator of numbers that are said beforehand, for what a definition draws."""

    def __init__(self, value):
        self.value = value

    def uniform(self, low, high, size=None):
        return self.value if size is None else np.full(size, self.value)


@dataclass
class Pictures:
    """What corruptions look at of a Batch."""

    imgs: torch.Tensor
    indices: list
    cams: list


def pictures(shape=(2, 1, 6, 3, 24, 40)):
    rng = torch.Generator().manual_seed(0)
    return Pictures(torch.rand(shape, generator=rng), [4, 9], [list(NAMES)] * 2)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_seeded_and_grow(name):
    batch = pictures()
    made = [corrupted(batch, name, strength, seed=3).imgs for strength in (1, 2, 3)]
    assert torch.equal(made[1], corrupted(batch, name, 2, seed=3).imgs)
    change = [(images - batch.imgs).abs().mean() for images in made]
    assert change[0] <= change[2] + 1e-6 and change[2] > 0
    assert all(images.min() >= 0 and images.max() <= 1 for images in made)


def test_what_is_no_corruption_is_refused():
    for name, strength in (("bright", 1), ("fog", 4)):
        with pytest.raises(ValueError, match="there are brightness, .* of 1, 2 and 3"):
            corrupted(pictures(), name, strength)


@pytest.mark.parametrize("strength, added", [(1, 0.2), (2, 0.4), (3, 0.5)])
def test_brightness_is_added_to_the_value_of_hsv(wide, strength, added):
    images = wide[..., :50].clone()
    images[..., 0, 0] = 0.0
    got = corruptions.brightness(images, strength, None)[0].permute(1, 2, 0).flatten(0, 1)
    for rgb, mine in zip(images[0].permute(1, 2, 0).flatten(0, 1).tolist(), got.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        assert mine == pytest.approx(colorsys.hsv_to_rgb(h, s, min(v + added, 1.0)), abs=1e-5)


@pytest.mark.parametrize("strength, bits", [(1, 4), (2, 3), (3, 2)])
def test_colour_quantisation_keeps_the_highest_bits(strength, bits):
    levels = torch.arange(256).float().div(255).expand(1, 3, 1, 256)
    got = (corruptions.colour_quantisation(levels, strength, None) * 255).round().int()[0, 0, 0].tolist()
    assert got == [level >> (8 - bits) << (8 - bits) for level in range(256)]


@pytest.mark.parametrize(
    "strength, top, photons, sigma", [(1, 0.4, 120, 0.018), (2, 0.3, 50, 0.026), (3, 0.2, 30, 0.038)]
)
def test_dark_has_the_moments_of_counted_photons_and_of_the_sensor(strength, top, photons, sigma):
    """Levels x become top * x ** 2; counts are Poisson, so their variance is the mean over `photons`."""
    images = torch.zeros((1, 3, 300, FULL_WIDTH))
    images[:, :, 100:200], images[:, :, 200:] = 0.6, 1.0
    got = corruptions.dark(images, strength, np.random.default_rng(0))[0]
    for rows, level in ((got[:, 100:200], 0.36 * top), (got[:, 200:], top)):
        assert rows.mean().item() == pytest.approx(level, abs=0.004)
        assert rows.std().item() == pytest.approx(math.sqrt(level / photons + sigma**2), rel=0.02)
    assert got[:, :100].mean().abs() < 0.004 and got[:, :100].std().item() == pytest.approx(sigma, rel=0.25)
    # Half the size: four pixels in one, half the noise.
    half = corruptions.dark(images[..., : FULL_WIDTH // 2], strength, np.random.default_rng(0))[0, :, 200:]
    assert half.std().item() == pytest.approx(math.sqrt(top / photons + sigma**2) / 2, rel=0.02)


@pytest.mark.parametrize("radius, sigma", [(15, 5), (15, 12), (20, 15)])
@pytest.mark.parametrize("angle", [-45.0, -20.0, 0.0, 33.0])
def test_blur_is_a_sum_of_shifted_images(wide, radius, sigma, angle):
    image = wide[0, :1, :, :60]
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    turn, want = math.radians(angle), torch.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            for i, weight in enumerate(weights):
                down, right = -math.ceil(i * math.sin(turn) - 0.5), -math.ceil(i * math.cos(turn) - 0.5)
                from_y, from_x = min(max(y - down, 0), 15), min(max(x - right, 0), 59)
                want[0, y, x] += weight / sum(weights) * image[0, from_y, from_x]
    torch.testing.assert_close(corruptions.blurred(image, radius, sigma, angle), want, rtol=1e-4, atol=1e-5)


def test_blur_has_the_published_constants_and_shrinks_with_the_image(wide):
    got = corruptions.motion_blur(wide, 2, Drawn(10.0))
    torch.testing.assert_close(got[0], corruptions.blurred(wide[0], 15, 12, 10.0))
    point = torch.zeros((1, 9, FULL_WIDTH // 4))
    point[0, 4, 200] = 1.0
    reach = [corruptions.blurred(point, 20, 15, 0.0, scale)[0, 4].count_nonzero().item() for scale in (1.0, 0.25)]
    assert reach == [41, 11]


def plasma_in_loops(side, decay, rng):
    """The diamond-square algorithm, cell by cell, in the order of draws in which whole levels are drawn."""
    out, step, wobble = np.zeros((side, side)), side, 100.0

    def level(cells, neighbours):
        for (y, x), draw in zip(cells, rng.uniform(-wobble, wobble, (side // step,) * 2).ravel(), strict=True):
            out[y, x] = np.mean([out[(y + dy) % side, (x + dx) % side] for dy, dx in neighbours]) + wobble * draw

    while step >= 2:
        half = step // 2
        along = [-half, half]
        cells = [
            [(y + a, x + b) for y in range(0, side, step) for x in range(0, side, step)]
            for a, b in ((half, half), (0, half), (half, 0))
        ]
        level(cells[0], [(a, b) for a in along for b in along])
        cross = [(a, 0) for a in along] + [(0, b) for b in along]
        level(cells[1], cross)
        level(cells[2], cross)
        step, wobble = half, wobble / decay
    out -= out.min()
    return out / out.max()


@pytest.mark.parametrize("decay", [2.0, 1.5, 1.4])
def test_plasma_is_the_diamond_square_algorithm(decay):
    want = plasma_in_loops(32, decay, np.random.default_rng(5))
    np.testing.assert_allclose(corruptions.plasma(32, decay, np.random.default_rng(5)), want, atol=1e-4)


@pytest.mark.parametrize("strength, density, decay", [(1, 2.0, 2.0), (2, 2.5, 1.5), (3, 3.0, 1.4)])
def test_fog_is_added_under_the_brightest_level(strength, density, decay):
    images = 0.8 * torch.rand((1, 3, 20, 40), generator=torch.Generator().manual_seed(0))
    number = int(np.random.default_rng(0).integers(0, corruptions.PATTERNS, 1)[0])
    layer = corruptions.plasma(64, decay, np.random.default_rng((corruptions.STREAM, number, strength)))[:20, :40]
    brightest = images.max().item()
    want = (images + density * torch.from_numpy(layer)) * brightest / (brightest + density)
    torch.testing.assert_close(corruptions.fog(images, strength, np.random.default_rng(0)), want)


def test_snow_has_the_published_constants_and_whitens():
    assert [tuple(vars(how).values()) for how in SNOW] == [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    ]
    images = torch.rand((1, 3, 30, 60), generator=torch.Generator().manual_seed(0))
    number = int(np.random.default_rng(0).integers(0, corruptions.PATTERNS, 1)[0])
    layer = corruptions._snow_layer(number, 2, 30, 60)
    got = corruptions.snow(images, 2, np.random.default_rng(0))
    rgb = images[0].permute(1, 2, 0).numpy()
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
    want = 0.7 * rgb + 0.3 * np.maximum(rgb, 1.5 * grey + 0.5) + layer[..., None]
    np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), want, atol=1e-5)
    np.testing.assert_allclose(layer, layer[::-1, ::-1], atol=1e-6)


def test_flakes_are_enlarged_noise_that_is_cut_and_smeared():
    """Against the same noise, each pixel between its four neighbours as where scipy zooms."""
    how = SNOW[0]

    class Levels(Drawn):
        def normal(self, mean, sigma, size):
            assert (mean, sigma) == (how.mean, how.sigma)
            self.noise = np.random.default_rng(1).normal(mean, sigma, size)
            return self.noise

    rng = Levels(-90.0)
    got = corruptions.flakes(how, 30, 60, rng)
    assert rng.noise.shape == (10, 20) and got.shape == (30, 60)
    large = np.zeros((30, 60))
    for y in range(30):
        for x in range(60):
            v, u = y * 9 / 29, x * 19 / 59
            top, left = min(int(v), 8), min(int(u), 18)
            a, b = v - top, u - left
            four = rng.noise[top : top + 2, left : left + 2]
            large[y, x] = (1 - a) * ((1 - b) * four[0, 0] + b * four[0, 1]) + a * (
                (1 - b) * four[1, 0] + b * four[1, 1]
            )
    large[large < how.floor] = 0
    want = corruptions.blurred(torch.from_numpy(large.clip(0, 1)[None]).float(), how.radius, how.blur, -90.0)[0]
    # OpenCV's places are 1/32 of a pixel fine, which can move a level over the floor.
    assert np.mean(np.abs(got - want.numpy()) < 0.02) > 0.95


@pytest.mark.parametrize("strength, gone", [(1, 2), (2, 4), (3, 5)])
def test_crashed_cameras_are_the_same_throughout_and_lost_frames_are_not(strength, gone):
    batch = pictures()
    crashed = crashed_cameras(NAMES, strength, seed=3)
    assert len(crashed) == gone and crashed == crashed_cameras(NAMES[::-1], strength, seed=3)
    black = (corrupted(batch, "camera crash", strength, seed=3).imgs == 0).flatten(3).all(3)[:, 0]
    assert black.tolist() == [[name in crashed for name in NAMES]] * 2
    lost = [
        (corruptions.frame_lost(batch.imgs[0, 0], strength, np.random.default_rng(n)) == 0).flatten(1).all(1)
        for n in range(500)
    ]
    assert torch.stack(lost).float().mean().item() == pytest.approx(gone / 6, abs=0.03)
