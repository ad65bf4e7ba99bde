"""A network of the benchmark's kind with every sensor, so small that an export takes seconds, and a run of it."""

import torch
from torchvision.models.resnet import Bottleneck, ResNet

from train import checkpoint
from train.model.encoders import ResNetEncoder
from train.model.simple_bev import SimpleBev
from train.options import Options, as_dict
from train.setup import make_network

OPTIONS = dict(
    model="tests.train.exporting.tiny:build",
    use_lidar=True,
    use_radar=True,
    use_metaradar=True,
    nsweeps=2,
    res_scale=0.25,
    latent_dim=8,
    Z=16,
    Y=2,
    X=24,
    bounds=(-24.0, 24.0, -4.0, 4.0, -16.0, 16.0),
    classes="vehicle=vehicle; human=human",
    no_pretrained=True,
    device="cpu",
)


def build(options, grid):
    """SimpleBev of the options with one block a level in its encoder, and norms that have seen something."""
    network = SimpleBev(
        grid.Z,
        grid.Y,
        grid.X,
        grid,
        use_radar=options.use_radar,
        use_lidar=options.use_lidar,
        use_metaradar=options.use_metaradar,
        latent_dim=options.latent_dim,
        classes=len(options.classes) or 1,
        past=options.past,
    )
    network.encoder = ResNetEncoder(ResNet(Bottleneck, [1, 1, 1, 1]), options.latent_dim)
    rng = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=rng) * 0.1
            module.running_var = torch.rand(module.num_features, generator=rng) + 0.5
    return network


def write_run(folder, shards, **changes):
    """Write a checkpoint of update 7 into a folder: the network as it is built, and options that name these shards."""
    options = Options(**OPTIONS | {"shards": (f"{shards}/train-*.tar",)} | changes)
    network, options = make_network(options)
    checkpoint.save(folder, 7, network, options=as_dict(options))
