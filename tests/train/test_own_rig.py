"""Three fisheyes and two lidars, as the page on one's own data writes them: batches, training, and lenses that are kept."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from common.lens import LENS_SIZE, lens_row
from common.rig import Distortion
from tests.conftest import call_module
from tests.index_files import load_index
from tests.small_step import SmallStep, grid
from train.data import compile_data
from train.model.camera_mean.cpu import cpu_mean
from train.model.camera_mean.portable import portable_mean
from train.model.camera_mean.reference import reference_mean
from train.model.forward import run_network

AUGMENT = {"final_dim": (64, 96), "resize_lim": [1.0, 1.0], "crop_offset": 0, "H": 120, "W": 160}
SMALL = "--batch_size 2 --grad_acc 1 --res_scale 0.25 --latent_dim 8 --Z 16 --Y 2 --X 16 --nworkers 0 --nworkers_val 0".split()
GRID = {"centroid": np.array([[0.0, 1.0, 0.0]]), "bounds": (-24, 24, -4, 4, -16, 16), "res_3d": (16, 2, 24)}


def batch_of(shards, **options):
    conf = {**AUGMENT, **options.pop("conf", {})}
    given = {"do_shuffle_cams": False, "refcam_id": -1, "use_radar": False, **options}
    return next(iter(compile_data(None, shards, conf, **GRID, bsz=2, nworkers=0, nworkers_val=0, **given)[1]))


@pytest.fixture(scope="module")
def kept(yard, made_once):
    """The yard's shards with images that keep their distortion."""

    def make(out):
        program = (
            (yard / "own.py")
            .read_text()
            .replace('"shards/yard"', f'"{out}"')
            .replace("table)", "table, keep_distortion=True)")
        )
        exec(compile(program, "own.py", "exec"), {})

    return made_once("yard-kept", make)


def test_the_batch_has_the_rigs_slots_and_lidars(yard):
    batch = batch_of(yard / "shards/yard")
    assert batch.imgs.shape == (2, 1, 3, 3, 64, 96) and batch.lenses is None
    assert batch.cams[0] == ["front", "left", "right"]  # the reference camera comes into slot 0
    assert set(batch.lidar_index.unique().tolist()) == {0, 1}
    assert batch.seg_bev.any()


def test_cameras_and_reference_by_name(yard):
    chosen = batch_of(yard / "shards/yard", conf={"cams": ("right", "left")})
    assert chosen.cams[0] == ["right", "left"] and chosen.imgs.shape[2] == 2
    words = ["--shards", yard / "shards/yard", "--val_shards", yard / "shards/yard", "--cams", "left,nose", *SMALL]
    failed = call_module("train.run", *words, check=False)
    assert "cams: the shards have no camera nose; they have left, front, right" in failed.stderr
    failed = call_module("train.run", *words[: -len(SMALL) - 1], "left,right", "--refcam", "front", *SMALL, check=False)
    assert "refcam: front is none of the cameras left, right" in failed.stderr


@pytest.mark.parametrize("lens", ["rectified", "kept"])
def test_it_trains_and_evaluates(yard, kept, lens, tmp_path):
    shards = yard / "shards/yard" if lens == "rectified" else kept
    words = [
        *SMALL,
        "--shards",
        f"{shards}/train-*.tar",
        "--val_shards",
        f"{shards}/val-*.tar",
        "--use_lidar",
        "--nsweeps",
        1,
    ]
    words += [
        "--encoder_type",
        "effb0",
        "--no_pretrained",
        "--device",
        "cpu",
        "--log_dir",
        tmp_path / "l",
        "--refcam",
        "left",
    ]
    words += ["--max_iters", 1, "--run_name", "yard", "--ckpt_dir", tmp_path, "--val_batches", "all"]
    trained = call_module("train.run", *words)
    assert re.search(r"IoU \d\.\d{3}, val \d\.\d{3}", trained.stdout + trained.stderr)
    assert (tmp_path / "yard" / "model-000000001.pth").is_file()


def test_networks_that_take_cameras_for_pinholes_say_so(kept):
    words = ["--shards", f"{kept}/train-*.tar", "--val_shards", f"{kept}/val-*.tar", "--nsweeps", 1, *SMALL]
    failed = call_module("train.run", *words, "--model", "tests.train.two_layers:TwoLayers", check=False)
    assert failed.returncode == 1 and len(failed.stderr.strip().splitlines()) == 1
    assert "the images of left keep their distortion" in failed.stderr and "--keep-distortion" in failed.stderr


def test_kept_lenses_are_what_simple_bev_projects_by(kept):
    batch = batch_of(kept, use_lidar=False)
    rig = load_index(kept / "val-000.tar").rig
    want = [lens_row(rig.cameras[rig.camera_names.index(name)].distortion) for name in batch.cams[0]]
    assert batch.lenses.shape == (2, 1, 3, LENS_SIZE) and np.array_equal(batch.lenses[0, 0], want)
    network, vox = SmallStep(grid(), use_lidar=False).eval().network, grid()
    with torch.no_grad():
        bent = run_network(network, batch, vox)["seg"]
        network.unprojection = "plain"
        torch.testing.assert_close(run_network(network, batch, vox)["seg"], bent, rtol=1e-3, atol=1e-3)
        straight = run_network(network, dataclasses.replace(batch, lenses=None), vox)["seg"]
        assert not torch.allclose(straight, bent, atol=1e-3)


@pytest.mark.parametrize("way", [cpu_mean, portable_mean])
def test_every_way_of_the_camera_mean_bends_alike(way):
    rng = torch.Generator().manual_seed(0)
    feats = torch.rand(2, 3, 4, 12, 16, generator=rng)
    K = torch.tensor([[8.0, 0, 7.5, 0], [0, 8, 5.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).expand(2, 3, 4, 4)
    cams_T_ref = torch.eye(4).repeat(2, 3, 1, 1)
    cams_T_ref[..., :3, 3] = torch.randn(2, 3, 3, generator=rng)
    lenses = [
        None,
        Distortion("brown_conrady", (-0.2, 0.02, 1e-3, 0)),
        Distortion("kannala_brandt", (0.05, -0.01, 0, 0)),
    ]
    rows = torch.from_numpy(np.stack([lens_row(lens) for lens in lenses])).expand(2, 3, LENS_SIZE)
    rows = torch.cat([rows, K[..., :2, :3].flatten(-2)], -1)
    seen = feats, K @ cams_T_ref, cams_T_ref, grid()
    want = reference_mean(*seen, lenses=rows)
    torch.testing.assert_close(way(*seen, lenses=rows), want, rtol=1e-4, atol=1e-5)
    pinholes = rows.clone()
    pinholes[..., :LENS_SIZE] = 0
    assert torch.equal(way(*seen, lenses=pinholes), way(*seen))  # to the bit
    assert not torch.allclose(way(*seen), want, atol=1e-2)
