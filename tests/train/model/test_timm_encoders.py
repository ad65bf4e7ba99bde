"""Encoders of timm: what they say they are, where their features lie, their weights in timm's layouts; without a network."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file

from train.model import Segnet, timm_encoders
from train.model.backbone import load_backbone
from train.model.decoder import pad_to_multiple
from train.model.encoders import freeze
from train.model.timm_encoders import TimmPlain, TimmPyramid, make_timm_encoder
from train.options import Options
from train.setup import make_network

PYRAMIDS = ("convnext_atto", "efficientnet_b0", "regnety_002", "ese_vovnet19b_dw", "mobilenetv4_conv_small_035")
WINDOWS = ("swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224")
PLAIN = (
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_tiny_patch16_224",
)


def check(name, image_hw):
    """The encoder gives features at 1/8 for images of any size, with its own colours."""
    encoder = make_timm_encoder(name, 8).eval()
    network = Segnet(8, 2, 8, latent_dim=8, encoder_type=f"timm:{name}").eval()
    images = torch.rand(1, 2, 3, *image_hw)
    with torch.no_grad():
        given = network.encode(images - 0.5)
    multiple = math.lcm(encoder.multiple, 8)
    assert given.shape == (1, 2, 8, *(-(-size // multiple) * multiple // 8 for size in image_hw))
    assert given.isfinite().all()
    config = timm.get_pretrained_cfg(name)
    assert encoder.mean == tuple(config.mean) and encoder.std == tuple(config.std)
    assert not given[:, 0].allclose(given[:, 1])
    return encoder


def test_small_models_of_both_kinds():
    assert isinstance(check("test_convnext", (60, 100)), TimmPyramid)
    assert isinstance(check("test_vit", (64, 96)), TimmPlain)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PYRAMIDS, *WINDOWS])
def test_pyramids(name):
    encoder = check(name, (72, 120))
    assert isinstance(encoder, TimmPyramid) and encoder.strides == (8, 16) and encoder.multiple == 32


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_plain_models_take_images_of_any_size(name):
    encoder = check(name, (72, 120))
    assert isinstance(encoder, TimmPlain)
    # Another size than before, and than the model's own: positions are resampled to it.
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 112, 64)).shape[:2] == (1, 8)


class OneToken(torch.nn.Module):
    """A model whose tokens are zero but for one."""

    def __init__(self, patch, row, column, channels):
        super().__init__()
        self.patch, self.place, self.channels = patch, (row, column), channels

    def forward(self, x):
        assert x.shape[-2] % self.patch == 0 and x.shape[-1] % self.patch == 0
        tokens = x.new_zeros(len(x), self.channels, x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        tokens[:, :, self.place[0], self.place[1]] = 1
        return [tokens]


@pytest.mark.parametrize("patch", [14, 16, 32])
def test_a_token_lies_where_its_pixels_are(monkeypatch, patch):
    """At 224 x 400, which patches of 14 see as 224 x 406: the middle of a token's features is the middle of its patch."""
    monkeypatch.setattr(timm_encoders, "ANY_SIZE", ({"dynamic_img_size": True, "patch_size": patch},))
    encoder = make_timm_encoder("test_vit", 1)
    assert encoder.strides == (8, patch)
    row, column = 3, 5
    encoder.backbone = OneToken(patch, row, column, encoder.source.channels[0])
    encoder.mix = torch.nn.Identity()
    for conv in (encoder.reduce, encoder.depth_layer):
        torch.nn.init.constant_(conv.weight, 1 / conv.in_channels)
        torch.nn.init.zeros_(conv.bias)
    monkeypatch.setattr("train.model.segnet.make_encoder", lambda *_: encoder)
    given = Segnet(8, 2, 8, latent_dim=1).encode(torch.zeros(1, 1, 3, 224, 400))[0, 0, 0]
    assert given.shape == (28, 50)
    middles = []
    for axis, size in enumerate(given.shape):
        pixels = (torch.arange(size) + 0.5) * 8 - 0.5
        middles.append(((given.sum(1 - axis) * pixels).sum() / given.sum()).item())
    assert middles == pytest.approx([(place + 0.5) * patch - 0.5 for place in (row, column)], abs=0.5)


def test_what_timm_does_not_have_is_refused_in_a_line(monkeypatch):
    with pytest.raises(
        ValueError, match="--encoder_type timm:convnext_tin: timm has no such model; it has convnext_tiny"
    ):
        make_timm_encoder("convnext_tin", 8)
    with pytest.raises(ValueError, match="timm:hf_hub:somebody/model: timm has no such model"):
        make_timm_encoder("hf_hub:somebody/model", 8)
    with pytest.raises(ValueError, match="timm:mixer_s32_224: takes images of 224x224 alone"):
        make_timm_encoder("mixer_s32_224", 8)
    monkeypatch.setattr(timm_encoders, "STRIDES", (8, 64))
    with pytest.raises(
        ValueError, match="test_convnext: its features have strides 4, 8, 16, 32; it takes a model with 8"
    ):
        make_timm_encoder("test_convnext", 8)
    with pytest.raises(ValueError, match="--encoder_type vgg: it is one of res101, res50, effb0, effb4, or timm:NAME"):
        Options(encoder_type="vgg")


def layouts(weights, folder):
    """Files of the weights, as timm reads them."""
    torch.save(weights, folder / "plain.pth")
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in weights.items()}}, folder / "training.pth.tar"
    )
    other = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save({"state_dict": other, "state_dict_ema": weights}, folder / "average.pth")
    save_file(weights, folder / "model.safetensors")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_weights_in_timm_s_layouts_and_their_faults(tmp_path, name):
    """The classifier of a whole model is left out; of another model, or cut, nothing is loaded."""
    torch.manual_seed(7)
    source = timm.create_model(name)
    (tmp_path / "files").mkdir()
    files = layouts(source.state_dict(), tmp_path / "files")
    assert len(files) == 4
    chosen = dict(encoder_type=f"timm:{name}", latent_dim=8, Z=8, Y=2, X=8)
    network, _ = make_network(Options(**chosen))
    first = next(iter(network.encoder.backbone.parameters()))
    for path in files:
        with torch.no_grad():
            first.zero_()
        load_backbone(network.encoder, Options(**chosen, backbone_weights=str(path)))
        assert torch.equal(first, next(iter(source.parameters()))), path
    whole = source.state_dict()
    middle = list(whole)[len(whole) // 2]
    for faulty, said in (
        ({key: value for key, value in whole.items() if key != middle}, "they lack Missing keys"),
        (timm.create_model("test_convnext").state_dict(), "they lack Missing keys|cannot be loaded"),
    ):
        torch.save(faulty, tmp_path / "faulty.pth")
        options = Options(**chosen, backbone_weights=str(tmp_path / "faulty.pth"))
        with pytest.raises(ValueError, match=f"faulty.pth: .*({said}).*; give another --backbone_weights FILE"):
            load_backbone(network.encoder, options)
    (tmp_path / "faulty.pth").write_bytes(b"cut")
    with pytest.raises(ValueError, match="faulty.pth: not readable weights"):
        load_backbone(network.encoder, options)


def test_a_frozen_backbone_stays_as_it_is():
    options = Options(encoder_type="timm:test_efficientnet", latent_dim=8, Z=8, Y=2, X=8, freeze_encoder=True)
    network, _ = make_network(options)
    before = {name: value.clone() for name, value in network.encoder.backbone.state_dict().items()}
    network.train()
    assert not network.encoder.backbone.training and network.encoder.upsampling_layer.training
    network.encode(torch.rand(2, 1, 3, 64, 96) - 0.5).sum().backward()
    assert all(p.grad is None for p in network.encoder.backbone.parameters())
    assert all(p.grad is not None for p in network.encoder.upsampling_layer.parameters())
    after = network.encoder.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    freeze(module[0])
    assert not module.train()[0].training
    assert pad_to_multiple(torch.zeros(1, 1, 5, 8), 4).shape == (1, 1, 8, 8)
