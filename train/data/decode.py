"""Members of one keyframe -> arrays, in a loader thread. Python here holds the interpreter lock: keep it short."""

from dataclasses import dataclass, field

import numpy as np

from common.geometry import transform_lrtlist
from common.lens import lens_row
from common.map_shapes import MAP_LAYER, decode_shapes
from common.map_shapes import MEMBERS as MAP_MEMBERS
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    decode_member,
    parse_sample,
)
from common.rig import rig_of
from train.data.batch import FrameFacts
from train.data.frames import ego_T_camegos
from train.data.labels import chosen_boxes, classes_of, footprints, label_maps
from train.data.maps import map_masks
from train.data.points import lidar_points, radar_points


@dataclass
class Boxes:
    """n boxes of a keyframe; shapes as in Batch.

    lrt, lrt_ref: (n,19) in the ego's and the grid's frame; visible (n,); classes (n,); velocity (n,3); instances: tokens.
    """

    lrt: np.ndarray
    lrt_ref: np.ndarray
    visible: np.ndarray
    classes: np.ndarray
    velocity: np.ndarray
    instances: list


@dataclass
class Frame:
    """One keyframe on the CPU, all but its images; shapes as in Batch without B and T.

    sizes_hw: stored height and width of each camera's image. resize_wh, crop_ltrb: what is done to each, (S,2) and (S,4); set
    by who loads it. global_T_ego: float64. lidar, lidar_index, num_lidar0: see lidar_points. maps: by label, LabelMaps.
    box_numbers: of `boxes`. drawn: (n,19) boxes in ref that the first label's maps are of, where these are others than
    `boxes`; else None. lenses: (S,16) rows of common.lens; None where
    all are pinholes. categories: of every box of the keyframe, drawn or not. layers: see _layers.
    """

    facts: FrameFacts
    token: str
    sizes_hw: list
    intrinsics: np.ndarray
    ego_T_cam: np.ndarray
    ego_T_camego: np.ndarray
    global_T_ego: np.ndarray
    ref_T_ego: np.ndarray
    lidar: np.ndarray | None
    lidar_index: np.ndarray | None
    num_lidar0: int
    radar: np.ndarray | None
    boxes: Boxes
    maps: list
    box_numbers: np.ndarray
    drawn: np.ndarray | None
    categories: list
    layers: dict = field(default_factory=dict)
    resize_wh: np.ndarray | None = None
    crop_ltrb: np.ndarray | None = None
    lenses: np.ndarray | None = None


def decode_frame(members, key, cams, config, moved_T_ref=None):
    """Build a Frame.

    Args:
        members: dict from member name to bytes. key: of the keyframe. cams: camera names in slot order, the reference
            camera first. config: DecodeConfig. moved_T_ref: (4,4) of an augmented grid, whose frame ref then is; see
            train.data.bev_augmentation.
    Raises:
        RecordError: a member is missing or damaged.
    """
    try:
        sample = parse_sample(members[SAMPLE])
        rows = _cameras(members, sample, cams)
        ego_T_cam = rows["ego_T_cam"].astype(np.float32)
        global_T_ego = np.asarray(sample["global_T_ego"], np.float64)
        ref_T_ego = config.grid.ref_T_ego(ego_T_cam[0])
        if moved_T_ref is not None:
            ref_T_ego = (moved_T_ref @ ref_T_ego).astype(np.float32)
        rig, lidar = rig_of(sample["facts"], sample["schema"]), (None, None, 0)
        if config.use_lidar:
            lidar = lidar_points(members, sample, rig, config.nsweeps)
        return Frame(
            token=sample["token"],
            sizes_hw=list(zip(rows["height"].tolist(), rows["width"].tolist(), strict=True)),
            intrinsics=rows["intrinsics"].astype(np.float32),
            ego_T_cam=ego_T_cam,
            ego_T_camego=ego_T_camegos(global_T_ego, rows["global_T_ego"]),
            global_T_ego=global_T_ego,
            ref_T_ego=ref_T_ego,
            lenses=_lenses(rig, cams),
            lidar=lidar[0],
            lidar_index=lidar[1],
            num_lidar0=lidar[2],
            radar=radar_points(members, rig, config.nsweeps, config.use_radar_filters) if config.use_radar else None,
            layers=_layers(members, config),
            **_boxes_and_maps(members, key, sample, ref_T_ego, config),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise RecordError(f"its member {error} is missing") from None


def _cameras(members, sample, cams):
    channels = [c["channel"] for c in sample["cameras"]]
    missing = [c for c in cams if c not in channels]
    if missing:
        raise RecordError(f"has no {missing[0]}; leave that camera out of cams")
    return decode_cameras(members[CAMERAS_MEMBER], sample)[[channels.index(c) for c in cams]]


def _lenses(rig, cams):
    """(S,16) float32 of the cameras, None where all are pinholes."""
    lenses = {camera.name: camera.distortion for camera in rig.cameras}
    if all(lenses[name] is None for name in cams):
        return None
    return np.stack([lens_row(lenses[name]) for name in cams])


def _boxes_and_maps(members, key, sample, ref_T_ego, config):
    """The fields of a Frame that come from its boxes."""
    rows, names = decode_boxes(members[BOXES_MEMBER], sample), sample["boxes"]["category"]
    label = config.labels[0]
    lrt_ref = transform_lrtlist(ref_T_ego, rows["ego_lrt"].astype(np.float32))
    polygons = footprints(lrt_ref, config.grid.mem_T_ref)
    masks = _class_masks(members, ref_T_ego, config)
    maps = [label_maps(polygons, rows, names, spec, config.grid.zx, masks) for spec in config.labels]
    drawn = chosen_boxes(rows, names, label)
    keep, numbers = drawn, maps[0].numbers
    if config.box_categories:
        keep = [i for i, name in enumerate(names) if name.startswith(config.box_categories)]
        place = {i: n + 1 for n, i in enumerate(keep)}
        numbers = np.array([0, *(place.get(i, 0) for i in drawn)], np.int16)[numbers]
    return {
        "facts": _facts(key, sample, rows[keep], keep),
        "boxes": _boxes(rows[keep], lrt_ref[keep], sample, keep, ref_T_ego, label),
        "maps": maps,
        "box_numbers": numbers,
        "drawn": lrt_ref[drawn] if config.box_categories else None,
        "categories": names,
    }


def _class_masks(members, ref_T_ego, config):
    """(K,Z,X) uint8 of the classes' map layers; None where they have none. All labels have the same classes.

    The map is level, and taken to lie in the ego frame's own plane, as the devkit's masks are.
    """
    if not config.labels[0].has_maps:
        return None
    groups = [spec.maps for spec in config.labels[0].classes]
    there = {name: members[MAP_LAYER, name] for name in MAP_MEMBERS if (MAP_LAYER, name) in members}
    if not there:  # of a layer that says that it may lack keyframes
        return np.zeros((len(groups), *config.grid.zx), np.uint8)
    shapes = decode_shapes(there)
    return map_masks(shapes, groups, config.grid.mem_T_ref @ ref_T_ego, config.grid.zx)


def _layers(members, config):
    """name -> {member: array, or bytes of a member that is no array} of the layers that a network asks for."""
    out = {}
    for name, wanted in config.layers:
        there = [member for member in wanted if (name, member) in members]
        out[name] = {member: decode_member(members[name, member], member) for member in there}
    return out


def _boxes(rows, lrt_ref, sample, keep, ref_T_ego, label):
    """Boxes: the rows `keep` of a keyframe."""
    ref_T_global = ref_T_ego[:3, :3].astype(np.float64) @ np.asarray(sample["global_T_ego"], np.float64)[:3, :3].T
    return Boxes(
        lrt=rows["ego_lrt"].astype(np.float32),
        lrt_ref=lrt_ref,
        visible=(rows["visibility"] != 1).astype(np.float32),
        classes=classes_of([sample["boxes"]["category"][i] for i in keep], label),
        velocity=(rows["velocity"] @ ref_T_global.T).astype(np.float32),
        instances=[sample["boxes"]["instance"][i] for i in keep],
    )


def _facts(key, sample, rows, keep):
    """FrameFacts: the rows `keep` of the keyframe's boxes. Arrays are copies: in a row of bytes they would lie askew."""
    scene, boxes = sample["scene"], sample["boxes"]
    return FrameFacts(
        key=key,
        scene=scene["name"],
        description=scene["description"],
        location=sample["log"]["location"],
        timestamp_us=sample["timestamp_us"],
        global_T_ego=np.array(sample["global_T_ego"], np.float64),
        conditions=sample["conditions"],
        rig=rig_of(sample["facts"], sample["schema"]),
        categories=tuple(boxes["category"][i] for i in keep),
        instances=tuple(boxes["instance"][i] for i in keep),
        attributes=tuple(tuple(boxes["attributes"][i]) for i in keep),
        **{name: rows[name].copy() for name in ("visibility", "num_lidar_pts", "num_radar_pts", "velocity")},
    )
