"""Every network that comes with the project, through all commands: trained, resumed, evaluated, shown, reported."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from tests.conftest import call_module
from train import checkpoint, show
from train.data import make_vox_util
from train.data.grid import Grid
from train.model.forward import with_voxels
from train.options import Options
from train.run import train
from train.setup import make_loaders, make_network

NETWORKS = {
    "simple_bev": dict(encoder_type="effb0", latent_dim=8, use_radar=True, use_lidar=True),
    "simple_bev, timm": dict(
        encoder_type="timm:mobilenetv4_conv_small_035", latent_dim=8, freeze_encoder=True, ema=0.9
    ),
    "lift_splat, cam0": dict(model="lift_splat", ema=0.9),
    "lift_splat, ego": dict(
        model="lift_splat",
        frame="ego",
        model_args=json.dumps({"depth": "lidar", "depth_m": [2, 20, 1]}),
        classes="car=vehicle.car; person=human",
    ),
}


def options_of(name, shards, out, **more):
    chosen = dict(batch_size=2, grad_acc=1, max_iters=2, image_size="64x96", nworkers=1, nworkers_val=1, nsweeps=1)
    chosen |= dict(Z=24, Y=2, X=24, bounds=(-24, 24, -2, 2, -24, 24), device="cpu", no_pretrained=True, log_freq=2)
    chosen |= dict(log_dir=str(out / "logs"), ckpt_dir=str(out), run_name="run", shards=(f"{shards}/train-*.tar",))
    return Options(**{**chosen, **NETWORKS[name], **more})


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_it_goes_through_all_commands(name, small_shards, tmp_path):
    run = train(options_of(name, small_shards, tmp_path)).parent
    recorded = Options(**{**checkpoint.read(run)["options"], "config": ""})
    train(dataclasses.replace(recorded, resume=str(run), device_ids=(0, 1), max_iters=3))
    assert checkpoint.read(run)["step"] == 3
    weights = ["--weights", "ema"] if recorded.ema else []
    said = call_module("train.evaluate", run, "--device", "cpu", "--pictures", 1, *weights).stdout
    assert "3 samples" in said
    words = [small_shards, 0, "--run", run, "--out", tmp_path / "shown.png", "--device", "cpu"]
    shown = CliRunner().invoke(show.main, list(map(str, words)))
    assert shown.exit_code == 0 and (tmp_path / "shown.png").is_file(), shown.output
    call_module("train.report", run, "--out", tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


class Inference(torch.nn.Module):
    """infer as the forward of a module, which is what torch.export takes."""

    def __init__(self, network, names):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *tensors):
        return self.network.infer(**dict(zip(self.names, tensors, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_its_inference_is_exported_for_batches_of_any_size(name, small_shards, tmp_path):
    options = options_of(name, small_shards, tmp_path)
    network, options = make_network(options)
    _, loader, grid = make_loaders(options, "cpu", needs=network.needs)
    network.eval()
    network.vox_util = make_vox_util(Grid.of(options))
    inputs = {}
    for count in (1, 2, 3):
        batch = with_voxels(loader.batch_of(list(range(count)), augment=True), network.needs, grid)
        inputs[count] = network.inference_inputs(batch, grid)
    names = list(inputs[2])
    size = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(
        Inference(network, names), tuple(inputs[2].values()), dynamic_shapes=(tuple(size for _ in names),), strict=False
    )
    with torch.no_grad():
        for given in inputs.values():
            exported, plain = program.module()(*given.values()), network.infer(**given)
            for key, value in plain.items():
                torch.testing.assert_close(exported[key], value, rtol=1e-4, atol=1e-4)
