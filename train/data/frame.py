"""Members of one keyframe -> arrays, in a loader thread. Python here holds the interpreter lock: keep it short."""

from dataclasses import dataclass

import numpy as np
import simplejpeg

from common.cameras import LIDAR_FIELDS, RADAR_FIELDS
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    decode_planes,
    decode_points,
    image_member,
    lidar_member,
    merge_planes,
    parse_sample,
    radar_member,
)
from train.data.polygons import cam_T_ego, draw_maps, footprints

# The devkit's default radar filters (RadarPointCloud.default_filters): field -> values kept.
RADAR_FILTERS = {"invalid_state": (0,), "dyn_prop": tuple(range(7)), "ambig_state": (3,)}
NUM_RADAR_ROWS = len(RADAR_FIELDS) + 1  # and the time lag


@dataclass(frozen=True)
class FrameOptions:
    """What to take from a keyframe.

    protocol: "simple_bev" masks boxes of visibility 1 out of loss and IoU; "min_visibility" leaves boxes under
    `min_visibility` out of the labels and masks nothing. target_categories: prefixes. decode_images: False leaves the
    encoded bytes for the device. grid_zx: BEV rows and columns. mem_T_cam: (4, 4) float32 of the BEV grid.
    """

    nsweeps: int
    use_radar: bool
    use_lidar: bool
    use_radar_filters: bool
    protocol: str
    min_visibility: int
    target_categories: tuple
    grid_zx: tuple
    mem_T_cam: np.ndarray
    decode_images: bool = True

    def members(self, cams):
        """Member names that these options and cameras need."""
        names = [SAMPLE, CAMERAS_MEMBER, BOXES_MEMBER]
        if self.use_radar:
            names += [radar_member(k) for k in range(self.nsweeps)]
        names += [image_member(c) for c in cams]
        if self.use_lidar:
            names += [lidar_member(k) for k in range(self.nsweeps)]
        return names


@dataclass
class Frame:
    """One keyframe on the CPU; shapes as in Batch without B and T.

    images: (S,H,W,3) uint8, or S images where sizes differ, or S encoded JPEGs; buffers: the arrays they lie in. lidar: (6, V)
    x, y, z, intensity, ring, lag. numbers, valid: label maps of draw_maps. boxes: lrt (N,19), visible (N,), instance tokens.
    """

    token: str
    scene: str
    images: object
    buffers: list
    stored_hw: list
    intrinsics: np.ndarray
    ego_T_cam: np.ndarray
    global_T_ego: np.ndarray
    lidar: np.ndarray | None
    num_lidar0: int
    radar: np.ndarray | None
    lrt: np.ndarray
    visible: np.ndarray
    instances: list
    numbers: np.ndarray
    valid: np.ndarray


def decode_frame(members, cams, options, take=np.empty):
    """Build a Frame.

    Args:
        members: dict from member name to bytes. cams: camera names in slot order, the reference camera first.
        take: gives arrays of a shape and dtype to decode into.
    Raises:
        RecordError: a member is missing or damaged.
    """
    try:
        sample = parse_sample(members[SAMPLE])
        channels = [c["channel"] for c in sample["cameras"]]
        rows = decode_cameras(members[CAMERAS_MEMBER], sample)
        missing = [c for c in cams if c not in channels]
        if missing:
            raise RecordError(f"has no {missing[0]}; leave that camera out of cams")
        rows = rows[[channels.index(c) for c in cams]]
        boxes = decode_boxes(members[BOXES_MEMBER], sample)
        ego_T_cam = rows["ego_T_cam"].astype(np.float32)
        keep = _targets(boxes, sample["boxes"]["category"], options)
        boxes = boxes[keep]
        visible = (boxes["visibility"] != 1) | (options.protocol != "simple_bev")
        lrt = boxes["ego_lrt"].astype(np.float32)
        numbers, valid = _label_maps(lrt, visible, ego_T_cam[0], options)
        lidar, num_lidar0 = _lidar(members, sample, options)
        images, buffers = _images(members, cams, rows, options, take)
        return Frame(
            token=sample["token"],
            scene=sample["scene"]["name"],
            images=images,
            buffers=buffers,
            stored_hw=list(zip(rows["height"].tolist(), rows["width"].tolist(), strict=True)),
            intrinsics=rows["intrinsics"].astype(np.float32),
            ego_T_cam=ego_T_cam,
            global_T_ego=np.asarray(sample["global_T_ego"], np.float32),
            lidar=lidar,
            num_lidar0=num_lidar0,
            radar=_radar(members, options),
            lrt=lrt,
            visible=(boxes["visibility"] != 1).astype(np.float32),
            instances=[sample["boxes"]["instance"][i] for i in keep],
            numbers=numbers,
            valid=valid,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise RecordError(f"lacks {error}") from None


def _targets(boxes, categories, options):
    """Positions of the boxes that are labels."""
    keep = [i for i, name in enumerate(categories) if name.startswith(options.target_categories)]
    if options.protocol == "min_visibility":
        seen = boxes["visibility"]
        keep = [i for i in keep if seen[i] >= options.min_visibility or seen[i] == 0]  # 0: not annotated
    return keep


def _label_maps(lrt, visible, ego_T_cam0, options):
    if not len(lrt):
        return draw_maps([], [], options.grid_zx)
    cam0_T_ego = cam_T_ego(ego_T_cam0)
    lrt_cam = lrt.copy()
    lrt_cam[:, 3:] = (cam0_T_ego @ lrt[:, 3:].reshape(-1, 4, 4)).reshape(-1, 16)
    return draw_maps(footprints(lrt_cam, options.mem_T_cam), visible, options.grid_zx)


def _images(members, cams, rows, options, take):
    """Images, as Frame has them, and the arrays that were taken for them: one, or one a camera where sizes differ."""
    encoded = [members[image_member(c)] for c in cams]
    if not options.decode_images:
        return encoded, []
    sizes = list(zip(rows["height"].tolist(), rows["width"].tolist(), strict=True))
    for data, camera, size in zip(encoded, cams, sizes, strict=True):
        check_image_size(data, camera, size)
    if len(set(sizes)) == 1:
        images = take((len(cams), *sizes[0], 3), np.uint8)
        buffers = [images]
    else:
        images = buffers = [take((*size, 3), np.uint8) for size in sizes]
    for data, camera, size, image in zip(encoded, cams, sizes, images, strict=True):
        decode_image(data, camera, size, image)
    return images, buffers


def decode_image(data, camera, stored_hw, buffer=None):
    """(H,W,3) uint8 of a JPEG, in `buffer` if given. Raises RecordError if it is damaged or of another size."""
    check_image_size(data, camera, stored_hw)
    try:
        return simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except ValueError as error:
        raise RecordError(f"{image_member(camera)}: does not decode ({error})") from None


def check_image_size(data, camera, stored_hw):
    """Raise RecordError for a JPEG whose header claims another size: it decides how much memory decoding takes."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise RecordError(f"{image_member(camera)}: not a JPEG image ({error})") from None
    if (height, width) != tuple(stored_hw):
        raise RecordError(f"{image_member(camera)}: {height}x{width} pixels, {CAMERAS_MEMBER} says otherwise")


def _lidar(members, sample, options):
    if not options.use_lidar:
        return None, 0
    sweeps = sample["lidar"][: options.nsweeps]
    clouds = [decode_planes(members[m], m, len(LIDAR_FIELDS)) for m in map(lidar_member, range(len(sweeps)))]
    if not clouds:
        raise RecordError("has no lidar; train without --use_lidar")
    ends = np.cumsum([0] + [cloud.shape[2] for cloud in clouds]).tolist()
    out = np.empty((6, ends[-1]), np.float32)
    for cloud, sweep, start, end in zip(clouds, sweeps, ends[:-1], ends[1:], strict=True):
        merge_planes(cloud, out[:5, start:end])
        out[5, start:end] = sweep["lag_s"]
    return out, ends[1]


def _radar(members, options):
    """(19, R) float32, radar by radar and newest sweep first within each, as the lineage concatenates them."""
    if not options.use_radar:
        return None
    names = [m for k in range(options.nsweeps) if (m := radar_member(k)) in members]
    clouds = [decode_points(members[m], m, NUM_RADAR_ROWS + 1) for m in names]  # and the radar's number
    if not clouds:
        raise RecordError("has no radar; train without --use_radar")
    points = np.concatenate(clouds, axis=1)
    points = points[:, np.argsort(points[NUM_RADAR_ROWS], kind="stable")]  # row 19: the radar's place in RADARS
    points = points[:NUM_RADAR_ROWS]
    if options.use_radar_filters:
        keep = np.ones(points.shape[1], bool)
        for name, values in RADAR_FILTERS.items():
            keep &= np.isin(points[RADAR_FIELDS.index(name)], values)
        points = points[:, keep]
    return points
