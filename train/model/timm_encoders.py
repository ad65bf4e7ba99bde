"""Image encoders of the package timm: whatever of its models gives features at strides 8 and 16, or one plain level.

timm's models say what they take and give (feature_info, pretrained_cfg); nothing is assumed of a name.
"""

import logging
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError
from train.model.decoder import pad_to_multiple
from train.model.encoders import UpsamplingConcat
from train.model.norm import InstanceNorm

PREFIX = "timm:"
STRIDES = (8, 16)  # of the features that encoders work with
WIDTH = 256  # channels of the features that are mixed
# By which models take images of any size; each knows one of them, or neither.
ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False})


class TimmPyramid(nn.Module):
    """(N,3,H,W) normalised images, multiples of `multiple` -> (N,C,H/8,W/8), of a model with levels at 1/8 and 1/16."""

    strides = STRIDES

    def __init__(self, source, channels):
        super().__init__()
        self.source, self.multiple = source, source.coarsest
        self.mean, self.std = source.mean, source.std
        self.backbone = source.create()
        self.upsampling_layer = UpsamplingConcat(sum(source.channels), WIDTH)
        self.depth_layer = nn.Conv2d(WIDTH, channels, kernel_size=1)

    @property
    def pretrained(self):
        return (self.backbone,)

    def forward(self, x):
        fine, coarse = self.source.levels(self.backbone, x)
        return self.depth_layer(self.upsampling_layer(coarse, fine))


class TimmPlain(nn.Module):
    """(N,3,H,W) normalised images of any size -> (N,C,H'/8,W'/8), of a model with one level, resampled to 1/8.

    H' and W' are multiples of the model's stride, to which images are padded on the right and below.
    """

    multiple = 1

    def __init__(self, source, channels):
        super().__init__()
        self.source, self.strides = source, (STRIDES[0], max(STRIDES[0], source.coarsest))
        self.mean, self.std = source.mean, source.std
        self.backbone = source.create()
        self.reduce = nn.Conv2d(*source.channels, WIDTH, kernel_size=1)
        self.mix = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, bias=False), InstanceNorm(WIDTH), nn.ReLU(inplace=True)
        )
        self.depth_layer = nn.Conv2d(WIDTH, channels, kernel_size=1)

    @property
    def pretrained(self):
        return (self.backbone,)

    def forward(self, x):
        [level] = self.source.levels(self.backbone, pad_to_multiple(x, self.source.coarsest))
        # By the ratio of the strides, not by the sizes, whose ratio another size of the image rounds to another value.
        ratio = self.source.coarsest / STRIDES[0]
        level = F.interpolate(self.reduce(level), scale_factor=ratio, mode="bilinear", align_corners=False)
        return self.depth_layer(self.mix(level))


class Source:
    """What timm says of a model, and how it is made.

    Attributes:
        channels: of the levels that are used, the finest first. coarsest: largest stride of any level that the model gives.
        mean, std: colours that its images are normalised by.
    Raises:
        ValueError: timm is not installed, knows no such model, or one that gives no such features.
    """

    def __init__(self, name):
        self.name = name
        timm = _timm()
        if name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) or not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:3])
            raise InputError(f"--encoder_type {PREFIX}{name}: timm has no such model{near and f'; it has {near}'}")
        with torch.device("meta"):
            model = self._probe(timm)
        self.strides, config = model.feature_info.reduction(), model.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.coarsest = max(self.strides)
        if set(STRIDES) <= set(self.strides):
            places = [self.strides.index(stride) for stride in STRIDES]
        elif len(set(self.strides)) == 1:
            places = [-1]
        else:
            raise InputError(
                f"--encoder_type {PREFIX}{name}: its features have strides {', '.join(map(str, self.strides))}; it takes a "
                f"model with {STRIDES[0]} and {STRIDES[1]} among them, or of a single one"
            )
        out = model.feature_info.out_indices
        self.indices = [out[place] for place in places]
        self.channels = [model.feature_info.channels()[place] for place in places]
        self.is_last = str(getattr(getattr(model, "output_fmt", None), "value", "NCHW")) == "NHWC"

    def _probe(self, timm):
        """The model on no device, with all its levels, and so made that images may have any size."""
        for self.arguments in (*ANY_SIZE, {}):
            try:
                model = timm.create_model(self.name, features_only=True, num_classes=0, **self.arguments)
            except TypeError:  # it has no such argument
                continue
            except (RuntimeError, AttributeError, AssertionError, NotImplementedError) as error:
                reason = str(error).partition("\n")[0]
                raise InputError(f"--encoder_type {PREFIX}{self.name}: gives no features ({reason:.150})") from None
            if model.pretrained_cfg.get("fixed_input_size") and not self.arguments:
                size = "x".join(map(str, model.pretrained_cfg["input_size"][1:]))
                raise InputError(f"--encoder_type {PREFIX}{self.name}: takes images of {size} alone")
            return model
        raise AssertionError("the last arguments are none")

    def create(self, **pretrained):
        """The model, random, or as timm.create_model's other arguments say."""
        return _timm().create_model(
            self.name, features_only=True, num_classes=0, out_indices=self.indices, **self.arguments, **pretrained
        )

    def levels(self, model, x):
        """The features that are used, (N,C,h,w), the finest first."""
        levels = model(x)
        return [level.permute(0, 3, 1, 2).contiguous() for level in levels] if self.is_last else levels


def make_timm_encoder(name, channels):
    """The encoder of a timm model's name, with random weights. Raises ValueError as Source does."""
    source = Source(name)
    return (TimmPyramid if len(source.channels) > 1 else TimmPlain)(source, channels)


def load_timm(encoder, path, remedy):
    """Pretrained weights into an encoder: of a file in any of timm's layouts, or, with an empty path, from where timm has them.

    Raises ValueError where they can't be had, or are not all that the model has.
    """
    source = encoder.source
    if path:
        where, pretrained = path, {"pretrained_cfg_overlay": {"state_dict": _read(path, remedy)}}
    else:
        where, pretrained = f"the weights of {PREFIX}{source.name}", {}
    try:
        with _missing() as missing:
            model = source.create(pretrained=True, **pretrained)
    except Exception as error:  # timm, its hub and torch raise many kinds
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: cannot be loaded into {PREFIX}{source.name} ({reason:.200}); {remedy}") from None
    if missing:
        raise InputError(f"{where}: no weights of {PREFIX}{source.name}: they lack {missing[0]:.150}; {remedy}")
    encoder.backbone.load_state_dict(model.state_dict())


def _timm():
    try:
        import timm
    except ImportError as error:
        raise InputError(f"--encoder_type {PREFIX}… needs timm ({error}): pip install 'bevshards[timm]'") from None
    return timm


def _read(path, remedy):
    from timm.models import load_state_dict

    try:
        return load_state_dict(path, weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        reason = str(error).partition("\n")[0] or "it is empty or cut"
        raise InputError(f"{path}: not readable weights ({reason:.200}); {remedy}") from None


@contextmanager
def _missing():
    """A list that, within, gets what timm logs of parameters that it found no weights for; it says nothing else of them."""
    found, logger = [], logging.getLogger("timm.models._builder")
    handler = logging.Handler()
    handler.emit = lambda record: (
        found.append(text) if (text := record.getMessage()).startswith("Missing keys") else None
    )
    before, passed_on = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = passed_on
