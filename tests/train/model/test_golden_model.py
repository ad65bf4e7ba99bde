"""Network, voxels, augmentation and schedule against the public Simple-BEV code."""

import importlib.util

import numpy as np
import pytest
import torch

from common.vox import VoxUtil
from tests.conftest import SHARED
from train.model import Segnet

CASES = {
    "res50": dict(encoder_type="res50"),
    "res101": dict(encoder_type="res101"),
    "effb0": dict(encoder_type="effb0"),
    "effb4": dict(encoder_type="effb4"),
    "res50_sum": dict(encoder_type="res50", do_rgbcompress=False),
    "res50_radar": dict(encoder_type="res50", use_radar=True),
    "res50_metaradar": dict(encoder_type="res50", use_radar=True, use_metaradar=True),
    "res50_lidar": dict(encoder_type="res50", use_lidar=True),
}
BOUNDS = (-50, 50, -5, 5, -50, 50)


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def make(case):
    return Segnet(104, 8, 96, **CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_state_dict_keys(golden, case):
    want = [line.split(maxsplit=1) for line in golden(f"keys_{case}.txt").splitlines() if line.strip()]
    ours = make(case).state_dict()
    assert list(ours) == [name for name, _ in want]
    for name, shape in want:
        numbers = [
            int(n)
            for n in shape.replace("(", " ").replace(")", " ").replace(",", " ").replace("x", " ").split()
            if n.isdigit()
        ]
        assert list(ours[name].shape) == numbers, name


def voxels(arrays, case):
    if case == "res50_radar":
        return tensor(arrays["radar_occ"]).float().reshape(1, 1, 104, 8, 96)
    if case == "res50_lidar":
        return tensor(arrays["lidar_occ"]).float().reshape(1, 1, 104, 8, 96)
    if case == "res50_metaradar":
        out = torch.zeros(16 * 104 * 8 * 96)
        index = arrays["metaradar_idx"]
        if index.ndim == 1:
            out[tensor(index).long()] = tensor(arrays["metaradar_val"]).float()
            return out.view(1, 16, 104, 8, 96)
        out = torch.zeros(1, 16, 104, 8, 96)
        index = index if index.shape[0] in (4, 5) else index.T
        index = tensor(index).long()[-4:]
        out[(torch.zeros_like(index[0]), *index)] = tensor(arrays["metaradar_val"]).float()
        return out
    return None


@pytest.mark.parametrize("case", CASES)
def test_outputs(golden, case):
    arrays = golden("model.npz")
    spec = importlib.util.spec_from_file_location("golden_fill", SHARED / "golden_fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = make(case).eval()
    model.load_state_dict(module.fill(model.state_dict()))
    vox_util = VoxUtil(104, 8, 96, torch.tensor([[0.0, 1.0, 0.0]]), BOUNDS)
    images = tensor(arrays["imgs"]).float().reshape(1, 6, 3, 224, 400) / 255.0 - 0.5
    matrices = [tensor(arrays[n]).float().reshape(1, 6, 4, 4) for n in ("pix_T_cams", "cam0_T_camXs")]
    with torch.no_grad():
        _, feat, seg, center, offset = model(images, *matrices, vox_util, voxels(arrays, case))
    for name, ours in (("seg", seg), ("center", center), ("offset", offset)):
        np.testing.assert_allclose(ours.squeeze(), arrays[f"{case}_{name}"].squeeze(), atol=1e-3, err_msg=name)
    np.testing.assert_allclose(feat.mean((2, 3)).squeeze(), arrays[f"{case}_feat_mean"].squeeze(), atol=1e-3)
