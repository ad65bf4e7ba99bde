"""What Lift-Splat-Shoot learns: an image encoder that also says how far, and a BEV encoder. Names are the published ones."""

import torch
from efficientnet_pytorch import EfficientNet
from torch import nn

from train.model.decoder import pad_to_multiple
from train.model.norm import normed
from train.model.resnet import resnet18

CHANNELS = {4: 112, 5: 320}  # of the trunk's levels at 1/16 and 1/32
BEV_STRIDE = 8  # coarsest level of the BEV encoder


class Up(nn.Module):
    """Coarse features upsampled with aligned corners, joined after the fine ones, and mixed."""

    def __init__(self, in_channels, out_channels, scale_factor=2):
        super().__init__()
        self.up = nn.Upsample(scale_factor=scale_factor, mode="bilinear", align_corners=True)
        self.conv = nn.Sequential(*_conv(in_channels, out_channels), *_conv(out_channels, out_channels))

    def forward(self, coarse, fine):
        return self.conv(torch.cat([fine, self.up(coarse)], 1))


def _conv(in_channels, out_channels):
    return (
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class CamEncode(nn.Module):
    """(N,3,H,W) normalised images, multiples of 32 -> depth logits (N,D,H/16,W/16) and features (N,C,H/16,W/16)."""

    def __init__(self, D, C):
        super().__init__()
        self.D = D
        self.trunk = EfficientNet.from_name("efficientnet-b0")
        self.trunk.set_swish(memory_efficient=False)  # torch's own, which keeps no more and takes a quarter of the time
        # Published with the whole classifier: names of checkpoints, through which nothing flows.
        for unused in (self.trunk._conv_head, self.trunk._bn1, self.trunk._fc):
            unused.requires_grad_(False)
        self.up1 = Up(sum(CHANNELS.values()), 512)
        self.depthnet = nn.Conv2d(512, D + C, kernel_size=1)

    def forward(self, x):
        x = self.depthnet(self.up1(*self._levels(x)))
        return x[:, : self.D], x[:, self.D :]

    def _levels(self, x):
        """The trunk's last features, and the last ones that were twice as fine."""
        net = self.trunk
        x = net._swish(net._bn0(net._conv_stem(x)))
        rate, fine = net._global_params.drop_connect_rate, None
        for number, block in enumerate(net._blocks):
            before = x
            x = block(x, drop_connect_rate=rate * number / len(net._blocks))
            fine = before if x.shape[-2] < before.shape[-2] else fine
        return x, fine


class BevEncode(nn.Module):
    """(B,C,X,Y) pooled features -> (B,outC,X,Y); sizes that are no multiple of 8 are padded at the end and cropped again."""

    def __init__(self, inC, outC):
        super().__init__()
        trunk = resnet18(zero_init_residual=True)
        self.conv1 = nn.Conv2d(inC, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = trunk.bn1
        self.layer1, self.layer2, self.layer3 = trunk.layer1, trunk.layer2, trunk.layer3
        self.up1 = Up(64 + 256, 256, scale_factor=4)
        self.up2 = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            *_conv(256, 128),
            nn.Conv2d(128, outC, kernel_size=1),
        )

    def forward(self, x):
        rows, columns = x.shape[-2:]
        x = normed(self.bn1, self.conv1(pad_to_multiple(x, BEV_STRIDE)), relu=True)
        fine = self.layer1(x)
        return self.up2(self.up1(self.layer3(self.layer2(fine)), fine))[..., :rows, :columns]
