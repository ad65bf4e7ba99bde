"""ImageNet weights for the encoders, from a file or from where torchvision and efficientnet-pytorch publish them."""

from pickle import UnpicklingError

import torch


def load_backbone(model, options):
    """ImageNet weights into the encoder, from a file or torchvision. Raises ValueError where they can't be had."""
    if options.no_pretrained:
        return
    if options.backbone_weights:
        try:
            weights = torch.load(options.backbone_weights, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{options.backbone_weights}: not readable weights ({reason})") from None
    else:
        weights = _download(options.encoder_type)
    _fill_encoder(model.encoder, weights, options.encoder_type)


def _download(encoder_type):
    from torch.hub import load_state_dict_from_url
    from torchvision.models import ResNet50_Weights, ResNet101_Weights

    try:
        if encoder_type.startswith("res"):
            weights = {"res50": ResNet50_Weights, "res101": ResNet101_Weights}[encoder_type]
            return weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        from efficientnet_pytorch.utils import url_map

        url = url_map[f"efficientnet-{encoder_type[3:]}"]
        return load_state_dict_from_url(url, progress=False, check_hash=True, weights_only=True)
    except (
        OSError,
        RuntimeError,
        UnpicklingError,
    ) as error:  # the latter: another hash than the name says, code inside
        raise ValueError(
            f"ImageNet weights of {encoder_type} cannot be downloaded ({error}); "
            "give --backbone_weights FILE or --no_pretrained"
        ) from None


def _fill_encoder(encoder, weights, encoder_type):
    target = encoder.backbone.state_dict()
    if encoder_type.startswith("res"):
        places = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")
        renamed = {}
        for name, value in weights.items():
            head, _, rest = name.partition(".")
            if head in places:
                renamed[f"{places.index(head)}.{rest}"] = value
        coarse = {k.removeprefix("layer3."): v for k, v in weights.items() if k.startswith("layer3.")}
        pairs = ((encoder.backbone, renamed), (encoder.layer3, coarse))
    else:
        pairs = ((encoder.backbone, {k: v for k, v in weights.items() if k in target}),)
    for module, state in pairs:
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the ImageNet weights are not those of {encoder_type}: {error}") from None
