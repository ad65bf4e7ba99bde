"""Lenses against OpenCV's own projection, and where they cease to see."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.lens import LENS_SIZE, bend, lens_row
from common.rig import Distortion
from common.vox import project

BROWN = Distortion("brown_conrady", (-0.25, 0.08, 1e-3, -2e-3, -0.01))
FISHEYE = Distortion("kannala_brandt", (-0.02, 0.004, -0.002, 0.0003))
K = np.array([[600.0, 0, 320], [0, 590.0, 240], [0, 0, 1]])


def opencv(points, distortion):
    zero = np.zeros(3)
    coefficients = np.array(distortion.coefficients)
    if distortion.model == "kannala_brandt":
        return cv2.fisheye.projectPoints(points[:, None], zero, zero, K, coefficients)[0][:, 0]
    return cv2.projectPoints(points, zero, zero, K, coefficients)[0][:, 0]


def ours(points, distortion):
    x, y, seen = bend(torch.from_numpy(points), torch.from_numpy(lens_row(distortion).astype(float)))
    return np.stack([x, y, np.ones(len(x))], 1) @ K[:2].T, seen.numpy()


MANY = [0.3, -0.1, 1e-3, 2e-3, 0.02, 0.35, -0.05, 0.01, 1e-3, -1e-3, 2e-3, 5e-4]


@pytest.mark.parametrize("count", [4, 5, 8, 12])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_brown_conrady_is_opencvs(count, seed):
    points = np.random.default_rng(seed).uniform((-3, -3, 4), (3, 3, 30), (50, 3))
    distortion = Distortion("brown_conrady", tuple(MANY[:count]))
    pixels, seen = ours(points, distortion)
    assert seen.all()
    np.testing.assert_allclose(pixels, opencv(points, distortion), rtol=1e-5, atol=1e-3)  # float32 coefficients


def test_fisheye_is_opencvs_and_sees_beside_and_behind():
    points = np.random.default_rng(0).uniform((-9, -9, 0.2), (9, 9, 9), (200, 3))
    pixels, seen = ours(points, FISHEYE)
    assert seen.all()
    np.testing.assert_allclose(pixels, opencv(points, FISHEYE), rtol=1e-5, atol=2e-3)
    axis, seen = ours(np.array([[0.0, 0, 5], [3, 0, -0.5]]), FISHEYE)
    np.testing.assert_allclose(axis[0], K[:2, 2])
    assert seen.all() and axis[1, 0] > axis[0, 0] + 500  # 99 degrees from the axis


def test_what_a_lens_cannot_see_does_not_fold_back_into_the_image():
    radius = np.linspace(0.0, 10, 500)
    points = np.stack([radius, np.zeros(500), np.ones(500)], 1)
    pixels, seen = ours(points, BROWN)
    assert 50 < seen.sum() < 400 and (np.diff(pixels[seen, 0]) > 0).all()
    assert (pixels[~seen, 0] < pixels[seen, 0].max() + 1).any()  # there it would have come back


def test_pinholes_among_bent_cameras_stay_as_they_are_to_the_bit():
    rng = np.random.default_rng(1)
    points = torch.from_numpy(rng.uniform(-40, 40, (500, 3)).astype(np.float32))
    cam_T_ref = torch.eye(4).repeat(2, 1, 1)
    cam_T_ref[:, :3, 3] = torch.tensor([0.3, -1.0, 0.5])
    pix = torch.eye(4).repeat(2, 1, 1)
    pix[:, :3, :3] = torch.from_numpy(K / 8).float()
    pix[:, 2, 2] = 1
    rows = torch.zeros(2, LENS_SIZE + 6)
    rows[1, :LENS_SIZE] = torch.from_numpy(lens_row(BROWN).copy())
    rows[:, LENS_SIZE:] = pix[:, :2, :3].flatten(1)
    plain = project(points, pix @ cam_T_ref, cam_T_ref, (60, 80))
    bent = project(points, pix @ cam_T_ref, cam_T_ref, (60, 80), rows)
    for p, b in zip(plain, bent, strict=True):
        assert torch.equal(p[0], b[0])
    both = plain[2][1] & bent[2][1]
    assert both.any() and not torch.equal(plain[0][1][both], bent[0][1][both])
    rows[1, 1:LENS_SIZE] = torch.tensor([1e3, *[0.0] * 14])  # a lens without coefficients is a pinhole but for rounding
    straight = project(points, pix @ cam_T_ref, cam_T_ref, (60, 80), rows)
    assert torch.equal(straight[2], plain[2])
    torch.testing.assert_close(straight[0][1][plain[2][1]], plain[0][1][plain[2][1]], rtol=1e-5, atol=1e-4)


def test_tilted_lenses_are_not_projected_by():
    assert lens_row(Distortion("brown_conrady", (0.1,) * 12 + (0, 0)))[0] == 1
    with pytest.raises(InputError, match="tilts the image plane"):
        lens_row(Distortion("brown_conrady", (0.1,) * 14))
