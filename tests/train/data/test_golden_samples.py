"""Batches of compile_data against arrays that the public Simple-BEV code made from the same keyframes."""

import numpy as np
import pytest

from common.geometry import apply_4x4, cam0_T_cams, merge_rt, rigid_inverse
from train.data import Grid, compile_data, make_vox_util
from train.data.sources import LocalSource
from train.data.windows import windows
from train.model.forward import lidar_occupancy, radar_features, radar_occupancy

CONF = {"final_dim": (224, 400), "resize_lim": [1.0, 1.0], "crop_offset": 0, "ncams": 6}
GRID = dict(centroid=np.array([[0.0, 1.0, 0.0]]), bounds=(-50, 50, -5, 5, -50, 50), res_3d=(200, 8, 200))


def loaders(folder, **options):
    options = {"bsz": 1, "nworkers": 0, "nworkers_val": 0, "nsweeps": 3} | options
    return compile_data(f"{folder}/train-*.tar", f"{folder}/val-*.tar", CONF, **GRID, **options)


@pytest.fixture(scope="module")
def samples(golden):
    return golden("samples.npz")


def batch_of(loader, token):
    return next(b for b in loader if b.tokens[0][0] == token)


def points(array):
    """Rows sorted, padding dropped: clouds are compared as sets."""
    array = np.asarray(array, np.float64).reshape(array.shape[-2], -1).T
    array = array[np.abs(array[:, :3]).sum(1) > 0]
    return array[np.lexsort(array.round(3).T)]


@pytest.mark.parametrize("reference", range(6))
@pytest.mark.parametrize("sample", ["s0", "s2"])
def test_batch_equals_simple_bev(real_shards, samples, sample, reference):
    _, val = loaders(real_shards, refcam_id=reference)
    batch = batch_of(val, str(samples[f"{sample}_token"]))

    def want(name):
        return samples[f"{sample}_r{reference}_{name}"].squeeze()

    for name in ("rots", "trans", "intrins", "egopose"):
        np.testing.assert_allclose(getattr(batch, name)[0].squeeze(), want(name), rtol=1e-5, atol=1e-5, err_msg=name)
    count = int(batch.num_boxes)
    np.testing.assert_allclose(batch.lrtlist[0, 0], want("lrtlist")[:count], rtol=1e-5, atol=1e-4)
    assert not want("lrtlist")[count:].any()
    np.testing.assert_array_equal(batch.vislist[0, 0], want("vislist")[:count])
    for name in ("seg_bev", "valid_bev"):
        np.testing.assert_array_equal(getattr(batch, name).squeeze(), want(name), err_msg=name)
    for name in ("center_bev", "offset_bev", "size_bev", "ry_bev", "ycoord_bev"):
        np.testing.assert_allclose(getattr(batch, name).squeeze(), want(name), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("sample", ["s0", "s2"])
def test_points_equal_simple_bev_as_sets(real_shards, samples, sample):
    _, val = loaders(real_shards, get_tids=True)
    batch = batch_of(val, str(samples[f"{sample}_token"]))
    for data, extra in (("lidar0_data", "lidar0_extra"), ("lidar_data", "lidar_extra")):
        ours = np.concatenate([getattr(batch, data)[0, 0], getattr(batch, extra)[0, 0]])
        theirs = [samples[f"{sample}_{n}"].squeeze().reshape(3, -1) for n in (data, extra)]
        ours, theirs = points(ours), points(np.concatenate(theirs))
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4, err_msg=data)
    ours, theirs = points(batch.radar_data[0, 0].numpy()), points(samples[f"{sample}_radar_data"].squeeze())
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    seen = {}  # Simple-BEV's ids are instance tokens; ours number them in order of appearance
    want = [seen.setdefault(token, len(seen)) for token in samples[f"{sample}_tids"].tolist()]
    assert batch.tidlist[0, 0].tolist() == want


def test_radar_filters_equal_devkit(real_shards, samples):
    _, val = loaders(real_shards, nsweeps=2, use_radar_filters=True)
    batch = batch_of(val, str(samples["s0_token"]))
    ours, theirs = points(batch.radar_data[0, 0].numpy()), points(samples["filtered_radar_data"].squeeze())
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_sensor_voxels_equal_simple_bev_but_for_its_padding(real_shards, golden):
    """Simple-BEV's zero padding becomes a point at the ego origin, and points that share a voxel win in no fixed order."""
    arrays = golden("model.npz")
    grid = GRID | {"res_3d": (104, 8, 96)}
    _, val = compile_data(None, f"{real_shards}/val-*.tar", CONF, **grid, bsz=1, nworkers=0, nsweeps=3)
    batch = batch_of(val, str(arrays["token"]))
    ego_T_cam = merge_rt(batch.rots[:, 0], batch.trans[:, 0])
    np.testing.assert_allclose(batch.intrins[:, 0], arrays["pix_T_cams"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cam0_T_cams(ego_T_cam), arrays["cam0_T_camXs"], rtol=1e-5, atol=1e-5)
    vox = make_vox_util(Grid(grid["centroid"], grid["bounds"], grid["res_3d"]))
    cam0_T_ego = rigid_inverse(ego_T_cam[:, 0])
    x, y, z = vox.ref_to_mem(cam0_T_ego[0, :3, 3]).round().int().tolist()
    for make, name in ((radar_occupancy, "radar_occ"), (lidar_occupancy, "lidar_occ")):
        ours = make(batch, 0, vox)
        assert not ours[0, 0, z, y, x] and arrays[name][0, 0, z, y, x]
        ours[0, 0, z, y, x] = 1
        np.testing.assert_array_equal(ours, arrays[name])
    ours = radar_features(batch, 0, vox)[0].numpy()
    theirs = np.zeros((1, *ours.shape), np.float32)
    theirs[tuple(arrays["metaradar_idx"].T)] = arrays["metaradar_val"]
    points = apply_4x4(cam0_T_ego, batch.radar_data[:, 0, :3].transpose(1, 2))
    voxels, counts = np.unique(vox.ref_to_mem(points)[0].round().int().numpy(), axis=0, return_counts=True)
    shared = {tuple(v) for v in voxels[counts > 1][:, ::-1].tolist()} | {(z, y, x)}
    differing = np.argwhere(np.abs(ours - theirs[0]).max(0) > 1e-4)
    assert {tuple(v) for v in differing.tolist()} <= shared


@pytest.mark.parametrize("length, temporal", [(1, 0), (2, 0), (2, 1), (3, 1)])
def test_windows_equal_simple_bev(real_shards, golden, length, temporal):
    arrays = golden("sequences.npz")
    for split in ("train", "val"):
        reader = LocalSource([f"{real_shards}/{split}-000.tar"])
        ours = [
            [reader.tokens[i] for i in w] for w in windows(reader.scene_of, length, bool(temporal) and split == "train")
        ]
        assert ours == arrays[f"{split}_L{length}_ta{temporal}"].reshape(-1, length).tolist(), split


def test_track_ids_equal_simple_bev_over_a_window(real_shards, golden):
    arrays = golden("sequences.npz")
    _, val = loaders(real_shards, seqlen=3, get_tids=True)
    batch = next(iter(val))
    ours, theirs = batch.tidlist[0].numpy(), arrays["val_seq3_tidlist"].reshape(3, -1)
    for t in range(3):
        np.testing.assert_array_equal(ours[t, : int(batch.num_boxes[0, t])], theirs[t, : int(batch.num_boxes[0, t])])
    np.testing.assert_allclose(batch.egopose[0], arrays["val_seq3_egopose"].reshape(3, 4, 4), rtol=1e-5, atol=1e-5)
