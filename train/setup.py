"""Options -> model, grid and loaders."""

import os
from pickle import UnpicklingError

import torch

from common.shard_set import find_beside, find_shards
from train.data import compile_data, make_vox_util
from train.data.categories import check_categories
from train.distributed import say
from train.model import Segnet


def make_model(options):
    """Segnet of the options, weights from torch's generator."""
    return Segnet(
        options.Z,
        options.Y,
        options.X,
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

        url = url_map[f"efficientnet-{encoder_type[3:]}"]
        return load_state_dict_from_url(url, progress=False, check_hash=True, weights_only=True)
    except (
        OSError,
        RuntimeError,
        UnpicklingError,
    ) as error:  # also: another hash than the file's name says, code inside
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


def _share_of_cores(name, wanted):
    """Loader threads of this process, of those `wanted` for all of this machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted > cores:
        say(f"note: --{name} {wanted}: this machine has {cores} cores; {cores} loader threads")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return -(-min(wanted, cores) // processes)


def _shards(options, want_train):
    """(train, val) ShardSets of the options; None where they are not wanted."""
    train, val = None, None
    if want_train:
        train = find_shards(options.shards or (f"{options.data_dir}/train-*.tar",), "train", options.stores)
    if options.do_val:
        if options.val_shards:
            val = find_shards(options.val_shards, "val", options.stores)
        elif want_train:
            val = find_beside(train, "val")
        else:
            val = find_shards(options.shards or (f"{options.data_dir}/val-*.tar",), "val", options.stores)
        if not val:
            raise ValueError("no val shards beside the train shards; give --val_shards or --do_val False")
    for note in (note for shards in (train, val) if shards is not None for note in shards.notes):
        say(f"note: {note}")
    return train, val


def make_loaders(options, device, want_train=True, rank=0, world_size=1):
    """(train, val) loaders and VoxUtil on the device; val is None without do_val. Raises ValueError."""
    train, val = _shards(options, want_train)
    threads = _share_of_cores("nworkers", options.nworkers)
    # In evaluation there is but one loader, and --nworkers counts its threads, as in the lineage's.
    threads_val = _share_of_cores("nworkers_val", options.nworkers_val) if want_train else threads
    loaders = compile_data(
        train,
        val,
        options.data_aug_conf(),
        *options.grid,
        options.batch_size,
        threads,
        shuffle=options.shuffle,
        nsweeps=options.nsweeps,
        nworkers_val=threads_val,
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
        store_options=options.stores,
    )
    for loader in loaders:
        version = loader.reader.facts["version"] if loader is not None else ""
        if options.dset and version and version != f"v1.0-{options.dset}":
            raise ValueError(f"--dset {options.dset}, but the shards are of {version}; leave it out or give others")
    if rank == 0:
        for loader, trains in zip(loaders, (True, False), strict=True):
            if loader is not None:
                check_categories(loader.reader, options.target_categories, all_of_them=trains)
    return *loaders, make_vox_util(options.grid, device)
