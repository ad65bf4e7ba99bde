"""Image encoders: a backbone down to 1/16, its features brought back to 1/8 of the image.

An encoder says what it takes and gives, and nobody else assumes it. multiple: height and width of its images are multiples of
it. mean, std: colours that images in [0, 1] are normalised by. strides: pixels of the image per pixel of the features that it
works with, the finest first, which is the stride of what it gives. pretrained: the modules that ImageNet's weights are for.
"""

from types import MethodType

from torch import nn

from train.model.norm import InstanceNorm, normed
from train.model.upsampling import doubled

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class UpsamplingConcat(nn.Module):
    """Coarse features upsampled by 2, joined with the fine ones, and mixed."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            InstanceNorm(out_channels, relu=True),
            nn.Identity(),  # the ReLU, whose place in the state dict's numbers it keeps
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            InstanceNorm(out_channels, relu=True),
            nn.Identity(),  # the ReLU, whose place in the state dict's numbers it keeps
        )

    def forward(self, coarse, fine):
        return self.conv(doubled(coarse, fine))


class ResNetEncoder(nn.Module):
    """(N,3,H,W) normalised images, H and W multiples of 16 -> (N,C,H/8,W/8)."""

    multiple, strides = 16, (8, 16)
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, resnet, channels):
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet.children())[:-4])  # up to layer2
        self.layer3 = resnet.layer3
        self.depth_layer = nn.Conv2d(512, channels, kernel_size=1)
        self.upsampling_layer = UpsamplingConcat(1536, 512)

    @property
    def pretrained(self):
        return self.backbone, self.layer3

    def forward(self, x):
        conv, norm, _, *rest = self.backbone  # the third is the ReLU
        fine = normed(norm, conv(x), relu=True)
        for module in rest:
            fine = module(fine)
        return self.depth_layer(self.upsampling_layer(self.layer3(fine), fine))


class EfficientNetEncoder(nn.Module):
    """As ResNetEncoder, on the efficientnet-pytorch package with its static padding for the nominal input size."""

    multiple, strides = 16, (8, 16)
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    # Blocks kept, and the channels that blocks at 1/8 and 1/16 give.
    LAYOUT = {"b0": (11, 40, 112), "b4": (22, 56, 160)}

    def __init__(self, version, channels):
        super().__init__()
        from efficientnet_pytorch import EfficientNet

        blocks, fine, coarse = self.LAYOUT[version]
        self.backbone = EfficientNet.from_name(f"efficientnet-{version}")
        self.backbone.set_swish(
            memory_efficient=False
        )  # torch's own, which keeps no more and takes a quarter of the time
        self.num_blocks = len(self.backbone._blocks[:blocks])
        del self.backbone._blocks[blocks:]
        for unused in ("_conv_head", "_bn1", "_avg_pooling", "_dropout", "_fc"):
            delattr(self.backbone, unused)
        self.upsampling_layer = UpsamplingConcat(fine + coarse, 128)
        self.depth_layer = nn.Conv2d(128, channels, kernel_size=1)

    @property
    def pretrained(self):
        return (self.backbone,)

    def forward(self, x):
        net = self.backbone
        x = net._swish(net._bn0(net._conv_stem(x)))
        levels = []
        for i, block in enumerate(net._blocks):
            before = x
            rate = net._global_params.drop_connect_rate
            x = block(x, drop_connect_rate=rate * i / self.num_blocks if rate else rate)
            if x.shape[-2] < before.shape[-2]:
                levels.append(before)
        return self.depth_layer(self.upsampling_layer(x, levels[2]))


def freeze(module):
    """Keep a module as it is: its parameters get no gradient, and it stays in evaluation mode whatever its parent does."""
    module.requires_grad_(False).eval()
    module.train = MethodType(_stays, module)


def _stays(module, mode=True):
    return module


def begin(encoder, options):
    """What the options say of an encoder that is new: --bn_momentum and --freeze_encoder."""
    follow(encoder, options.bn_momentum)
    if options.freeze_encoder:
        for module in encoder.pretrained:
            freeze(module)


def follow(encoder, momentum):
    """Let the statistics of an encoder's batch norms follow the batches at this rate; 0 leaves them their own.

    EfficientNet's move a hundredth of the way per batch, which keeps those that come with its published weights. Of random
    weights they lag behind for hundreds of updates, and evaluation, which goes by them, lags behind training.
    """
    for module in encoder.modules():
        if momentum and isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
