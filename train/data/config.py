"""What each stage of the data path is told, built and checked once: order, augmentation, decoding, device stage."""

from dataclasses import dataclass, field, fields, replace

import torch

from common.errors import InputError
from common.map_shapes import MAP_LAYER
from common.map_shapes import MEMBERS as MAP_MEMBERS
from common.record import BOXES_MEMBER, CAMERAS_MEMBER, SAMPLE, image_member, lidar_member, radar_member
from train.augment import INTERPOLATIONS
from train.data.grid import Grid
from train.data.label_spec import LabelSpec
from train.data.sources import SourceConfig

DECODERS = ("auto", "host", "device")
ORDERS = ("shuffled", "streams")
CROPS = ("", "bottom", "centre")
# What training alone does to a sample beyond Simple-BEV's draws, and the most of each.
MOST_AUGMENTED = {
    "bev_rotate": 180.0,
    "bev_scale": 0.5,
    "bev_shift": 1000.0,
    "drop_cameras": 1.0,
    "photometric": 1.0,
}


@dataclass(frozen=True)
class DecodeConfig:
    """What to take from a keyframe. The first of `labels` is what the batch's label maps show.

    nsweeps: lidar and radar sweeps, keyframe included. use_radar_filters: the devkit's default filters. use_cameras: False
    reads no image; the cameras' geometry is always there, since the reference camera may be the grid's frame.
    box_categories: prefixes of the categories whose annotated boxes the batch holds; without them those that the labels draw.
    layers: (name, names of members) of each layer that the batch holds. past_points: False leaves lidar and radar of the
    keyframes before the present out.
    """

    grid: Grid
    nsweeps: int = 1
    use_radar: bool = True
    use_lidar: bool = True
    use_radar_filters: bool = False
    labels: tuple = (LabelSpec(),)
    use_cameras: bool = True
    box_categories: tuple = ()
    layers: tuple = ()
    past_points: bool = True

    def __post_init__(self):
        object.__setattr__(self, "box_categories", tuple(self.box_categories))
        if self.nsweeps < 1:
            raise InputError(f"nsweeps is {self.nsweeps}; it counts the keyframe, so it is at least 1")
        names = [spec.name for spec in self.labels]
        if not names or len(set(names)) != len(names):
            raise InputError(f"labels {names} must be at least one, of different names")

    @property
    def categories(self):
        """Prefixes of the categories that the labels draw, each once."""
        return tuple(dict.fromkeys(name for spec in self.labels for name in spec.categories))

    @property
    def read_layers(self):
        """name -> names of members of each layer that is read: those that the batch holds, and what labels are drawn from."""
        out = {name: tuple(members) for name, members in self.layers}
        if any(spec.has_maps for spec in self.labels):
            out[MAP_LAYER] = tuple(dict.fromkeys((*out.get(MAP_LAYER, ()), *MAP_MEMBERS)))
        return out

    @property
    def of_past(self):
        """The same of a keyframe before the present."""
        return self if self.past_points else replace(self, use_lidar=False, use_radar=False)

    def members(self, cams):
        """Names of the members that these cameras' images and everything else come from; of a layer (layer, member)."""
        names = [SAMPLE, CAMERAS_MEMBER, BOXES_MEMBER]
        if self.use_radar:
            names += [radar_member(k) for k in range(self.nsweeps)]
        if self.use_cameras:
            names += [image_member(c) for c in cams]
        if self.use_lidar:
            names += [lidar_member(k) for k in range(self.nsweeps)]
        return names + [(name, member) for name, members in self.read_layers.items() for member in members]


@dataclass(frozen=True)
class AugmentConfig:
    """Cameras, and where each image is resized and cropped; `from_dict` takes Simple-BEV's data_aug_conf, and `crop` in it.

    final_hw: size of the network's images. resize_lim: bounds of the random scale relative to final_hw. crop_offset: largest
    random shift of the crop in pixels. cams: cameras in slot order. ncams: how many of them a training sample uses.
    shuffle_cams: training draws the reference camera from slots 1 … S-1; else, and in evaluation, it is slot refcam_id.
    crop: "bottom" or "centre", what is kept of images of another shape than final_hw, which keep theirs; "", as Simple-BEV's,
    squeezes them into final_hw.
    bev_rotate, bev_scale, bev_shift: the most by which training turns the grid (degrees), scales it (shares of 1) and shifts it
    (metres along X and Z); see train.data.bev_augmentation. drop_cameras: the share of cameras that training does without.
    photometric: the most by which it changes colours, see train.data.colours.

    refcam: the reference camera's name, instead of refcam_id.

    Without cams, ncams 0 and refcam_id -1 stand for what the rig of the shards has, which `of_rig` puts in.
    """

    final_hw: tuple
    resize_lim: tuple = (1.0, 1.0)
    crop_offset: int = 0
    cams: tuple = ()
    ncams: int = 0
    shuffle_cams: bool = True
    refcam_id: int = -1
    crop: str = ""
    refcam: str = ""
    bev_rotate: float = 0.0
    bev_scale: float = 0.0
    bev_shift: float = 0.0
    drop_cameras: float = 0.0
    photometric: float = 0.0

    def __post_init__(self):
        for name, most in MOST_AUGMENTED.items():
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; it is 0 to {most:g}")
        if len(set(self.cams)) != len(self.cams):
            raise InputError(f"cams {list(self.cams)} must be different cameras")
        if self.ncams < 0:
            raise InputError(f"ncams is {self.ncams}; it must be at least 1, or 0 for all")
        if self.crop not in CROPS:
            raise InputError(f"crop {self.crop!r}; it is bottom or centre, or empty")
        if min(self.final_hw) < 1:
            raise InputError(f"final_dim {tuple(self.final_hw)} must be positive")
        if not 0 < self.resize_lim[0] <= self.resize_lim[1]:
            raise InputError(f"resize_lim {list(self.resize_lim)} must be two positive numbers in order")

    @classmethod
    def from_dict(cls, conf, **chosen):
        """From Simple-BEV's dict; `chosen` are further fields. Raises ValueError for a missing or unknown entry."""
        known = {"crop", "crop_offset", "resize_lim", "resize_scale", "final_dim", "H", "W", "cams", "ncams"}
        if set(conf) - known or "final_dim" not in conf:
            raise InputError(f"data_aug_conf needs final_dim and knows {sorted(known)}, but has {sorted(conf)}")
        limits = conf.get("resize_lim")
        if limits is None:
            limits = [conf.get("resize_scale", 1.0)] * 2
        return cls(
            tuple(int(n) for n in conf["final_dim"]),
            tuple(limits),
            int(conf.get("crop_offset", 0)),
            tuple(conf.get("cams", ())),
            int(conf.get("ncams", 0)),
            crop=conf.get("crop", ""),
            **chosen,
        )

    def of_source(self, source):
        """With what was chosen of a source, its cameras, and what its rig has; see of_rig."""
        return replace(self, cams=source.cams or self.cams).of_rig(source.rig)

    def of_rig(self, rig):
        """With the cameras, their number and the reference slot of a Rig wherever none was chosen.

        Raises ValueError for a camera that the rig does not have, or a reference camera that is not among those chosen.
        """
        names = rig.camera_names
        cams = tuple(self.cams or names)
        unknown = [c for c in cams if c not in names]
        if unknown:
            raise InputError(f"cams: the shards have no camera {unknown[0]}; they have {', '.join(names)}")
        if self.ncams > len(cams):
            raise InputError(f"ncams is {self.ncams}, but there are {len(cams)} cameras; lower it, or give 0 for all")
        reference = self.refcam_id
        if self.refcam:
            if self.refcam not in cams:
                raise InputError(f"refcam: {self.refcam} is none of the cameras {', '.join(cams)}")
            reference = cams.index(self.refcam)
        elif reference < 0:
            own = names[rig.reference_slot]
            reference = cams.index(own) if own in cams else 0
        return replace(self, cams=cams, ncams=self.ncams or len(cams), refcam_id=reference)

    def check_reference(self, is_train):
        """Raise ValueError where refcam_id is used and is no slot."""
        slots = min(self.ncams, len(self.cams)) if is_train else len(self.cams)
        if not (is_train and self.shuffle_cams) and not 0 <= self.refcam_id < slots:
            raise InputError(f"refcam_id {self.refcam_id} is not one of the {slots} camera slots")


@dataclass(frozen=True)
class OrderConfig:
    """Which samples make a batch. With `seed` and the epoch this decides every sample and its augmentation.

    batch_size: samples over all ranks. is_train: augment, and drop the last partial batch; else every sample once.
    order: "shuffled", or "streams", in which every slot of the batch plays whole scenes in time order; see train.data.order.
    shuffle: False takes samples, or scenes, as they lie in the shards. seqlen, temporal_aug, past: see train.data.windows.
    frames: keyframes of seqlen's windows that are loaded; None for all.
    """

    batch_size: int
    is_train: bool = True
    shuffle: bool = True
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    seqlen: int = 1
    temporal_aug: bool = False
    past: int = 0
    frames: int | None = None
    order: str = "shuffled"

    def __post_init__(self):
        if self.order not in ORDERS:
            raise InputError(f"order {self.order!r}; it is one of {', '.join(ORDERS)}")
        if self.order == "streams" and (self.seqlen > 1 or self.temporal_aug):
            raise InputError("order streams plays scenes keyframe by keyframe; leave out seqlen and temporal_aug")
        if self.past < 0:
            raise InputError(f"past is {self.past}; it counts the keyframes before the present, so it is at least 0")
        if self.past and (self.seqlen > 1 or self.temporal_aug):
            raise InputError(
                f"past {self.past} beside seqlen {self.seqlen}: seqlen's windows run into the future, as Simple-BEV's, past's "
                "back from the present; leave out seqlen and temporal_aug"
            )
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise InputError(
                f"batch_size {self.batch_size} must be a positive multiple of the {self.world_size} devices"
            )
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank {self.rank} is not one of {self.world_size}")


@dataclass(frozen=True)
class StageConfig:
    """What becomes of decoded frames, and where.

    device: where batches live. final_hw, interpolation: as in train.augment.crop_and_resize. get_tids: number tracks.
    decode: who decodes JPEGs: "host", the loader's threads; "device", the stage, on CUDA by nvJPEG; "auto" is the host.
    true_times: cameras see the world from where the car was when each took its picture; see train.model.points.
    """

    final_hw: tuple
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    interpolation: str = "bilinear"
    get_tids: bool = False
    decode: str = "auto"
    true_times: bool = False

    def __post_init__(self):
        object.__setattr__(self, "device", torch.device(self.device))
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation {self.interpolation!r}; it is one of {', '.join(INTERPOLATIONS)}")
        if self.decode not in DECODERS:
            raise InputError(f"decode {self.decode!r}; it is one of {', '.join(DECODERS)}")

    @property
    def on_cuda(self):
        return self.device.type == "cuda"


SENSORS = ("cameras", "lidar", "radar")


@dataclass(frozen=True)
class Wanted:
    """What of the data a network decides, not the options.

    cameras: False reads no image. frames: how many keyframes of seqlen's windows are loaded, the first ones; None for all.
    get_tids: number tracks. train_only: of SENSORS and "layers" those that evaluation does not read. layers: as DecodeConfig's.
    remembers: in streams no past is loaded, since the network has it. lenses: whether it projects by Batch.lenses, so that
    images may keep their distortion. past_points: as DecodeConfig's.
    """

    cameras: bool = True
    frames: int | None = None
    get_tids: bool = False
    train_only: tuple = ()
    layers: tuple = ()
    lenses: bool = True
    remembers: bool = False
    past_points: bool = True


@dataclass(frozen=True)
class DataConfig:
    """The whole data path of an experiment.

    train_only: of SENSORS and "layers" those that evaluation does not read. lenses: see Wanted.
    """

    order: OrderConfig
    decode: DecodeConfig
    augment: AugmentConfig
    stage: StageConfig
    source: SourceConfig
    train_only: tuple = ()
    lenses: bool = True

    @classmethod
    def of(cls, options, device="cpu", *, wanted=None, labels=None, rank=0, world_size=1, is_train=True):
        """The data path that options describe. Raises ValueError for what cannot be.

        An option goes to the config that has a field of its name: a new one is added there and to the options alone.

        Args:
            options: train.options.Options, or any object with its names; one that it lacks keeps the config's default.
            device: where batches live. wanted: Wanted. labels: LabelSpecs instead of the options' own.
            rank, world_size, is_train: see OrderConfig.
        """
        wanted = wanted or Wanted()
        augment = AugmentConfig.from_dict(
            options.data_aug_conf(),
            shuffle_cams=options.do_shuffle_cams,
            refcam_id=options.refcam_id,
            refcam=getattr(options, "refcam", ""),
            **{name: getattr(options, name, 0.0) for name in MOST_AUGMENTED},
        )
        labels = tuple(labels) if labels is not None else (LabelSpec.of(options),)
        requests = max(options.requests, options.nworkers)  # waiting for answers takes no cores
        return cls(
            _named(
                OrderConfig,
                options,
                rank=rank,
                world_size=world_size,
                is_train=is_train,
                frames=wanted.frames,
                past=0 if wanted.remembers and options.order == "streams" else getattr(options, "past", 0),
            ),
            _named(
                DecodeConfig,
                options,
                grid=Grid.of(options),
                labels=labels,
                use_cameras=wanted.cameras,
                layers=wanted.layers,
                past_points=wanted.past_points,
            ),
            augment,
            _named(StageConfig, options, final_hw=augment.final_hw, device=device, get_tids=wanted.get_tids),
            _named(SourceConfig, options, store_options=options.stores, requests=requests),
            tuple(wanted.train_only),
            wanted.lenses,
        )

    @property
    def of_evaluation(self):
        """The same in the order of evaluation: every window once, as they lie in the shards, without what training alone reads.

        Where no keyframe but a window's first is loaded, every keyframe has its window.
        """
        seqlen = 1 if self.order.frames == 1 else self.order.seqlen
        order = replace(self.order, is_train=False, shuffle=False, temporal_aug=False, seqlen=seqlen)
        without = {f"use_{name}": False for name in SENSORS if name in self.train_only}
        if "layers" in self.train_only:
            without["layers"] = ()
        return replace(self, order=order, decode=replace(self.decode, **without))


def _named(config, options, **chosen):
    """The config of the options that are named as its fields are; `chosen` are the other fields."""
    found = {
        f.name: getattr(options, f.name) for f in fields(config) if f.name not in chosen and hasattr(options, f.name)
    }
    return config(**found, **chosen)
