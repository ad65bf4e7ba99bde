"""Shards -> batches on the device."""

import dataclasses

import numpy as np
import torch

from common.cameras import CAMERAS
from common.record import lidar_member, radar_member
from common.vox import VoxUtil
from train.augment import INTERPOLATIONS
from train.data.batch import Batch
from train.data.device_stage import DeviceStage
from train.data.draws import AugmentConfig
from train.data.frame import FrameOptions
from train.data.loader import Loader
from train.data.sources import SourceConfig, open_source
from train.data.windows import windows
from train.errors import DataError

__all__ = ["Batch", "DataError", "Loader", "compile_data", "make_loader"]

PROTOCOLS = ("simple_bev", "min_visibility")


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
    protocol="simple_bev",
    min_visibility=1,
    target_categories=("vehicle",),
    interpolation="bilinear",
    seed=0,
    rank=0,
    world_size=1,
    device="cpu",
    reader="auto",
    verify_reads=False,
    cache_dir=None,
    cache_gb=100.0,
    store_options=None,
):
    """Loaders of training and evaluation batches; the arguments are Simple-BEV's, and ours after the star.

    Args:
        shards, val_shards: path or address of tars, a glob, range, folder, manifest, a list of them, or a ShardSet (see
            common.shard_set.find_shards); either may be None.
        data_aug_conf: the lineage's dict: final_dim (h, w), resize_lim, crop_offset, cams, ncams.
        centroid: (1, 3) scene centroid in cam0, metres. bounds: XMIN XMAX YMIN YMAX ZMIN ZMAX around it. res_3d: (Z, Y, X).
        bsz: samples a batch over all ranks. nworkers, nworkers_val: threads; 0 loads in the caller's.
        nsweeps: lidar and radar sweeps, keyframe included. seqlen, temporal_aug: see train.data.windows.
        refcam_id: slot of the reference camera in evaluation, and in training without do_shuffle_cams.
        protocol, min_visibility, target_categories: see train.data.frame.FrameOptions.
        reader, verify_reads, cache_dir, cache_gb, store_options: see train.data.sources.SourceConfig.
    Returns:
        (train_loader, val_loader); None where no shards were given. Batches are augmented and on `device`.
    Raises:
        ValueError (ShardError for a shard): what is wrong and the remedy.
    """
    grid = (centroid, bounds, res_3d)
    frame_options = make_frame_options(
        grid,
        nsweeps,
        use_radar,
        use_lidar,
        use_radar_filters,
        protocol,
        min_visibility,
        target_categories,
        decode_images=torch.device(device).type == "cpu",  # on CUDA, nvJPEG decodes
    )
    shared = dict(
        data_aug_conf=data_aug_conf,
        grid=grid,
        frame_options=frame_options,
        batch_size=bsz,
        seqlen=seqlen,
        refcam_id=refcam_id,
        get_tids=get_tids,
        interpolation=interpolation,
        seed=seed,
        rank=rank,
        world_size=world_size,
        device=device,
        source_config=SourceConfig(reader, verify_reads, cache_dir, cache_gb, store_options),
    )
    train = val = None
    if shards is not None:
        train = make_loader(
            shards,
            is_train=True,
            nworkers=nworkers,
            shuffle=shuffle,
            shuffle_cams=do_shuffle_cams,
            temporal_aug=temporal_aug,
            **shared,
        )
        if not len(train):
            raise ValueError(f"{len(train.windows)} training samples do not fill one batch of {bsz}; lower batch_size")
    if val_shards is not None:
        val = make_loader(
            val_shards,
            is_train=False,
            nworkers=nworkers_val,
            shuffle=False,
            shuffle_cams=False,
            temporal_aug=False,
            **shared,
        )
        if not val.windows:
            raise ValueError(
                f"the val shards hold no sample of {seqlen} keyframes; lower seqlen or give other val_shards"
            )
    return train, val


def _check_modalities(reader, options):
    """Raise ValueError where the shards hold fewer sensors or sweeps than the FrameOptions want."""
    wanted = [("radar", radar_member(0))] * options.use_radar + [("lidar", lidar_member(0))] * options.use_lidar
    for name, member in wanted:
        tar = reader.lacks(member)
        if tar is not None:
            raise ValueError(f"{tar}: holds no {name}; leave out use_{name}, or make shards from data that has it")
    held = reader.facts["sweeps"]
    if wanted and options.nsweeps > held:
        raise ValueError(
            f"nsweeps is {options.nsweeps}, the shards hold {held}; lower it or make shards with SWEEPS={options.nsweeps}"
        )


def make_vox_util(grid, device="cpu"):
    """VoxUtil of (centroid, bounds, (Z, Y, X))."""
    centroid, bounds, (Z, Y, X) = grid
    centroid = torch.as_tensor(np.asarray(centroid, np.float32).reshape(1, 3)).to(device)
    return VoxUtil(Z, Y, X, scene_centroid=centroid, bounds=bounds)


def make_frame_options(
    grid,
    nsweeps,
    use_radar,
    use_lidar,
    use_radar_filters,
    protocol,
    min_visibility,
    target_categories,
    decode_images=True,
):
    """Validated FrameOptions. Raises ValueError."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}; it is one of {', '.join(PROTOCOLS)}")
    if nsweeps < 1:
        raise ValueError(f"nsweeps is {nsweeps}; it counts the keyframe, so it is at least 1")
    vox_util = make_vox_util(grid)
    mem_T_cam = np.eye(4, dtype=np.float32)
    ends = vox_util.ref_to_mem(torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]))[0].numpy()
    mem_T_cam[:3, 3] = ends[0]
    mem_T_cam[[0, 1, 2], [0, 1, 2]] = ends[1] - ends[0]
    return FrameOptions(
        nsweeps=nsweeps,
        use_radar=use_radar,
        use_lidar=use_lidar,
        use_radar_filters=use_radar_filters,
        protocol=protocol,
        min_visibility=min_visibility,
        target_categories=tuple(target_categories),
        grid_zx=(grid[2][0], grid[2][2]),
        mem_T_cam=mem_T_cam,
        decode_images=decode_images,
    )


def make_loader(
    shards,
    *,
    data_aug_conf,
    grid,
    frame_options,
    batch_size,
    nworkers,
    is_train,
    shuffle,
    shuffle_cams,
    seqlen,
    temporal_aug,
    refcam_id,
    get_tids,
    interpolation,
    seed,
    rank,
    world_size,
    device,
    source_config=None,
):
    """One Loader over the shards; source_config: SourceConfig. Raises ValueError."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation {interpolation!r}; it is one of {', '.join(INTERPOLATIONS)}")
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} must be a positive multiple of the {world_size} devices")
    reader = open_source(shards, source_config, "train" if is_train else "val")
    if reader.facts.get("annotated") is False:
        raise ValueError(
            f"{reader.facts['version']} shards have no annotations, so nothing to train on or compare with"
        )
    _check_modalities(reader, frame_options)
    augment = AugmentConfig.from_dict(data_aug_conf)
    cameras = reader.facts.get("cameras")
    if cameras and augment.cams == CAMERAS:  # every camera was asked for, which is every camera there is
        augment = dataclasses.replace(augment, cams=tuple(cameras))
    cameras = min(augment.ncams, len(augment.cams)) if is_train else len(augment.cams)
    if not (is_train and shuffle_cams) and not 0 <= refcam_id < cameras:
        raise ValueError(f"refcam_id {refcam_id} is not one of the {cameras} camera slots")
    stage = DeviceStage(device, augment.final_hw, interpolation, make_vox_util(grid, device), get_tids)
    return Loader(
        reader,
        windows(reader.scene_of, seqlen, temporal_aug),
        frame_options,
        augment,
        stage,
        batch_size=batch_size,
        nworkers=nworkers,
        is_train=is_train,
        shuffle=shuffle,
        shuffle_cams=shuffle_cams,
        refcam_id=refcam_id,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
