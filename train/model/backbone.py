"""ImageNet weights for the encoders, from a file or from where torchvision and efficientnet-pytorch publish them."""

from pathlib import Path
from pickle import UnpicklingError

import torch

from common.errors import InputError

REMEDY = "give another --backbone_weights FILE or --no_pretrained"


def load_backbone(model, options):
    """ImageNet weights into the encoder, from a file or torchvision. Raises ValueError where they can't be had."""
    if options.no_pretrained:
        return
    if options.backbone_weights:
        source, weights = options.backbone_weights, _read(options.backbone_weights)
    else:
        source, weights = f"the ImageNet weights of {options.encoder_type}", _download(options.encoder_type)
    _fill_encoder(model.encoder, weights, options.encoder_type, source)


def _read(path):
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).partition("\n")[0] or "it is empty or cut"
        raise InputError(f"{path}: not readable weights ({reason:.200}); {REMEDY}") from None
    if not isinstance(weights, dict):
        raise InputError(f"{path}: holds a {type(weights).__name__}, no weights by name; {REMEDY}")
    return weights


def _address(encoder_type):
    if encoder_type.startswith("res"):
        from torchvision.models import ResNet50_Weights, ResNet101_Weights

        return {"res50": ResNet50_Weights, "res101": ResNet101_Weights}[encoder_type].IMAGENET1K_V1.url
    from efficientnet_pytorch.utils import url_map

    return url_map[f"efficientnet-{encoder_type[3:]}"]


def _download(encoder_type):
    url = _address(encoder_type)
    kept = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    was_there = kept.exists()
    try:
        return torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True, weights_only=True)
    except (EOFError, OSError, RuntimeError, UnpicklingError) as error:  # another hash than the name says, code inside
        reason = f"{error}".partition("\n")[0] or "it is empty or cut"
        if was_there:
            raise InputError(
                f"{kept}: not readable weights ({reason:.200}); remove it, so that they are downloaded again, or {REMEDY}"
            ) from None
        raise InputError(f"ImageNet weights of {encoder_type} cannot be downloaded ({reason:.200}); {REMEDY}") from None


def _fill_encoder(encoder, weights, encoder_type, source):
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
    wanted = {(n, k): v.shape for n, (module, _) in enumerate(pairs) for k, v in module.state_dict().items()}
    given = {(n, k): getattr(v, "shape", None) for n, (_, state) in enumerate(pairs) for k, v in state.items()}
    # Published weights are older than the count of batches, which torch's batch norm does without.
    lacking = [k for k, v in wanted.items() if given.get(k) != v and not k[1].endswith("num_batches_tracked")]
    if lacking or given.keys() - wanted.keys():
        what = (
            f"{len(lacking)} of {len(wanted)} tensors are missing or of another shape" if lacking else "it holds more"
        )
        raise InputError(f"{source}: not ImageNet weights in the layout of {encoder_type}: {what}; {REMEDY}")
    for module, state in pairs:
        module.load_state_dict(state)
