"""Options -> device, model, grid and loaders."""

import os

import torch

from common.shard_names import expand_shards, val_beside
from train.data import compile_data, make_vox_util
from train.model import Segnet


def pick_device(name, device_ids=()):
    """torch.device of the name; CUDA if there is one where the name is empty. Raises ValueError.

    Of several devices, that of this process's LOCAL_RANK.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if not name:
        name = "cuda" if torch.cuda.is_available() or device_ids else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = device_ids or ((local,) if name == "cuda" else ())
    if wanted and (max(wanted) >= there or min(wanted) < 0):
        shown = ",".join(map(str, wanted))
        raise ValueError(f"--device_ids {shown}: this machine has {there} CUDA devices; name fewer, or --device cpu")
    if not there:
        raise ValueError("this machine has no CUDA device; give --device cpu")
    return torch.device("cuda", wanted[local % len(wanted)]) if wanted else torch.device(name)


def make_model(options):
    """Segnet of the options, weights from torch's generator."""
    return Segnet(
        *options.grid,
        use_radar=options.use_radar,
        use_lidar=options.use_lidar,
        use_metaradar=options.use_metaradar,
        do_rgbcompress=options.do_rgbcompress,
        rand_flip=options.rand_flip,
        latent_dim=options.latent_dim,
        encoder_type=options.encoder_type,
    )


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

        return load_state_dict_from_url(url_map[f"efficientnet-{encoder_type[3:]}"], progress=False)
    except OSError as error:
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


def make_loaders(options, device, want_train=True, rank=0, world_size=1):
    """(train, val) loaders and VoxUtil on the device; val is None without do_val. Raises ValueError."""
    train, val = None, None
    if want_train:
        train = expand_shards(options.shards or (f"{options.data_dir or 'shards'}/train-*.tar",))
    if options.do_val:
        if options.val_shards:
            val = expand_shards(options.val_shards)
        elif want_train:
            val = val_beside(train)
        else:
            val = expand_shards(options.shards or (f"{options.data_dir or 'shards'}/val-*.tar",))
        if not val:
            raise ValueError("no val-*.tar beside the train shards; give --val_shards or --do_val False")
    cores = os.cpu_count() or 1
    grid = (options.centroid, options.bounds, options.grid)
    loaders = compile_data(
        train,
        val,
        options.data_aug_conf(),
        *grid,
        options.batch_size,
        min(options.nworkers, cores),
        shuffle=options.shuffle,
        nsweeps=options.nsweeps,
        nworkers_val=min(options.nworkers_val, cores),
        refcam_id=options.refcam_id,
        use_radar_filters=options.use_radar_filters,
        do_shuffle_cams=options.do_shuffle_cams,
        use_radar=options.use_radar,
        use_lidar=options.use_lidar,
        protocol=options.protocol,
        min_visibility=options.min_visibility,
        target_categories=options.target_categories,
        interpolation=options.interpolation,
        seed=options.seed,
        rank=rank,
        world_size=world_size,
        seqlen=options.seqlen,
        temporal_aug=options.temporal_aug,
        device=device,
        reader=options.reader,
        verify_reads=options.verify_reads,
        cache_dir=options.cache_dir or None,
        cache_gb=options.cache_gb,
    )
    for loader in loaders:
        version = loader.reader.facts["version"] if loader is not None else ""
        if options.dset and version and version != f"v1.0-{options.dset}":
            raise ValueError(f"--dset {options.dset}, but the shards are of {version}; leave it out or give others")
    return *loaders, make_vox_util(grid, device)
