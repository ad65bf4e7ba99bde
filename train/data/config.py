"""What each stage of the data path is told, built and checked once: order, augmentation, decoding, device stage."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    MOST_VISIBLE,
    SAMPLE,
    image_member,
    lidar_member,
    radar_member,
)
from common.vox import VoxUtil
from train.augment import INTERPOLATIONS

PROTOCOLS = ("simple_bev", "min_visibility")
LABEL_SOURCES = ("boxes",)
DECODERS = ("auto", "host", "device")


@dataclass(frozen=True)
class Grid:
    """The BEV grid: centroid (3,) metres in cam0, bounds XMIN XMAX YMIN YMAX ZMIN ZMAX around it, zyx cells."""

    centroid: tuple
    bounds: tuple
    zyx: tuple

    def __post_init__(self):
        for name, cast in (("centroid", float), ("bounds", float), ("zyx", int)):
            object.__setattr__(self, name, tuple(cast(v) for v in np.asarray(getattr(self, name)).reshape(-1)))

    @property
    def zx(self):
        """Rows and columns of the BEV maps."""
        return self.zyx[0], self.zyx[2]

    def vox_util(self):
        """VoxUtil of the grid; it follows its arguments to their devices."""
        return VoxUtil(*self.zyx, scene_centroid=np.array([self.centroid], np.float32), bounds=self.bounds)

    @cached_property
    def mem_T_cam(self):
        """(4, 4) float32, from cam0 to voxel coordinates."""
        ends = self.vox_util().ref_to_mem(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])).numpy()
        out = np.diag([*(ends[1] - ends[0]), 1.0]).astype(np.float32)
        out[:3, 3] = ends[0]
        return out


@dataclass(frozen=True)
class LabelSpec:
    """One pair of label maps, seg and valid.

    name: key in Batch.labels. source: "boxes". categories: prefixes of the categories drawn. protocol: "simple_bev" draws every
    box and masks those of visibility 1 out of loss and IoU; "min_visibility" leaves boxes under `min_visibility` out and
    masks nothing. A visibility of 0, not annotated, counts as seen.

    Raises ValueError, also for a `min_visibility` that the protocol does not look at or that leaves every box out.
    """

    name: str = "vehicle"
    source: str = "boxes"
    categories: tuple = ("vehicle",)
    protocol: str = "simple_bev"
    min_visibility: int = 1

    def __post_init__(self):
        object.__setattr__(self, "categories", tuple(self.categories))
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r}; it is one of {', '.join(PROTOCOLS)}")
        if not 0 <= self.min_visibility <= MOST_VISIBLE:
            raise ValueError(f"min_visibility {self.min_visibility}; it is 0 to {MOST_VISIBLE}, nuScenes' levels")
        if self.protocol == "simple_bev" and self.min_visibility > 1:
            raise ValueError(
                f"min_visibility {self.min_visibility} belongs to the protocol min_visibility, not simple_bev"
            )
        if self.source not in LABEL_SOURCES:
            raise ValueError(f"labels {self.name} from {self.source!r}; they come from {', '.join(LABEL_SOURCES)}")
        if not self.categories:
            raise ValueError(f"labels {self.name} name no category; give one, such as vehicle")


def labels_side_by_side(categories, protocol, min_visibility):
    """LabelSpecs under every protocol that papers use, for one pass: the chosen one first, then Simple-BEV's, then the filters
    of visibility 1 (none) and 2."""
    chosen = [(protocol, min_visibility), ("simple_bev", 1), ("min_visibility", 1), ("min_visibility", 2)]
    specs = {}
    for kind, least in chosen:
        name = kind if kind == "simple_bev" else f"visibility >= {least}"
        specs.setdefault(name, LabelSpec(name, "boxes", categories, kind, least))
    return tuple(specs.values())


@dataclass(frozen=True)
class DecodeConfig:
    """What to take from a keyframe. The first of `labels` is what the batch's label maps and boxes show.

    nsweeps: lidar and radar sweeps, keyframe included. use_radar_filters: the devkit's default filters. use_cameras: False
    reads no image; the cameras' geometry is always there, since the reference camera is the grid's frame.
    """

    grid: Grid
    nsweeps: int = 1
    use_radar: bool = True
    use_lidar: bool = True
    use_radar_filters: bool = False
    labels: tuple = (LabelSpec(),)
    use_cameras: bool = True

    def __post_init__(self):
        if self.nsweeps < 1:
            raise ValueError(f"nsweeps is {self.nsweeps}; it counts the keyframe, so it is at least 1")
        names = [spec.name for spec in self.labels]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"labels {names} must be at least one, of different names")

    @property
    def categories(self):
        """Prefixes of the categories that the labels draw, each once."""
        return tuple(dict.fromkeys(name for spec in self.labels for name in spec.categories))

    def members(self, cams):
        """Names of the members that these cameras' images and everything else come from."""
        names = [SAMPLE, CAMERAS_MEMBER, BOXES_MEMBER]
        if self.use_radar:
            names += [radar_member(k) for k in range(self.nsweeps)]
        if self.use_cameras:
            names += [image_member(c) for c in cams]
        if self.use_lidar:
            names += [lidar_member(k) for k in range(self.nsweeps)]
        return names


@dataclass(frozen=True)
class AugmentConfig:
    """Cameras, and where each image is resized and cropped; `from_dict` takes Simple-BEV's data_aug_conf.

    final_hw: size of the network's images. resize_lim: bounds of the random scale relative to final_hw. crop_offset: largest
    random shift of the crop in pixels. cams: cameras in slot order. ncams: how many of them a training sample uses.
    shuffle_cams: training draws the reference camera from slots 1 … S-1; else, and in evaluation, it is slot refcam_id.

    Without cams, ncams 0 and refcam_id -1 stand for what the rig of the shards has, which `of_rig` puts in.
    """

    final_hw: tuple
    resize_lim: tuple = (1.0, 1.0)
    crop_offset: int = 0
    cams: tuple = ()
    ncams: int = 0
    shuffle_cams: bool = True
    refcam_id: int = -1

    def __post_init__(self):
        if len(set(self.cams)) != len(self.cams):
            raise ValueError(f"cams {list(self.cams)} must be different cameras")
        if self.ncams < 0:
            raise ValueError(f"ncams is {self.ncams}; it must be at least 1, or 0 for all")
        if min(self.final_hw) < 1:
            raise ValueError(f"final_dim {tuple(self.final_hw)} must be positive")
        if not 0 < self.resize_lim[0] <= self.resize_lim[1]:
            raise ValueError(f"resize_lim {list(self.resize_lim)} must be two positive numbers in order")

    @classmethod
    def from_dict(cls, conf, **chosen):
        """From the lineage's dict; `chosen` are further fields. Raises ValueError for a missing or unknown entry."""
        known = {"crop_offset", "resize_lim", "resize_scale", "final_dim", "H", "W", "cams", "ncams"}
        if set(conf) - known or "final_dim" not in conf:
            raise ValueError(f"data_aug_conf needs final_dim and knows {sorted(known)}, but has {sorted(conf)}")
        limits = conf.get("resize_lim")
        if limits is None:
            limits = [conf.get("resize_scale", 1.0)] * 2
        return cls(
            tuple(int(n) for n in conf["final_dim"]),
            tuple(limits),
            int(conf.get("crop_offset", 0)),
            tuple(conf.get("cams", ())),
            int(conf.get("ncams", 0)),
            **chosen,
        )

    def of_rig(self, rig):
        """With the cameras, their number and the reference slot of a Rig wherever none was chosen.

        Raises ValueError for a camera that the rig does not have.
        """
        names = rig.camera_names
        cams = tuple(self.cams or names)
        unknown = [c for c in cams if c not in names]
        if unknown:
            raise ValueError(f"cams: the shards have no camera {unknown[0]}; they have {', '.join(names)}")
        if self.ncams > len(cams):
            raise ValueError(f"ncams is {self.ncams}, but there are {len(cams)} cameras; lower it, or give 0 for all")
        reference = self.refcam_id
        if reference < 0:
            own = names[rig.reference_slot]
            reference = cams.index(own) if own in cams else 0
        return replace(self, cams=cams, ncams=self.ncams or len(cams), refcam_id=reference)

    def check_reference(self, is_train):
        """Raise ValueError where refcam_id is used and is no slot."""
        slots = min(self.ncams, len(self.cams)) if is_train else len(self.cams)
        if not (is_train and self.shuffle_cams) and not 0 <= self.refcam_id < slots:
            raise ValueError(f"refcam_id {self.refcam_id} is not one of the {slots} camera slots")


@dataclass(frozen=True)
class OrderConfig:
    """Which samples make a batch. With `seed` and the epoch this decides every sample and draw.

    batch_size: samples over all ranks. is_train: augment, and drop the last partial batch; else every sample once.
    seqlen, temporal_aug: see train.data.windows.
    """

    batch_size: int
    is_train: bool = True
    shuffle: bool = True
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    seqlen: int = 1
    temporal_aug: bool = False

    def __post_init__(self):
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a positive multiple of the {self.world_size} devices"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size}")


@dataclass(frozen=True)
class StageConfig:
    """What becomes of decoded frames, and where.

    device: where batches live. final_hw, interpolation: as in train.augment.crop_and_resize. get_tids: number tracks.
    decode: who decodes JPEGs: "host", the loader's threads; "device", the stage, on CUDA by nvJPEG; "auto" is the host.
    """

    final_hw: tuple
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    interpolation: str = "bilinear"
    get_tids: bool = False
    decode: str = "auto"

    def __post_init__(self):
        object.__setattr__(self, "device", torch.device(self.device))
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r}; it is one of {', '.join(INTERPOLATIONS)}")
        if self.decode not in DECODERS:
            raise ValueError(f"decode {self.decode!r}; it is one of {', '.join(DECODERS)}")

    @property
    def on_cuda(self):
        return self.device.type == "cuda"


@dataclass(frozen=True)
class DataConfig:
    """The whole data path of an experiment: order, decode, augment, stage; source: train.data.sources.SourceConfig."""

    order: OrderConfig
    decode: DecodeConfig
    augment: AugmentConfig
    stage: StageConfig
    source: object

    @property
    def of_evaluation(self):
        """The same in the order of evaluation: every window of consecutive keyframes once, as they lie in the shards."""
        return replace(self, order=replace(self.order, is_train=False, shuffle=False, temporal_aug=False))
