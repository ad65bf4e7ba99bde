"""Members of one keyframe -> arrays, in a loader thread. Python here holds the interpreter lock: keep it short."""

from dataclasses import dataclass

import numpy as np

from common.geometry import rigid_inverse, transform_lrtlist
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    parse_sample,
)
from common.rig import rig_of
from train.data.batch import FrameFacts
from train.data.labels import chosen_boxes, draw_maps, footprints, masked_boxes
from train.data.points import lidar_points, radar_points


@dataclass
class Frame:
    """One keyframe on the CPU, all but its images; shapes as in Batch without B and T.

    sizes_hw: stored height and width of each camera's image. lidar, lidar_index, num_lidar0: see lidar_points. lrt, lrt_cam0:
    boxes (N,19) in the ego's and the reference camera's frame; visible (N,); instances: their tokens. maps: by label, what
    draw_maps gives. categories: of every box of the keyframe, drawn or not.
    """

    facts: FrameFacts
    token: str
    sizes_hw: list
    intrinsics: np.ndarray
    ego_T_cam: np.ndarray
    global_T_ego: np.ndarray
    lidar: np.ndarray | None
    lidar_index: np.ndarray | None
    num_lidar0: int
    radar: np.ndarray | None
    lrt: np.ndarray
    lrt_cam0: np.ndarray
    visible: np.ndarray
    instances: list
    maps: list
    categories: list


def decode_frame(members, key, cams, config):
    """Build a Frame.

    Args:
        members: dict from member name to bytes. key: of the keyframe. cams: camera names in slot order, the reference
            camera first. config: DecodeConfig.
    Raises:
        RecordError: a member is missing or damaged.
    """
    try:
        sample = parse_sample(members[SAMPLE])
        rows = _cameras(members, sample, cams)
        ego_T_cam = rows["ego_T_cam"].astype(np.float32)
        boxes = decode_boxes(members[BOXES_MEMBER], sample)
        categories = sample["boxes"]["category"]
        keep = chosen_boxes(boxes, categories, config.labels[0])
        lrt_cam0, maps = _label_maps(boxes, categories, ego_T_cam[0], config)
        rig, lidar = rig_of(sample["facts"], sample["schema"]), (None, None, 0)
        if config.use_lidar:
            lidar = lidar_points(members, sample, rig, config.nsweeps)
        shown = boxes[keep]
        return Frame(
            facts=_facts(key, sample, rig, shown, [categories[i] for i in keep]),
            token=sample["token"],
            sizes_hw=list(zip(rows["height"].tolist(), rows["width"].tolist(), strict=True)),
            intrinsics=rows["intrinsics"].astype(np.float32),
            ego_T_cam=ego_T_cam,
            global_T_ego=np.asarray(sample["global_T_ego"], np.float32),
            lidar=lidar[0],
            lidar_index=lidar[1],
            num_lidar0=lidar[2],
            radar=radar_points(members, rig, config.nsweeps, config.use_radar_filters) if config.use_radar else None,
            lrt=shown["ego_lrt"].astype(np.float32),
            lrt_cam0=lrt_cam0[keep],
            visible=(shown["visibility"] != 1).astype(np.float32),
            instances=[sample["boxes"]["instance"][i] for i in keep],
            maps=maps,
            categories=categories,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise RecordError(f"lacks {error}") from None


def _cameras(members, sample, cams):
    channels = [c["channel"] for c in sample["cameras"]]
    missing = [c for c in cams if c not in channels]
    if missing:
        raise RecordError(f"has no {missing[0]}; leave that camera out of cams")
    return decode_cameras(members[CAMERAS_MEMBER], sample)[[channels.index(c) for c in cams]]


def _label_maps(boxes, categories, ego_T_cam0, config):
    """All boxes in cam0, (N,19) float32, and the maps of each label."""
    lrt_cam0 = transform_lrtlist(rigid_inverse(ego_T_cam0), boxes["ego_lrt"].astype(np.float32))
    polygons = footprints(lrt_cam0, config.grid.mem_T_cam)
    maps = []
    for spec in config.labels:
        keep = chosen_boxes(boxes, categories, spec)
        maps.append(draw_maps(polygons[keep], ~masked_boxes(boxes[keep], spec), config.grid.zx))
    return lrt_cam0, maps


def _facts(key, sample, rig, boxes, categories):
    scene = sample["scene"]
    return FrameFacts(
        key=key,
        scene=scene["name"],
        description=scene["description"],
        location=sample["log"]["location"],
        timestamp_us=sample["timestamp_us"],
        conditions=sample["conditions"],
        rig=rig,
        categories=tuple(categories),
        visibility=boxes["visibility"],
        num_lidar_pts=boxes["num_lidar_pts"],
        num_radar_pts=boxes["num_radar_pts"],
        velocity=boxes["velocity"],
    )
