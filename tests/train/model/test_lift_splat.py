"""Lift-Splat-Shoot against the public code, its pooling against the plain product, its depths against points drawn by hand."""

import importlib.util
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.geometry import apply_4x4, merge_rt, rigid_inverse
from common.vox import VoxUtil
from preprocess.layer import write_layer
from preprocess.layers import depth as depth_layer
from tests.conftest import SHARED, call_module
from tests.fake_cuda import Watch, fake_mode, faked
from tests.train.model.test_fake_cuda import to_fake_cuda
from train import checkpoint
from train.data import Grid, make_loader
from train.data.config import DataConfig, Wanted
from train.data.sources import open_source
from train.loss import Normaliser
from train.model import Flips
from train.model.encoders import IMAGENET_MEAN, IMAGENET_STD
from train.model.lidar_depth import DEPTH_LAYER, MEMBER
from train.model.lift_splat import LiftSplatShoot, build
from train.model.lift_splat.network import OwnOptions
from train.model.lift_splat.pool import pooled
from train.options import Options

PUBLISHED = {
    "xbound": (-50.0, 50.0, 0.5),
    "ybound": (-50.0, 50.0, 0.5),
    "zbound": (-10.0, 10.0, 20.0),
    "dbound": (4.0, 45.0, 1.0),
}


@pytest.fixture(scope="module")
def published():
    """The network of the published configuration with the golden weights."""
    network = LiftSplatShoot(PUBLISHED, {"final_dim": (128, 352)}, 1).eval()
    spec = importlib.util.spec_from_file_location("golden_fill", SHARED / "golden_fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = network.state_dict()
    computed = {name: own[name] for name in ("dx", "bx", "nx", "frustum")}
    network.load_state_dict(module.fill(own) | computed)
    return network


def test_names_of_the_weights_are_the_published_ones(golden, published):
    want = [line.split(maxsplit=1) for line in golden("keys_lss.txt").splitlines() if line.strip()]
    ours = published.state_dict()
    assert len(want) == 488
    assert [[name, str(tuple(value.shape))] for name, value in ours.items()] == want


def test_geometry_pooling_and_output_are_the_published_ones(golden, published):
    arrays = golden("lss.npz")
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)[None] / 255.0
    x = (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    names = ("rots", "trans", "intrins", "post_rots", "post_trans")
    calibration = [torch.from_numpy(arrays[name])[None] for name in names]
    with torch.no_grad():
        geometry = published.get_geometry(*calibration)
        bev = published.get_voxels(x, *calibration)
        seg = published(x, *calibration)
    np.testing.assert_allclose(geometry[0, :, ::8], arrays["geometry"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(bev[0].sum(0), arrays["bev_sum"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(bev[0, :8], arrays["bev_first8"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(seg[0], arrays["seg"], rtol=0, atol=1e-3)


def test_pooling_is_the_plain_product_forward_and_backward():
    rng = torch.Generator().manual_seed(0)
    context = torch.rand((30, 5), generator=rng, requires_grad=True)
    depth = torch.rand((30, 4), generator=rng, requires_grad=True)
    cells = torch.randint(0, 8, (30, 4), generator=rng)  # 7: outside
    product = (depth[..., None] * context[:, None]).flatten(0, 1)
    want = torch.zeros(8, 5).index_add(0, cells.flatten(), product)[:7]
    grad = torch.rand((7, 5), generator=rng)
    wanted = torch.autograd.grad(want, (context, depth), grad)
    ours = pooled(context, depth, cells, 7)
    torch.testing.assert_close(ours, want)
    for own, plain in zip(torch.autograd.grad(ours, (context, depth), grad), wanted, strict=True):
        torch.testing.assert_close(own, plain)
    with torch.no_grad():
        assert torch.equal(pooled(context, depth, cells, 7), ours)


def small(grid, image_hw=(64, 96), **more):
    """LiftSplat of a grid, with depths of 2 to 20 m."""
    options = Options(image_size="{}x{}".format(*image_hw), model_args=OwnOptions(depth_m=(2.0, 20.0, 1.0), **more))
    torch.manual_seed(0)
    return build(options, grid)


def small_inputs(image_hw=(64, 96), cameras=2, frame="ego"):
    """A batch of two with cameras that look ahead and to the left, in the ego frame or that of the first camera."""
    rng = torch.Generator().manual_seed(0)
    intrins = torch.eye(4).repeat(2, 1, cameras, 1, 1)
    intrins[..., 0, 0] = intrins[..., 1, 1] = 50.0
    intrins[..., 0, 2], intrins[..., 1, 2] = image_hw[1] / 2, image_hw[0] / 2
    ahead = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    rots = torch.stack([ahead, turn @ ahead])[:cameras].repeat(2, 1, 1, 1, 1)
    trans = torch.tensor([[1.13, 0.21, 1.52], [0.41, 0.53, 1.44]])[:cameras].repeat(2, 1, 1, 1)
    batch = SimpleNamespace(rots=rots, trans=trans, intrins=intrins, true_times=False)
    batch.imgs = torch.rand((2, 1, cameras, 3, *image_hw), generator=rng)
    own = torch.from_numpy(Grid((0, 0, 0), (-1, 1) * 3, (1, 1, 1), "ego").ref_T_ego(None)).repeat(2, 1, 1, 1)
    batch.ref_T_ego = own if frame == "ego" else rigid_inverse(merge_rt(rots[:, :, 0], trans[:, :, 0]))
    return batch


def test_in_the_ego_frame_it_is_the_published_network_with_its_columns_turned():
    grid = VoxUtil(40, 4, 48, scene_centroid=[[0.0, -0.5, 0.0]], bounds=(-24, 24, -4, 4, -20, 20))
    network, batch = small(grid).eval(), small_inputs()
    assert network.cells_xyz == (40, 48, 1) and network.bx[:2].tolist() == [-19.5, -23.5]
    x = (batch.imgs[:, 0] - network.mean) / network.std
    turned = torch.eye(3).expand(2, 2, 3, 3), torch.zeros(2, 2, 3)
    with torch.no_grad():
        want = LiftSplatShoot.forward(
            network, x, batch.rots[:, 0], batch.trans[:, 0], batch.intrins[:, 0, :, :3, :3], *turned
        )
        ours = network(batch, grid)["seg"]
    torch.testing.assert_close(ours, want.flip(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("frame", ["ego", "cam0"])
@pytest.mark.parametrize("image_hw", [(64, 96), (60, 100)])
def test_a_feature_lands_in_the_cell_of_its_point(frame, image_hw):
    """One pixel at one depth: by the pinhole's formula, in either frame, whether the image is padded or not."""
    grid = VoxUtil(50, 4, 60, scene_centroid=[[0.0, 0.0, 0.0]], bounds=(-30, 30, -4, 4, -25, 25))
    network, batch = small(grid, image_hw).eval(), small_inputs(image_hw, frame=frame)
    given = network.inference_inputs(batch, grid)
    geometry = network.geometry(given["pix_T_cams"], given["ref_T_cams"])
    shape = (2, 2, len(network.frustum), *network.frustum.shape[1:3])
    for camera, number, row, column in ((0, 5, 2, 1), (1, 9, 1, 4)):
        depth, context = torch.zeros(shape), torch.zeros(2, 2, 64, *shape[3:])
        depth[1, camera, number, row, column] = 1
        context[1, camera, :, row, column] = 2
        bev = network.bev(depth, context, geometry)
        u, v, d = network.frustum[number, row, column].tolist()
        cam = torch.tensor([(u - image_hw[1] / 2) / 50 * d, (v - image_hw[0] / 2) / 50 * d, d])
        mem = grid.ref_to_mem(apply_4x4(given["ref_T_cams"][1, camera], cam[None])[0])
        x, _, z = mem.round().long().tolist()
        assert (bev != 0).sum() == 64 and (bev[1, :, z, x] == 2).all(), (frame, camera)
    # What was added to the image gives nothing: the last column of features lies beyond 100 pixels.
    whole = network.bev(torch.ones(shape), torch.ones(2, 2, 64, *shape[3:]), geometry)
    bare = torch.ones(2, 2, 64, *shape[3:])
    bare[..., network.frustum[0, 0, :, 0] >= image_hw[1]] = 0
    bare[..., network.frustum[0, :, 0, 1] >= image_hw[0], :] = 0
    torch.testing.assert_close(network.bev(torch.ones(shape), bare, geometry), whole)
    assert (bare == 0).any() == (image_hw == (60, 100))


def test_flips_come_back():
    """Flipped images and a flipped map: a network that heeds no neighbours gives the same."""
    grid = VoxUtil(40, 4, 48, scene_centroid=[[0.0, -0.5, 0.0]], bounds=(-24, 24, -4, 4, -20, 20))
    network, batch = small(grid).eval(), small_inputs()
    network.camencode = Pointwise(len(network.frustum))
    network.bevencode = torch.nn.Conv2d(64, 1, 1)
    flips = Flips(torch.tensor([[True, False], [True, True]]), torch.tensor([True, False]), torch.tensor([True, True]))
    with torch.no_grad():
        torch.testing.assert_close(network(batch, grid, flips)["seg"], network(batch, grid)["seg"])


class Pointwise(torch.nn.Module):
    def __init__(self, depths):
        super().__init__()
        self.conv, self.depths = torch.nn.Conv2d(3, depths + 64, 1), depths

    def forward(self, x):
        x = self.conv(torch.nn.functional.avg_pool2d(x, 16))
        return x[:, : self.depths], x[:, self.depths :]


def test_depths_that_are_learned_are_those_of_lidar_and_layer(small_shards, tmp_path):
    """The same bins of either, of the pixels that there are, whatever is padded; and a step towards them."""
    shards = shutil.copytree(small_shards, tmp_path / "shards")
    write_layer(shards, "depth", depth_layer.make)
    common = dict(Z=40, X=40, Y=4, batch_size=3, image_size="60x100", nworkers=0, use_lidar=True, nsweeps=1)
    common["rand_crop_and_resize"] = False  # which leaves pixels blank, of which the layer has none
    options = Options(shards=("x",), **common)
    config = DataConfig.of(options, is_train=False, wanted=Wanted(layers=tuple(DEPTH_LAYER.items())))
    batch = make_loader(open_source(shards, split="val"), config, 0).batch_of([1], augment=True)
    grid = config.decode.grid.vox_util()
    found = {}
    for source in ("lidar", "layer"):
        network = small(grid, (60, 100), depth=source).train()
        outputs = network(batch, grid)
        total, terms = network.loss(outputs, batch, Normaliser())
        total.backward()
        assert terms["depth_loss"] > 1 and network.camencode.depthnet.weight.grad[:18].any()
        found[source] = network._bins(batch)
    bins = found["layer"]
    # Of 192, those whose nearest point lies on a border: the layer rounds to 1/64 pixel.
    assert (bins != found["lidar"]).sum() <= 3
    assert (bins >= 0).float().mean() > 0.2 and bins.max() < 18 and (bins[..., -1] == -1).all()
    # By hand: the nearest point of each patch of 16 x 16 pixels, in the second camera.
    [points] = batch.layers["depth"][MEMBER][0]
    slot = 1
    own = points[:, points[0] == batch.facts[0][0].rig.camera_names.index(batch.cams[0][slot])]
    nearest = {}
    for _, u, v, metres in own.T.tolist():
        x, y, _ = (batch.pix_T_stored[0, 0, slot] @ torch.tensor([u, v, 1.0])).tolist()
        cell = int((y + 0.5) // 16), int((x + 0.5) // 16)
        nearest[cell] = min(metres, nearest.get(cell, math.inf))
    for row in range(bins.shape[2]):
        for column in range(bins.shape[3]):
            number = round(nearest.get((row, column), math.inf) - 2) if (row, column) in nearest else -1
            assert bins[0, slot, row, column] == (number if 0 <= number < 18 else -1), (row, column)


def test_published_weights_load_at_another_image_size_and_not_in_another_grid(tmp_path, capsys):
    """A state_dict alone, as it is published."""
    source = LiftSplatShoot(PUBLISHED, {"final_dim": (128, 352)}, 1)
    path = tmp_path / "model525000.pt"
    torch.save(source.state_dict(), path)
    network = LiftSplatShoot(PUBLISHED, {"final_dim": (64, 96)}, 1)
    assert checkpoint.load(path, network) == 0
    assert "note: frustum of (41, 8, 22, 3) is left out; that of images of (64, 96) is used" in capsys.readouterr().err
    assert torch.equal(network.camencode.depthnet.weight, source.camencode.depthnet.weight)
    assert network.frustum.shape == (41, 4, 6, 3)
    other = LiftSplatShoot(PUBLISHED | {"xbound": (-30.0, 30.0, 0.15)}, {"final_dim": (64, 96)}, 1)
    with pytest.raises(ValueError, match=r"model525000.pt: its grid's dx is \[0.5, 0.5, 20.0\], this one's \[0.15"):
        checkpoint.load(path, other)
    assert checkpoint.interpolation(checkpoint.peek(path)) == "bilinear"
    with pytest.raises(ValueError, match="has 20 cells; the BEV encoder takes one"):
        LiftSplatShoot(PUBLISHED | {"zbound": (-10.0, 10.0, 1.0)}, {"final_dim": (64, 96)}, 1)


def test_on_cuda_the_host_waits_for_nothing():
    grid = VoxUtil(40, 4, 48, scene_centroid=[[0.0, -0.5, 0.0]], bounds=(-24, 24, -4, 4, -20, 20))
    network, batch, watch = small(grid).train(), small_inputs(), Watch()
    flips = Flips(*(torch.zeros(shape, dtype=torch.bool) for shape in ((2, 2), (2,), (2,))))
    with fake_mode():
        to_fake_cuda(network)
        batch, flips = SimpleNamespace(**faked(vars(batch)), true_times=False), Flips(**faked(vars(flips)))
        with watch:
            seg = network(batch, grid, flips)["seg"]
    assert seg.device.type == "cuda" and watch.faults == []


@pytest.mark.slow
def test_a_published_checkpoint_is_evaluated_by_the_command(small_shards, tmp_path):
    path = tmp_path / "model525000.pt"
    torch.save(LiftSplatShoot(PUBLISHED, {"final_dim": (128, 352)}, 1).state_dict(), path)
    words = "--model lift_splat --frame ego --image_size 64x176 --crop bottom --device cpu --nworkers 0 --pictures 0".split()
    words += ["--val_shards", f"{small_shards}/val-*.tar", "--log_dir", tmp_path / "logs", "--out", tmp_path / "out"]
    said = call_module("train.evaluate", path, *words)
    assert "step 0; 3 samples" in said.stdout and "frustum of (41, 8, 22, 3) is left out" in said.stderr
    written = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert written["about"]["options"]["interpolation"] == "bilinear"
