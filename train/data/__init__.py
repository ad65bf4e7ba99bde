"""Shards -> batches on the device."""

from types import SimpleNamespace

from common.errors import InputError
from common.map_shapes import MAP_LAYER
from common.record import lidar_member, radar_member
from common.spelling import spelled
from train.data.batch import Batch, FrameFacts
from train.data.bev_augmentation import draws_bev, most_reach_m
from train.data.categories import check_categories
from train.data.config import DataConfig, Wanted
from train.data.grid import Grid
from train.data.label_spec import LabelSpec
from train.data.loader import Loader
from train.data.sources import open_source
from train.data.sources.layered import with_layers
from train.data.sources.mixed import MixedSource
from train.errors import DataError
from train.mix import Mixture

__all__ = [
    "Batch",
    "DataError",
    "FrameFacts",
    "Grid",
    "LabelSpec",
    "Loader",
    "compile_data",
    "loaders_of",
    "make_loader",
    "make_vox_util",
]


def compile_data(
    shards,
    val_shards,
    data_aug_conf,
    centroid,
    bounds,
    res_3d,
    bsz,
    nworkers,
    shuffle=True,
    nsweeps=1,
    nworkers_val=1,
    seqlen=1,
    refcam_id=1,
    get_tids=False,
    temporal_aug=False,
    use_radar_filters=False,
    do_shuffle_cams=True,
    *,
    use_radar=True,
    use_lidar=True,
    use_cameras=True,
    protocol="simple_bev",
    min_visibility=1,
    target_categories=("vehicle",),
    interpolation="bilinear",
    seed=0,
    rank=0,
    world_size=1,
    device="cpu",
    decode="auto",
    labels=None,
    reader="auto",
    verify_reads=False,
    cache_dir=None,
    cache_gb=100.0,
    store_options=None,
    requests=16,
    frame="cam0",
    true_times=False,
    classes=(),
    box_categories=(),
    past=0,
    order="shuffled",
    bev_rotate=0.0,
    bev_scale=0.0,
    bev_shift=0.0,
    drop_cameras=0.0,
    photometric=0.0,
    retry_minutes=15.0,
):
    """Loaders of training and evaluation batches; the arguments are Simple-BEV's, and ours after the star.

    Args:
        shards, val_shards: path or address of tars, a glob, range, folder, manifest, a list of them, or a ShardSet (see
            common.shard_set.find_shards); either may be None.
        data_aug_conf: Simple-BEV's dict: final_dim (h, w), resize_lim, crop_offset, cams, ncams.
        centroid: (1, 3) scene centroid in ref, metres; None for the frame's own, in cam0 (0, 1, 0). bounds: XMIN XMAX YMIN
            YMAX ZMIN ZMAX around it. res_3d: (Z, Y, X).
        bsz: samples per batch over all ranks. nworkers, nworkers_val: threads; 0 loads in the caller's.
        nsweeps: lidar and radar sweeps, keyframe included. seqlen, temporal_aug, past: see train.data.windows.
        order: see train.data.config.OrderConfig.
        refcam_id: slot of the reference camera in evaluation, and in training without do_shuffle_cams.
        use_radar, use_lidar, use_cameras: what to read; what is not read is None in batches.
        protocol, min_visibility, target_categories: see train.data.config.LabelSpec.
        decode: "host" decodes JPEGs in the loader's threads, "device" on the device; "auto" is the host.
        labels: LabelSpecs instead of those three, for several label maps in one pass; the first is what the losses see.
        reader, verify_reads, cache_dir, cache_gb, store_options: see train.data.sources.SourceConfig.
        requests: range requests in flight, or as many as there are threads where that is more. retry_minutes: that a store
            is waited for once something was read from it.
        frame: of the grid, see train.data.grid. true_times: see train.data.config.StageConfig.
        classes: ClassSpecs of the label maps instead of the one of target_categories. box_categories: see DecodeConfig.
        bev_rotate, bev_scale, bev_shift, drop_cameras, photometric: see train.data.config.AugmentConfig.
    Returns:
        (train_loader, val_loader); None where no shards were given. Batches are augmented and on `device`.
    Raises:
        ValueError (ShardError for a shard): what is wrong and the remedy, also where target categories match no box; of a
            stream its loader raises that at the end of its first epoch.
    """
    options = SimpleNamespace(
        batch_size=bsz, shuffle=shuffle, seed=seed, seqlen=seqlen, temporal_aug=temporal_aug, past=past, order=order,
        centroid=centroid, bounds=bounds, **dict(zip("ZYX", res_3d, strict=True)),
        nsweeps=nsweeps, use_radar=use_radar, use_lidar=use_lidar, use_radar_filters=use_radar_filters,
        frame=frame, true_times=true_times, classes=classes, box_categories=box_categories,
        target_categories=tuple(target_categories), protocol=protocol, min_visibility=min_visibility,
        data_aug_conf=lambda: data_aug_conf, do_shuffle_cams=do_shuffle_cams, refcam_id=refcam_id,
        bev_rotate=bev_rotate, bev_scale=bev_scale, bev_shift=bev_shift, drop_cameras=drop_cameras, photometric=photometric,
        interpolation=interpolation, decode=decode, reader=reader, verify_reads=verify_reads,
        cache_dir=cache_dir, cache_gb=cache_gb, stores=store_options, requests=requests, nworkers=nworkers,
        retry_minutes=retry_minutes,
    )  # fmt: skip
    wanted = Wanted(cameras=use_cameras, get_tids=get_tids)
    config = DataConfig.of(options, device, wanted=wanted, labels=labels, rank=rank, world_size=world_size)
    return loaders_of(shards, val_shards, config, nworkers, nworkers_val)


def loaders_of(shards, val_shards, config, nworkers, nworkers_val):
    """(train_loader, val_loader) of a DataConfig; the other arguments, what is returned and errors are compile_data's."""
    train = val = None
    if shards is not None:
        train = _opened(shards, config, nworkers, "train")
        if not len(train):
            if config.order.order == "streams":
                raise InputError(
                    f"{len(train.reader.scene_names)} training scenes are fewer than the {config.order.batch_size} slots of a "
                    "batch, each of which plays scenes of its own; lower batch_size"
                )
            raise InputError(
                f"{len(train.windows)} training samples do not fill one batch of {config.order.batch_size}; lower batch_size"
            )
    if val_shards is not None:
        val = _opened(val_shards, config.of_evaluation, nworkers_val, "val")
        if not val.windows:
            raise InputError(
                f"the val shards hold no sample of {config.order.seqlen} keyframes; lower seqlen or give other val_shards"
            )
    for loader in (train, val) if config.order.rank == 0 else ():
        if loader is not None:
            check_categories(loader.reader, config.decode.categories, all_of_them=loader is train)
    return train, val


def _opened(shards, config, nworkers, split):
    """The Loader of shards, see compile_data, or of a Mixture of several sets."""
    if not isinstance(shards, Mixture):
        return make_loader(open_source(shards, config.source, split), config, nworkers)
    readers = [open_source(one, config.source, split) for one in shards.shard_sets]
    return make_mixed_loader(readers, shards.weights, shards.cams, config, nworkers)


def make_loader(reader, config, nworkers):
    """The Loader of a source and a DataConfig. Raises ValueError where the shards lack what is asked for."""
    return Loader(*_prepared(reader, config), config.stage, nworkers)


def make_mixed_loader(readers, weights, cams, config, nworkers):
    """The Loader of several sources, see train.data.sources.mixed. Raises ValueError where they do not go together.

    weights: of each. cams: of each the names of its cameras, or () for those of the DataConfig, or its rig's.
    """
    streams = next((reader for reader in readers if reader.is_stream), None)
    if streams is not None or config.order.order == "streams":
        raise InputError(
            "mixed sets are read here and there; leave out --order streams and shards that can only be streamed"
        )
    parts, augments = [], []
    for reader, own in zip(readers, cams, strict=True):
        reader.cams = own
        reader, order, decode, augment = _prepared(reader, config)
        parts.append(reader)
        augments.append(augment)
    _check_agree(parts, augments, config.decode)
    return Loader(MixedSource(parts, weights), order, decode, tuple(augments), config.stage, nworkers)


def _check_agree(parts, augments, decode):
    """Raise InputError, saying what must agree, for sets whose samples would not go into one batch."""
    names = [str(part.indexes[0].tar) for part in parts]
    first = augments[0]
    for name, part, augment in zip(names, parts, augments, strict=True):
        counts = {(len(one.cams), one.ncams) for one in (first, augment)}
        if decode.use_cameras and len(counts) > 1:
            raise InputError(
                f"{name}: {augment.ncams} of {len(augment.cams)} cameras, {names[0]}: {first.ncams} of {len(first.cams)}; what "
                'is mixed must have as many camera slots: choose them for each set, "cams": ["front", …], or give --ncams'
            )
        if decode.use_radar and part.rig.radar_fields != parts[0].rig.radar_fields:
            raise InputError(
                f"{name}: its radars have other fields than those of {names[0]}, which mixed sets must share"
            )


def _prepared(reader, config):
    """(source with its layers, OrderConfig, DecodeConfig, AugmentConfig of its rig), checked to go together."""
    reader = layered(reader, config)
    if reader.facts.get("annotated") is False:
        raise InputError(
            f"{reader.facts['version']} shards have no annotations, so nothing to train on or compare with"
        )
    if reader.is_stream and config.order.order == "streams":
        raise InputError(
            "order streams plays scenes side by side, which shards that are read from front to back cannot; give shards that "
            "can be read anywhere, or order shuffled"
        )
    _check_modalities(reader, config.decode)
    bent = [camera.name for camera in reader.rig.cameras if camera.distortion is not None]
    if bent and not config.lenses:
        raise InputError(
            f"the images of {bent[0]} keep their distortion, and this network takes cameras for pinholes; make the shards "
            "without --keep-distortion, or take a network whose Needs say lenses=True, as simple_bev's do"
        )
    augment = config.augment.of_source(reader)
    augment.check_reference(config.order.is_train)
    return reader, config.order, config.decode, augment


def layered(reader, config):
    """The source with the layers that a DataConfig reads. Raises ValueError: it lacks one, or its map ends inside the grid."""
    reader = with_layers(reader, config.decode.read_layers, config.source, open_source)
    if any(spec.has_maps for spec in config.decode.labels):
        extent, reach, what = reader.layer_options(MAP_LAYER)["extent_m"], config.decode.grid.reach_m, "--bounds"
        if config.order.is_train and draws_bev(config.augment):
            reach, what = most_reach_m(reach, config.augment), "--bounds, --bev_shift or --bev_scale"
        if reach > extent:
            raise InputError(
                f"the grid's corners lie {reach:.1f} m away, layer {MAP_LAYER} reaches {extent:g} m; lower {what}, or make "
                f"the layer anew with {spelled('preprocess.maps')} --extent {int(reach) + 1}"
            )
    return reader


def _check_modalities(reader, config):
    """Raise ValueError where the shards hold fewer sensors or sweeps than the DecodeConfig wants."""
    wanted = [("radar", radar_member(0))] * config.use_radar + [("lidar", lidar_member(0))] * config.use_lidar
    for name, member in wanted:
        tar = reader.lacks(member)
        if tar is not None:
            raise InputError(
                f"{tar}: holds no {name}; leave out use_{name}, take a network that does without {name}, "
                "or make shards from data that has it"
            )
    held = reader.facts["sweeps"]
    if wanted and config.nsweeps > held:
        raise InputError(
            f"nsweeps is {config.nsweeps}, as given or as the network needs, the shards hold {held}; "
            f"lower it, take another network, or make shards with SWEEPS={config.nsweeps}"
        )


def make_vox_util(grid, device="cpu"):
    """VoxUtil of a Grid, its constants made on the device rather than copied there."""
    return grid.vox_util().to(device)
