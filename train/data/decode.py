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
    decode_planes,
    decode_points,
    lidar_member,
    merge_planes,
    parse_sample,
    radar_member,
)
from train.data.batch import FrameFacts
from train.data.labels import chosen_boxes, draw_maps, footprints, masked_boxes

# The devkit's default radar filters (RadarPointCloud.default_filters): field -> values kept.
RADAR_FILTERS = {"invalid_state": (0,), "dyn_prop": tuple(range(7)), "ambig_state": (3,)}
NUM_RADAR_ROWS = len(RADAR_FIELDS) + 1  # and the time lag


@dataclass
class Frame:
    """One keyframe on the CPU, all but its images; shapes as in Batch without B and T.

    sizes_hw: stored height and width of each camera's image. lidar: (6, V) x, y, z, intensity, ring, lag. lrt, lrt_cam0:
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
        lidar, num_lidar0 = _lidar(members, sample, config)
        shown = boxes[keep]
        return Frame(
            facts=_facts(key, sample, shown, [categories[i] for i in keep]),
            token=sample["token"],
            sizes_hw=list(zip(rows["height"].tolist(), rows["width"].tolist(), strict=True)),
            intrinsics=rows["intrinsics"].astype(np.float32),
            ego_T_cam=ego_T_cam,
            global_T_ego=np.asarray(sample["global_T_ego"], np.float32),
            lidar=lidar,
            num_lidar0=num_lidar0,
            radar=_radar(members, config),
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


def _facts(key, sample, boxes, categories):
    scene = sample["scene"]
    return FrameFacts(
        key=key,
        scene=scene["name"],
        description=scene["description"],
        location=sample["log"]["location"],
        timestamp_us=sample["timestamp_us"],
        categories=tuple(categories),
        visibility=boxes["visibility"],
        num_lidar_pts=boxes["num_lidar_pts"],
        num_radar_pts=boxes["num_radar_pts"],
        velocity=boxes["velocity"],
    )


def _lidar(members, sample, config):
    if not config.use_lidar:
        return None, 0
    sweeps = sample["lidar"][: config.nsweeps]
    clouds = [decode_planes(members[m], m, len(LIDAR_FIELDS)) for m in map(lidar_member, range(len(sweeps)))]
    if not clouds:
        raise RecordError("has no lidar; train without --use_lidar")
    ends = np.cumsum([0] + [cloud.shape[2] for cloud in clouds]).tolist()
    out = np.empty((6, ends[-1]), np.float32)
    for cloud, sweep, start, end in zip(clouds, sweeps, ends[:-1], ends[1:], strict=True):
        merge_planes(cloud, out[:5, start:end])
        out[5, start:end] = sweep["lag_s"]
    return out, ends[1]


def _radar(members, config):
    """(19, R) float32, radar by radar and newest sweep first within each, as the lineage concatenates them."""
    if not config.use_radar:
        return None
    names = [m for k in range(config.nsweeps) if (m := radar_member(k)) in members]
    clouds = [decode_points(members[m], m, NUM_RADAR_ROWS + 1) for m in names]  # and the radar's number
    if not clouds:
        raise RecordError("has no radar; train without --use_radar")
    points = np.concatenate(clouds, axis=1)
    points = points[:, np.argsort(points[NUM_RADAR_ROWS], kind="stable")]  # row 19: the radar's place in RADARS
    points = points[:NUM_RADAR_ROWS]
    if config.use_radar_filters:
        keep = np.ones(points.shape[1], bool)
        for name, values in RADAR_FILTERS.items():
            keep &= np.isin(points[RADAR_FIELDS.index(name)], values)
        points = points[:, keep]
    return points
