"""What an exported network is made of, part by part, against what training has."""

import numpy as np
import pytest
import torch

from common.lens import lens_row
from common.rig import Distortion
from tests.train.model.test_unprojection import VOX, features, ring
from train.augment import resample, sampling_plan
from train.exporting import splat
from train.exporting.folder import program_text
from train.exporting.images import StoredImages
from train.exporting.pillars import GroupedPillars, sorted_by_cell
from train.exporting.points import lidar_voxels, radar_voxels
from train.exporting.splat import GatheredSplat
from train.exporting.view import BAKED, Sampled
from train.model.camera_mean import camera_mean, convolved_mean
from train.model.pillars import PillarNet


def bent(pix, cam):
    """Lenses of camera_mean for the ring's cameras: one bends as a fisheye, one as a wide lens, the others not at all."""
    kinds = [
        Distortion("kannala_brandt", (0.05, 0.01, 0.0, 0.0)),
        Distortion("brown_conrady", (-0.2, 0.05, 0.0, 0.0, 0.0)),
    ]
    rows = torch.from_numpy(np.stack([lens_row(kind) for kind in (*kinds, *[None] * 4)]))
    intrinsics = (pix @ torch.linalg.inv(cam))[0, :, :2, :3].flatten(1)
    return torch.cat([rows, intrinsics], 1)[None]


@pytest.mark.parametrize("has_lenses", [False, True])
@pytest.mark.parametrize("make", [Sampled, *BAKED])
def test_every_view_equals_the_fused_mean(make, has_lenses):
    pix, cam = (matrix[:1] for matrix in ring())
    lenses = bent(pix, cam) if has_lenses else None
    view = make() if make is Sampled else make((14, 25), pix, cam, VOX, lenses)
    feats = features().detach()  # of two samples, which share one calibration
    both = (feats, pix.expand(2, -1, -1, -1), cam.expand(2, -1, -1, -1), VOX)
    bends = {} if lenses is None else {"lenses": lenses.expand(2, -1, -1)}
    kernels = torch.randn(VOX.Y, 7, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = camera_mean(*both, **bends)
    seen = (whole != 0).any(1)
    assert 0.2 < seen.float().mean() < 1  # some voxels are seen by nobody
    torch.testing.assert_close(camera_mean(*both, unprojection=view, **bends), whole, rtol=0, atol=2e-5)
    got, want = (convolved_mean(*both, kernels, unprojection=way, **bends) for way in (view, "fused"))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)


def test_a_camera_counts_where_it_has_some_weight():
    """Beyond the last pixel a camera still has a share of it, of which the mean is taken; with none it does not count."""
    pix, cam = (matrix[:1] for matrix in ring(count=2))
    feats = torch.ones(1, 2, 1, 14, 25)
    whole = camera_mean(feats, pix, cam, VOX)
    assert ((whole > 0.01) & (whole < 0.99)).any()
    for view in (Sampled(), *(make((14, 25), pix, cam, VOX) for make in BAKED)):
        torch.testing.assert_close(camera_mean(feats, pix, cam, VOX, unprojection=view), whole, rtol=0, atol=2e-5)


def test_stored_images_are_resized_as_on_a_gpu_and_their_intrinsics_with_them():
    images = torch.randint(0, 256, (2, 3, 45, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes, wh, ltrb = np.array([[45, 80]] * 3), np.array([[60, 40]] * 3), np.array([[4, 6, 52, 38]] * 3)
    stage = StoredImages(sizes, wh, ltrb, (32, 48))
    plan = torch.from_numpy(sampling_plan(sizes, wh, ltrb, (32, 48), "bilinear"))
    want = torch.stack([resample(each, plan, (32, 48), "bilinear") for each in images])
    torch.testing.assert_close(stage(images), want, rtol=0, atol=1e-6)
    pix = torch.eye(4).repeat(2, 3, 1, 1)
    pix[..., 0, 0] = pix[..., 1, 1] = 70.0
    pix[..., 0, 2], pix[..., 1, 2] = 40.0, 22.0
    moved = stage.moved(pix)[0, 0]
    assert moved[0, 0] == pytest.approx(70 * 60 / 80) and moved[1, 2] == pytest.approx(22 * 40 / 45 - 6)
    with pytest.raises(ValueError, match="differ in size.* --images network"):
        StoredImages(sizes + [[0, 0], [1, 0], [0, 0]], wh, ltrb, (32, 48))
    with pytest.raises(ValueError, match="by nearest; export with --images network"):
        StoredImages(sizes, wh, ltrb, (32, 48), "nearest")


def test_grouped_pillars_are_what_scattered_ones_are():
    """Columns of one point and of hundreds, points of no column, and padding behind them."""
    rng = torch.Generator().manual_seed(0)
    net = PillarNet(5, 7, (4, 6))
    cells = torch.cat([torch.randint(0, 25, (2, 90), generator=rng), torch.full((2, 300), 3)], 1)
    cells[1, 200:] = 24
    tensors = sorted_by_cell({"lidar_cells": cells, "lidar_features": torch.randn((2, 390, 5), generator=rng)})
    given = tensors["lidar_cells"], tensors["lidar_features"]
    want = net(*given)
    assert (want > 0).any() and torch.equal(GroupedPillars(net)(*given), want)
    pad = torch.nn.functional.pad
    padded = pad(given[0], (0, 9), value=24), pad(given[1], (0, 0, 0, 9), value=8.0)
    torch.testing.assert_close(GroupedPillars(net)(*padded), want, rtol=0, atol=1e-6)


def test_the_program_fits_a_page():
    """Of cameras in 25 lines, with points in 40, whatever was chosen."""
    plain = {"file": "model.onnx", "images": "stored", "points": [], "calibration": True, "frame": "cam0"}
    plain |= {"true_times": False, "radar_filters": []}
    most = {"points": ["lidar", "radar"], "true_times": True, "radar_filters": [(14, [0]), (3, [0, 1])]}
    for changes, longest in (({}, 25), ({"calibration": False}, 25), (most, 40), (most | {"images": "network"}, 40)):
        text = program_text(plain | changes)
        compile(text, "run.py", "exec")
        assert len([line for line in text.splitlines() if line.strip()]) <= longest
        assert max(map(len, text.splitlines())) <= 128


def test_padded_points_give_the_voxels_that_training_has():
    """Many points share a voxel; padding, of any value, fills none."""
    rng = torch.Generator().manual_seed(0)
    points = torch.randn((2, 300, 19), generator=rng) * 4
    count = torch.tensor([300, 120])
    ref_T_ego = torch.eye(4).repeat(2, 1, 1)
    ref_T_ego[:, :3, 3] = torch.tensor([1.0, -0.5, 2.0])
    valid = torch.arange(300) < count[:, None]
    xyz = points[..., :3] + ref_T_ego[:, None, :3, 3]
    far = valid & (points[..., :3].norm(dim=2) > 1)
    assert torch.equal(lidar_voxels(points[..., :3], count, ref_T_ego, VOX), VOX.voxelize_xyz(xyz, far))
    assert torch.equal(radar_voxels(points, count, ref_T_ego, VOX, features=False), VOX.voxelize_xyz(xyz, valid))
    with_features = VOX.voxelize_xyz_and_feats(xyz, points[..., 3:19], valid)
    assert (with_features != 0).any(1).sum() < 300  # so some points were beaten by later ones
    assert torch.equal(radar_voxels(points, count, ref_T_ego, VOX, features=True), with_features)


def test_gathered_sums_are_those_of_the_cells():
    """Cells of no point, of one and of many; features of no number are not among them where nothing lies."""
    rng = torch.Generator().manual_seed(0)
    shape, size = (5, 4), (2, 3, 4, 6)  # X, Y; S, D, h, w
    cells = torch.randint(0, 12, size, generator=rng)
    cells[0, 0], cells[1] = 20, torch.where(cells[1] < 6, 3, cells[1])
    depth, context = torch.rand((2, *size), generator=rng), torch.randn((2, 2, 7, 4, 6), generator=rng)
    want = torch.zeros(2, 21, 7)
    for s, d, row, column in np.ndindex(*size):
        want[:, cells[s, d, row, column]] += depth[:, s, d, row, column, None] * context[:, s, :, row, column]
    want = want[:, :20].unflatten(1, shape).permute(0, 3, 1, 2)
    torch.testing.assert_close(GatheredSplat(cells, shape)(depth, context), want, rtol=0, atol=1e-5)


def test_tables_of_cells_that_make_an_export_large_are_told(monkeypatch, capsys):
    cells = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) % 21
    small = GatheredSplat(cells, (4, 5))
    assert not capsys.readouterr().err
    monkeypatch.setattr(splat, "LARGE", sum(buffer.nbytes for buffer in small.buffers()) - 1)
    GatheredSplat(cells, (4, 5))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and " MB of the export" in line and "depth_m" in line
