"""What there is to draw of one sample, as plain NumPy: the only thing that the drawing functions see.

Frames: ego = the car at the LIDAR_TOP timestamp, x forward, y left, z up; cam = X right, Y down, Z forward; metres.
"""

from dataclasses import dataclass, replace

import numpy as np
import simplejpeg

from common.lens import lens_row
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    decode_points,
    image_member,
    lidar_member,
    parse_sample,
    radar_member,
)
from common.rig import Rig, rig_of
from common.rigid import rigid_inverse


@dataclass(frozen=True)
class Camera:
    """image (H,W,3) uint8 RGB; intrinsics (3,3), its pixels from cam; ego_T_cam (4,4).

    lens: (16,) row of common.lens; None for a pinhole.
    """

    name: str
    image: np.ndarray
    intrinsics: np.ndarray
    ego_T_cam: np.ndarray
    lens: np.ndarray | None = None


@dataclass(frozen=True)
class Boxes:
    """n boxes: lrt (n,19) lengths l, w, h and ego_T_box row by row; categories, n names.

    visibility (n,) int 1-4, 0 where not annotated; velocity (n,3) m/s in ego, NaN where unknown.
    """

    lrt: np.ndarray
    categories: tuple
    visibility: np.ndarray
    velocity: np.ndarray

    def __len__(self):
        return len(self.lrt)

    @property
    def ego_T_box(self):
        return self.lrt[:, 3:].reshape(-1, 4, 4)

    def corners(self):
        """(n, 8, 3) ego: the front face (+x) first, each face going round: upper left, upper right, lower right, lower left."""
        half = np.array([[1, 1, 1], [1, -1, 1], [1, -1, -1], [1, 1, -1]]) / 2
        unit = np.concatenate([half, half * [-1, 1, 1]])
        local = unit * self.lrt[:, None, :3]
        return local @ self.ego_T_box[:, :3, :3].transpose(0, 2, 1) + self.ego_T_box[:, None, :3, 3]


NO_BOXES = Boxes(np.zeros((0, 19)), (), np.zeros(0, int), np.zeros((0, 3)))


@dataclass(frozen=True)
class Maps:
    """BEV maps (Z, X) over low_xz_m to high_xz_m of the grid's frame, ref, row 0 furthest back. ego_T_ref may scale.

    truth in {0,1}; valid 0 where a cell is ignored by loss and IoU; prediction a probability. Each may be None. Of several
    classes they are (K, Z, X), and class_names has their names.
    """

    low_xz_m: tuple
    high_xz_m: tuple
    ego_T_ref: np.ndarray
    truth: np.ndarray | None = None
    valid: np.ndarray | None = None
    prediction: np.ndarray | None = None
    class_names: tuple = ()

    @property
    def there(self):
        """(Z, X) bool: where the truth is of any class."""
        return self._planes(self.truth).max(0) > 0.5

    @property
    def ignored(self):
        """(Z, X) bool: cells that loss and IoU ignore, of any class."""
        return self._planes(self.valid).min(0) <= 0

    def by_class(self):
        """(truth, valid, prediction) of each class, each (Z, X); prediction may be None."""
        planes = [self._planes(m) for m in (self.truth, self.valid)]
        predictions = [None] * len(planes[0]) if self.prediction is None else self._planes(self.prediction)
        return list(zip(*planes, predictions, strict=True))

    @staticmethod
    def _planes(layer):
        return layer if layer.ndim == 3 else layer[None]


@dataclass(frozen=True)
class View:
    """One sample. lidar (4,V): x, y, z in ego and intensity; radar (5,R): x, y, z, vx, vy in ego; None where there is none.

    timestamp_us: UTC; None where not known. rig: of the set that it is from; None where not known.
    """

    key: str
    token: str
    scene: str
    place: str
    description: str
    timestamp_us: int | None
    cameras: tuple
    boxes: Boxes
    lidar: np.ndarray | None
    radar: np.ndarray | None
    maps: Maps | None = None
    rig: Rig | None = None

    @property
    def camera_names(self):
        """Names of the rig's cameras in its order, whether they are there or not."""
        return self.rig.camera_names if self.rig else ()

    def with_maps(self, maps):
        return replace(self, maps=maps)


def view_of_record(key, members, width=None):
    """The View of a record: nothing cropped, mirrored or left out.

    Cameras are placed with the pose that the car had when each took its picture, so that boxes lie on what they are of.

    Args:
        members: dict from member name to bytes; images and point clouds may be missing.
        width: decode images no larger than needed for this many columns; None for their full size.
    Raises:
        RecordError: a member is damaged or its neighbours do not fit it.
    """
    try:
        sample = parse_sample(members[SAMPLE])
        rows = decode_cameras(members[CAMERAS_MEMBER], sample)
        global_T_ego = np.asarray(sample["global_T_ego"], float)
        names, rig = [camera["channel"] for camera in sample["cameras"]], rig_of(sample["facts"], sample["schema"])
        lenses = {c.name: None if c.distortion is None else lens_row(c.distortion) for c in rig.cameras}
        cameras = [
            replace(_camera(name, members[image_member(name)], row, global_T_ego, width), lens=lenses[name])
            for name, row in zip(names, rows, strict=True)
            if image_member(name) in members
        ]
        return View(
            key=key,
            token=sample["token"],
            scene=sample["scene"]["name"],
            place=str(sample["log"].get("location", "")),
            description=str(sample["scene"].get("description", "")),
            timestamp_us=sample["timestamp_us"],
            cameras=tuple(cameras),
            boxes=_boxes(members, sample, global_T_ego),
            lidar=_lidar(members, rig),
            radar=_radar(members, rig),
            rig=rig,
        )
    except (KeyError, IndexError) as error:
        raise RecordError(f"{SAMPLE}: does not fit the other members ({error})") from None


def _camera(name, data, row, global_T_ego, width):
    smaller = {"min_width": width} if width else {}
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", **smaller)
    except ValueError as error:
        raise RecordError(f"{image_member(name)}: does not decode ({error})") from None
    scale = np.array([image.shape[1] / row["width"], image.shape[0] / row["height"], 1.0])
    moved = rigid_inverse(global_T_ego) @ row["global_T_ego"]
    return Camera(name, image, row["intrinsics"] * scale[:, None], moved @ row["ego_T_cam"])


def _boxes(members, sample, global_T_ego):
    rows = decode_boxes(members[BOXES_MEMBER], sample) if BOXES_MEMBER in members else ()
    if not len(rows):
        return NO_BOXES
    categories = tuple(sample["boxes"]["category"])
    return Boxes(rows["ego_lrt"], categories, rows["visibility"], rows["velocity"] @ global_T_ego[:3, :3])


def _lidar(members, rig):
    if lidar_member(0) not in members:
        return None
    return decode_points(members[lidar_member(0)], lidar_member(0), rig.lidar_planes)[:4]


def _radar(members, rig):
    """x, y, z, vx, vy; velocities are stored in each radar's frame and turned by its yaw, and are 0 where that is not known."""
    if radar_member(0) not in members:
        return None
    points = decode_points(members[radar_member(0)], radar_member(0), rig.radar_planes)
    fields = [field.name for field in rig.radar_fields]
    if not {"vx_comp", "vy_comp"} <= set(fields):
        return np.concatenate([points[:3], np.zeros_like(points[:2])])
    yaws = np.array([np.nan if radar.yaw_deg is None else np.deg2rad(radar.yaw_deg) for radar in rig.radars])
    yaw = yaws[points[-1].astype(int)]
    known = np.isfinite(yaw)
    yaw, vx, vy = (np.where(known, v, 0.0) for v in (yaw, *(points[fields.index(n)] for n in ("vx_comp", "vy_comp"))))
    turned = np.stack([vx * np.cos(yaw) - vy * np.sin(yaw), vx * np.sin(yaw) + vy * np.cos(yaw)])
    return np.concatenate([points[:3], turned])


def view_of_batch(batch, sample, maps=None, boxes=None):
    """The View of one sample of a Batch, its first time step: what a network gets, augmentation included.

    boxes: Boxes in ego to draw instead of the batch's, which are those of its labels alone.
    """
    facts = batch.facts[sample][0]
    return View(
        key=facts.key,
        token=batch.tokens[sample][0],
        scene=facts.scene,
        place=facts.location,
        description=facts.description,
        timestamp_us=facts.timestamp_us,
        cameras=() if batch.imgs is None else _cameras_of_batch(batch, sample),
        boxes=_boxes_of_batch(batch, sample) if boxes is None else boxes,
        lidar=_points(batch.lidar0_data, batch.lidar0_extra, batch.num_lidar0, sample),
        radar=_points(batch.radar_data, None, batch.num_radar, sample),
        maps=maps,
        rig=facts.rig,
    )


def _cameras_of_batch(batch, sample):
    ego_T_cam = np.tile(np.eye(4), (len(batch.cams[sample]), 1, 1))
    ego_T_cam[:, :3, :3], ego_T_cam[:, :3, 3] = array_of(batch.rots[sample, 0]), array_of(batch.trans[sample, 0])
    if batch.true_times:
        ego_T_cam = array_of(batch.ego_T_camego[sample, 0]) @ ego_T_cam
    images = (array_of(batch.imgs[sample, 0]).transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    intrinsics = array_of(batch.intrins[sample, 0])[:, :3, :3]
    lenses = [None] * len(images) if batch.lenses is None else array_of(batch.lenses[sample, 0])
    cameras = zip(batch.cams[sample], np.ascontiguousarray(images), intrinsics, ego_T_cam, lenses, strict=True)
    return tuple(Camera(*camera) for camera in cameras)


def _boxes_of_batch(batch, sample):
    facts, count = batch.facts[sample][0], int(batch.num_boxes[sample, 0])
    lrt = array_of(batch.lrtlist[sample, 0, :count]).astype(float)
    global_T_ego = array_of(batch.egopose[sample, 0]).astype(float)
    velocity = np.asarray(facts.velocity) @ global_T_ego[:3, :3]
    return Boxes(lrt, facts.categories, np.asarray(facts.visibility), velocity)


def _points(xyz, extra, counts, sample):
    """(4, V) lidar, or (5, R) radar without velocities, whose radars a batch does not name."""
    if xyz is None:
        return None
    count = int(counts[sample, 0])
    points = array_of(xyz[sample, 0, :3, :count])
    rest = np.zeros((2, count)) if extra is None else array_of(extra[sample, 0, :1, :count])
    return np.concatenate([points, rest])


def maps_of_batch(batch, sample, grid, prediction=None):
    """Maps of one sample of a Batch, its first time step.

    grid: VoxUtil of the maps. prediction: (Z, X) probabilities of this sample, of several classes (K, Z, X), or None.
    """
    several = batch.seg_bev.shape[2] > 1
    which = (sample, 0) if several else (sample, 0, 0)
    return Maps(
        low_xz_m=tuple(grid.low_m[[0, 2]].tolist()),
        high_xz_m=tuple(grid.high_m[[0, 2]].tolist()),
        ego_T_ref=np.linalg.inv(array_of(batch.ref_T_ego[sample, 0]).astype(float)),
        truth=array_of(batch.seg_bev[which]),
        valid=array_of(batch.valid_bev[which]),
        prediction=None if prediction is None else array_of(prediction),
        class_names=tuple(batch.class_names) if several else (),
    )


def array_of(values):
    """A tensor on any device, or an array, as a NumPy array; half precision becomes float32."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
