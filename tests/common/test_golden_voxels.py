"""Voxel utility and augmentation against the public Simple-BEV code."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from common.vox import VoxUtil
from train.augment import crop_and_resize
from train.data.sources import LocalSource

BOUNDS = (-50, 50, -5, 5, -50, 50)


@pytest.mark.parametrize("grid", ["a", "b"])
def test_vox_util(golden, grid):
    arrays = golden("vox.npz")

    def get(name):
        return torch.from_numpy(np.asarray(arrays[f"{grid}_{name}"]))

    pad = tuple(get("pad").tolist())
    vox = VoxUtil(*get("zyx").tolist(), get("centroid").view(1, 3), BOUNDS, pad=pad if any(pad) else None)
    xyz, feats = get("xyz"), get("feats")
    np.testing.assert_allclose(vox.ref_to_mem(xyz), get("mem"), atol=1e-4)
    np.testing.assert_allclose(vox.mem_to_ref(get("mem")), get("ref"), atol=1e-4)
    assert torch.equal(vox.get_inbounds(xyz), get("inbounds"))
    assert torch.equal(vox.voxelize_xyz(xyz).bool(), get("occ"))
    alone = get("alone")
    filled = vox.voxelize_xyz_and_feats(xyz[:1, alone], feats[:1, alone])
    np.testing.assert_allclose(filled.sum((2, 3, 4)), get("featvox_sum"), atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(filled.sum(3), get("featvox_bev"), atol=1e-4)


def test_unprojection(golden):
    arrays = golden("vox.npz")
    feat, pix_T_ref, cam_T_ref = (torch.from_numpy(arrays[f"u_{n}"]) for n in ("feat", "pix_T_ref", "cam_T_ref"))
    vox = VoxUtil(20, 4, 24, torch.tensor([[0.0, 1.0, 0.0]]), BOUNDS)
    np.testing.assert_allclose(vox.unproject_image_to_mem(feat, pix_T_ref, cam_T_ref), arrays["u_out"], atol=1e-4)


def test_shared_voxel_keeps_the_last_point_and_padding_none():
    vox = VoxUtil(4, 2, 4, torch.zeros(1, 3), (-2, 2, -1, 1, -2, 2))
    xyz = torch.tensor([[[1.5, 0.5, 1.5], [1.5, 0.5, 1.5], [0.5, 0.5, 1.5]]])
    feats = torch.tensor([[[1.0], [2.0], [3.0]]])
    valid = torch.tensor([[True, True, False]])
    out = vox.voxelize_xyz_and_feats(xyz, feats, valid)
    assert out.sum() == 2.0 and out[0, 0, 3, 1, 3] == 2.0
    assert vox.voxelize_xyz(xyz, valid).sum() == 1.0


@pytest.mark.parametrize("plan", range(4))
def test_nearest_equals_simple_bev(real_shards, golden, plan):
    arrays = golden("augment.npz")
    reader = LocalSource([real_shards / "train-000.tar"])
    number = reader.tokens.index(str(arrays["token"]))
    data = reader.read(number, ["CAM_FRONT.jpg"])["CAM_FRONT.jpg"]
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(bytes(data)))))
    width, height, *crop = arrays["plans"][plan].tolist()
    ours, _ = crop_and_resize(image[None], torch.eye(3)[None], [[width, height]], [crop], (224, 400), "nearest")
    error = (ours[0] * 255 - torch.from_numpy(arrays[f"p{plan}_img1"]).float()).abs()
    assert error.max() <= 2


@pytest.mark.parametrize("plan", range(4))
def test_intrinsics_follow_the_crop(real_shards, golden, plan):
    from common.record import CAMERA_DTYPE, CAMERAS_MEMBER, decode_rows
    from preprocess.nuscenes import CAMERAS

    arrays = golden("augment.npz")
    reader = LocalSource([real_shards / "train-000.tar"])
    number = reader.tokens.index(str(arrays["token"]))
    rows = decode_rows(reader.read(number, [CAMERAS_MEMBER])[CAMERAS_MEMBER], CAMERA_DTYPE, CAMERAS_MEMBER)
    intrinsics = torch.from_numpy(rows["intrinsics"].astype(np.float32))
    images = torch.zeros(len(CAMERAS), 900, 1600, 3, dtype=torch.uint8)
    width, height, *crop = arrays["plans"][plan].tolist()
    _, ours = crop_and_resize(images, intrinsics, [[width, height]] * 6, [crop] * 6, (224, 400), "nearest")
    np.testing.assert_allclose(ours, arrays[f"p{plan}_intrins"], rtol=1e-5, atol=1e-3)
