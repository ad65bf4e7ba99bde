"""ImageNet weights for the encoders, from a file or from where torchvision, efficientnet-pytorch and timm publish them."""

from pathlib import Path
from pickle import UnpicklingError

import torch

from common.errors import InputError
from train.model.timm_encoders import PREFIX, load_timm

REMEDY = "give another --backbone_weights FILE or --no_pretrained"


def load_backbone(encoder, options):
    """ImageNet weights into the encoder of --encoder_type, from a file or where they are published, unless --no_pretrained.

    Raises ValueError where they can't be had.
    """
    if options.no_pretrained:
        return
    if options.encoder_type.startswith(PREFIX):
        load_timm(encoder, options.backbone_weights, REMEDY)
    elif options.encoder_type.startswith("eff"):
        load_efficientnet(encoder.backbone, options.encoder_type, options)
    else:
        source, weights = _weights(options.encoder_type, options)
        _fill(_of_resnet(encoder, weights), options.encoder_type, source)


def load_efficientnet(trunk, encoder_type, options):
    """The same into a network of efficientnet-pytorch, or as much of one as there is."""
    if options.no_pretrained:
        return
    source, weights = _weights(encoder_type, options)
    own = trunk.state_dict()
    _fill([(trunk, {name: value for name, value in weights.items() if name in own})], encoder_type, source)


def _weights(encoder_type, options):
    """(what they are, ImageNet weights by name)."""
    if options.backbone_weights:
        return options.backbone_weights, _read(options.backbone_weights)
    return f"the ImageNet weights of {encoder_type}", _download(encoder_type)


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


def _of_resnet(encoder, weights):
    """[(module, its weights)] of a ResNetEncoder, whose backbone numbers what torchvision names."""
    places = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2")
    renamed = {}
    for name, value in weights.items():
        head, _, rest = name.partition(".")
        if head in places:
            renamed[f"{places.index(head)}.{rest}"] = value
    coarse = {name.removeprefix("layer3."): v for name, v in weights.items() if name.startswith("layer3.")}
    return [(encoder.backbone, renamed), (encoder.layer3, coarse)]


def _fill(pairs, encoder_type, source):
    """Load each module's weights. Raises ValueError where they are not all that it has."""
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
