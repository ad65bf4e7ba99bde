"""The BEV decoder: a ResNet-18 trunk with skip connections and one head a target (Simple-BEV, after FIERY)."""

import torch
import torch.nn.functional as F
from torch import nn

from train.model.norm import InstanceNorm, normed
from train.model.resnet import resnet18
from train.model.upsampling import doubled

STRIDE = 8  # coarsest level of the trunk


def pad_to_multiple(x, multiple):
    """(…,H,W) with zeros on the right and below up to multiples of `multiple`; itself, not a copy, where it has those sizes."""
    rows, columns = x.shape[-2:]
    missing = (0, -columns % multiple, 0, -rows % multiple)
    return F.pad(x, missing) if any(missing) else x


class UpsamplingAdd(nn.Module):
    """(B, C_in, h, w) -> (B, C_out, 2h, 2w) plus the skip connection of that size."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.upsample_layer = nn.Sequential(
            nn.Identity(),  # the doubling, whose place in the state dict's numbers it keeps
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
            InstanceNorm(out_channels),
        )

    def forward(self, x, skip):
        _, conv, norm = self.upsample_layer
        return normed(norm, conv(doubled(x)), skip)


def _head(channels, outputs, *extra):
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        InstanceNorm(channels, relu=True),
        nn.Identity(),  # the ReLU, whose place in the state dict's numbers it keeps
        nn.Conv2d(channels, outputs, kernel_size=1),
        *extra,
    )


class Decoder(nn.Module):
    """(B, C, Z, X) BEV features -> shared feature and the heads' maps of the same Z, X.

    Grids that are not a multiple of 8 are padded at the far end and cropped again. gives_feat: whether the feature head runs,
    which no loss of the benchmark reaches; without it None stands in its place.
    """

    gives_feat = True

    def __init__(self, channels, classes=1):
        super().__init__()
        trunk = resnet18(zero_init_residual=True)
        self.first_conv = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = trunk.bn1
        self.layer1, self.layer2, self.layer3 = trunk.layer1, trunk.layer2, trunk.layer3
        self.up3_skip = UpsamplingAdd(256, 128)
        self.up2_skip = UpsamplingAdd(128, 64)
        self.up1_skip = UpsamplingAdd(64, channels)
        self.feat_head = _head(channels, channels)
        self.segmentation_head = _head(channels, classes)
        self.instance_offset_head = _head(channels, 2)
        self.instance_center_head = _head(channels, 1, nn.Sigmoid())

    def forward(self, bev, unflip=None):
        """unflip: applied to the shared feature before the heads, to undo a flip of the input."""
        rows, columns = bev.shape[-2:]
        x = pad_to_multiple(bev, STRIDE)
        skip1 = x
        x = normed(self.bn1, self.first_conv(x), relu=True)
        skip2 = self.layer1(x)
        skip3 = self.layer2(skip2)
        x = self.up3_skip(self.layer3(skip3), skip3)
        x = self.up2_skip(x, skip2)
        x = self.up1_skip(x, skip1)[..., :rows, :columns]
        if unflip is not None:
            x = unflip(x)
        # Contiguous: a cropped view would give the heads' kernels another memory order.
        x = x.contiguous() if not x.is_contiguous(memory_format=torch.channels_last) else x
        return (
            x,
            self.feat_head(x) if self.gives_feat else None,
            self.segmentation_head(x),
            self.instance_center_head(x),
            self.instance_offset_head(x),
        )
