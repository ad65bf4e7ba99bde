"""torchvision's ResNets, with norm, sum and ReLU in one go where train.model.norm can do so; names and weights are the same."""

from torchvision.models import resnet

from train.model.norm import BatchNorm, normed


class BasicBlock(resnet.BasicBlock):
    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = normed(self.bn1, self.conv1(x), relu=True)
        return normed(self.bn2, self.conv2(out), identity, relu=True)


class Bottleneck(resnet.Bottleneck):
    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = normed(self.bn1, self.conv1(x), relu=True)
        out = normed(self.bn2, self.conv2(out), relu=True)
        return normed(self.bn3, self.conv3(out), identity, relu=True)


def resnet18(**options):
    return resnet.ResNet(BasicBlock, [2, 2, 2, 2], norm_layer=BatchNorm, **options)


def resnet50(**options):
    return resnet.ResNet(Bottleneck, [3, 4, 6, 3], norm_layer=BatchNorm, **options)


def resnet101(**options):
    return resnet.ResNet(Bottleneck, [3, 4, 23, 3], norm_layer=BatchNorm, **options)
