"""Encoders by name: what --encoder_type may say."""

from common.errors import InputError
from train.model.encoders import EfficientNetEncoder, ResNetEncoder
from train.model.resnet import resnet50, resnet101
from train.model.timm_encoders import PREFIX, make_timm_encoder

ENCODERS = ("res101", "res50", "effb0", "effb4")


def make_encoder(encoder_type, channels):
    """The encoder of that name, with random weights. Raises ValueError for another name."""
    if encoder_type == "res101":
        return ResNetEncoder(resnet101(), channels)
    if encoder_type == "res50":
        return ResNetEncoder(resnet50(), channels)
    if encoder_type in ("effb0", "effb4"):
        return EfficientNetEncoder(encoder_type[3:], channels)
    if encoder_type.startswith(PREFIX):
        return make_timm_encoder(encoder_type.removeprefix(PREFIX), channels)
    raise InputError(f"encoder_type {encoder_type!r}; it is one of {', '.join(ENCODERS)}, or {PREFIX}NAME")
