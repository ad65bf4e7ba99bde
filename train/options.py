"""Every option of training and evaluation: one dataclass, from which the command line and config files are read."""

import math
import re
from dataclasses import asdict, dataclass, field, fields

from common.addresses import recordable
from common.errors import InputError
from common.record import MOST_VISIBLE
from common.stores import parse_options
from train.classes import class_specs
from train.mix import mix_text, parse_mix, recordable_mix
from train.runs import CKPT_DIR

ENCODERS = ("res101", "res50", "effb0", "effb4")  # that train.model.encoder_types makes
SHARDS = ("shards", "val_shards", "data_dir")  # the options that name shards
BASE_HW = (224, 400)  # of the network's images at res_scale 1
GROUPS = {
    "run": "Run",
    "checkpoints": "Checkpoints",
    "devices": "Devices and precision",
    "data": "Shards and loading",
    "optimisation": "Optimisation",
    "augmentation": "Cameras and augmentation",
    "sensors": "Sensors",
    "model": "Network",
    "labels": "Labels",
    "grid": "Grid, metres in its frame",
}
_ITEMS = {"device_ids": int, "centroid": float}  # items of list options whose default is empty and so does not tell
_BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _option(default, help, group, least=None, secret=False, also=(), typed=True, most=None):
    """also: names that people type for it, whom the right one is told. typed: False: of Python and config files alone."""
    facts = {"help": help, "group": group, "least": least, "secret": secret, "also": also, "typed": typed, "most": most}
    return field(default=default, repr=not secret, metadata=facts)


@dataclass
class Options:
    """Options of a run, of the types and within the bounds that they have on the command line. Lengths in metres.

    Raises:
        ValueError: with the remedy, when it is built.
    """

    exp_name: str = _option("debug", "name of the experiment, part of the run's name", "run")
    run_name: str = _option(
        "", "name of the run's folder; dated: a date, without colons; without it Simple-BEV's name", "run"
    )
    max_iters: int = _option(25000, "optimizer updates", "run", least=1, also=("steps", "iterations"))
    log_freq: int = _option(1000, "updates between TensorBoard's pictures", "run", least=1)
    do_val: bool = _option(True, "validate while training", "run")
    val_freq: int = _option(100, "updates between validations", "run", least=1)
    val_batches: str = _option("1", "batches per validation, cycling through the val set; or all", "run")
    log_dir: str = _option("logs_nuscenes", "TensorBoard folder", "run")
    wandb: str = _option("", "offline or online: Weights & Biases too", "run")
    seed: int = _option(0, "random seed of order, augmentation and weights", "run", least=0)
    config: str = _option("", "YAML or JSON file of options; the command line wins", "run")
    ckpt_dir: str = _option(CKPT_DIR, "folder of the runs' checkpoint folders", "checkpoints")
    save_freq: int = _option(1000, "updates between checkpoints", "checkpoints", least=1)
    keep_latest: int = _option(2, "checkpoints kept", "checkpoints", least=1)
    keep_best: str = _option("", "also keep the best by this figure of validation: iou, total_loss ...", "checkpoints")
    resume: str = _option("", "go on exactly in this run's folder, with its options", "checkpoints")
    init_dir: str = _option("", "weights from this checkpoint file or folder", "checkpoints")
    ignore_load: tuple = _option(
        (), "with --init_dir: leave out weights whose names contain one of these", "checkpoints"
    )
    load_step: bool = _option(False, "with --init_dir: continue at its step", "checkpoints")
    load_optimizer: bool = _option(False, "with --init_dir: load the optimizer's moments", "checkpoints")
    device: str = _option("", "cuda or cpu; without it CUDA where there is one", "devices")
    device_ids: tuple = _option(
        (), "CUDA devices, one process per device; without it all; with --device cpu: one process per item", "devices"
    )
    timeout_min: float = _option(
        5.0, "minutes to wait for a lost process, after the first update", "devices", least=0.05
    )
    precision: str = _option("", "bf16, fp32 or tf32; without it fp32, but bf16 to train on CUDA", "devices")
    sync_bn: bool = _option(False, "batch-norm statistics over all CUDA devices, not per device", "devices")
    find_unused: bool = _option(
        False, "with several processes: search every update for parameters without a gradient", "devices"
    )
    compile: bool = _option(False, "torch.compile network and losses", "devices")
    deterministic: bool = _option(False, "only deterministic kernels, where torch has them", "devices")
    shards: tuple = _option((), "paths or addresses: tars, *, <000..099>, a folder, a manifest", "data")
    val_shards: tuple = _option((), "without it the val split beside the train shards", "data")
    data_dir: str = _option("shards", "where train-*.tar and val-*.tar lie, without --shards", "data")
    dset: str = _option("", "trainval or mini: refuse shards of another version", "data")
    seqlen: int = _option(1, "keyframes per sample; the network sees the first", "data", least=1)
    temporal_aug: bool = _option(False, "with seqlen: also windows that skip a keyframe", "data")
    shuffle: bool = _option(True, "a new order each epoch", "data")
    order: str = _option("shuffled", "shuffled, or streams: a batch's slots play whole scenes in time order", "data")
    mix: str = _option(
        "", 'several sets instead of --shards: JSON (or a file), [{"shards": "a/train-*.tar", "weight": 2}, …]', "data"
    )
    nworkers: int = _option(
        12, "loader threads of a machine, at most its cores", "data", least=0, also=("num_workers",)
    )
    nworkers_val: int = _option(1, "the same for validation", "data", least=0)
    reader: str = _option("auto", "indexed (byte ranges), stream (front to back), auto (stream for pipe:)", "data")
    verify_reads: bool = _option(False, "compare checksums while reading", "data")
    decode: str = _option("auto", "JPEGs: host, device (nvJPEG) or auto (host)", "data")
    store_options: str = _option(
        "", "JSON, or a file with it: credentials and endpoint of object stores; never recorded", "data", secret=True
    )
    requests: int = _option(16, "range requests in flight per loader, at least", "data", least=0)
    retry_minutes: float = _option(15.0, "minutes to wait for a store that has answered before", "data", least=0.0)
    cache_dir: str = _option(
        "", "local cache of what was read from remote stores, shared by the processes of a node", "data"
    )
    cache_gb: float = _option(100.0, "size limit of --cache_dir", "data", least=0.0)
    batch_size: int = _option(8, "samples over all devices", "optimisation", least=1, also=("bs",))
    grad_acc: int = _option(5, "batches per update", "optimisation", least=1)
    lr: float = _option(3e-4, "peak learning rate", "optimisation", also=("learning_rate",))
    use_scheduler: bool = _option(True, "AdamW with OneCycle, else Adam", "optimisation")
    weight_decay: float = _option(1e-7, "weight decay of AdamW or Adam", "optimisation", least=0.0)
    grad_clip: float = _option(5.0, "clip the gradient's norm to this; 0: do not clip", "optimisation", least=0.0)
    ema: float = _option(
        0.0, "decay of a moving average of the weights, such as 0.999; 0: none", "optimisation", least=0.0
    )
    res_scale: float = _option(2.0, "image size over 224x400, at least 0.25", "augmentation", least=0.25)
    rand_flip: bool = _option(True, "flip images and BEV features", "augmentation")
    rand_crop_and_resize: bool = _option(True, "random scale 0.8-1.2 and crop", "augmentation")
    ncams: int = _option(0, "cameras of a training sample; 0: all of them", "augmentation", least=0)
    do_shuffle_cams: bool = _option(True, "random reference camera in training", "augmentation")
    cams: tuple = _option((), "names of the cameras in slot order; without it all, as the rig has them", "augmentation")
    refcam_id: int = _option(-1, "reference camera slot in evaluation; -1: the rig's own", "augmentation", least=-1)
    refcam: str = _option("", "the same by its name, such as CAM_FRONT", "augmentation")
    image_size: str = _option(
        "", "height x width of the network's images, such as 256x704, instead of --res_scale", "augmentation"
    )
    crop: str = _option("", "bottom or centre: images keep their shape  [with --image_size: bottom]", "augmentation")
    interpolation: str = _option("bilinear", "bilinear (antialiased) or nearest (Simple-BEV's)", "augmentation")
    bev_rotate: float = _option(
        0.0, "turn grid and labels by up to so many degrees", "augmentation", least=0.0, most=180.0
    )
    bev_scale: float = _option(
        0.0, "scale them by up to this share: 0.05 for 0.95-1.05", "augmentation", least=0.0, most=0.5
    )
    bev_shift: float = _option(0.0, "shift them by up to so many metres", "augmentation", least=0.0, most=1000.0)
    drop_cameras: float = _option(
        0.0, "leave each camera out with this probability, never all", "augmentation", least=0.0, most=1.0
    )
    photometric: float = _option(
        0.0, "change colours by up to this share, such as 0.3", "augmentation", least=0.0, most=1.0
    )
    nsweeps: int = _option(3, "lidar and radar sweeps, keyframe included", "sensors", least=1)
    use_radar: bool = _option(False, "radar occupancy", "sensors")
    use_radar_filters: bool = _option(False, "the devkit's default radar filters", "sensors")
    use_metaradar: bool = _option(False, "radar with its 16 features", "sensors")
    use_lidar: bool = _option(False, "lidar occupancy", "sensors")
    past: int = _option(0, "keyframes before the present, for networks that leave it to this", "sensors", least=0)
    true_times: bool = _option(False, "cameras see from where the car was when each took its picture", "sensors")
    model: str = _option("simple_bev", "the network: simple_bev or package.module:factory", "model")
    model_args: str = _option("", "the network's own arguments: JSON, or a file with it", "model")
    encoder_type: str = _option(
        "res101", f"{', '.join(ENCODERS)}, or timm:NAME of the package timm", "model", also=("backbone",)
    )
    do_rgbcompress: bool = _option(True, "compress height by convolution, else by sum", "model")
    latent_dim: int = _option(128, "channels of the features", "model", least=1)
    no_pretrained: bool = _option(False, "random backbone weights", "model")
    backbone_weights: str = _option("", "local file with ImageNet weights", "model")
    bn_momentum: float = _option(
        0.0, "how fast batch norms of the backbone follow; 0: as made. 0.1 suits short runs from random weights", "model",
        least=0, most=1,
    )  # fmt: skip
    freeze_encoder: bool = _option(False, "the encoder's backbone stays as its weights are", "model")
    protocol: str = _option("simple_bev", "simple_bev or min_visibility", "labels")
    min_visibility: int = _option(1, "with min_visibility: boxes under it are left out", "labels", least=1)
    target_categories: tuple = _option(("vehicle",), "comma list of category prefixes", "labels")
    classes: tuple = _option(
        (),
        "name=category,…; … with map:LAYER for the map, or pon, bevfusion, cvt; instead of --target_categories",
        "labels",
    )
    box_categories: tuple = _option((), "prefixes of the boxes in batches; without it those that labels draw", "labels")
    bounds: tuple = _option((-50.0, 50.0, -5.0, 5.0, -50.0, 50.0), "xmin,xmax,ymin,ymax,zmin,zmax", "grid")
    frame: str = _option("cam0", "cam0 (the reference camera's) or ego (X right, Y down, Z forward)", "grid")
    centroid: tuple = _option((), "x,y,z of the grid's middle; without it 0,1,0 in cam0, 0,-0.5,0 in ego", "grid")
    Z: int = _option(200, "voxels forward", "grid", least=1)
    Y: int = _option(8, "voxels down", "grid", least=1)
    X: int = _option(200, "voxels to the right", "grid", least=1)

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "model_args" or isinstance(value, str):  # a factory gets them as a dict or an object
                setattr(self, item.name, coerce(item.name, value))
        self.mix = mix_text(self.mix)  # a file's content: what is recorded is what was read
        self.validate()

    @property
    def stores(self):
        """Dict of --store_options, or None. Raises ValueError, which shows nothing of what they hold."""
        return parse_options(self.store_options)

    def autocast_on(self, device):
        """The dtype of a training network's arithmetic on that device; None for float32."""
        import torch  # here, since options are read before anything heavy is loaded

        precision = self.precision or ("bf16" if device.type == "cuda" else "fp32")
        return torch.bfloat16 if precision == "bf16" else None

    def validate(self, world_size=1):
        """Raise ValueError, naming the remedy, for values that cannot work together."""
        if self.batch_size < 1 or self.batch_size % world_size:
            raise InputError(
                f"--batch_size {self.batch_size} is not a positive multiple of the {world_size} device(s); "
                "change it, or name other --device_ids"
            )
        if self.use_metaradar and not self.use_radar:
            raise InputError("--use_metaradar needs --use_radar")
        if self.encoder_type not in ENCODERS and not self.encoder_type.startswith("timm:"):
            raise InputError(f"--encoder_type {self.encoder_type}: it is one of {', '.join(ENCODERS)}, or timm:NAME")
        if self.precision not in ("", "bf16", "fp32", "tf32"):
            raise InputError(f"--precision {self.precision}: it is bf16 or fp32, or tf32 on CUDA")
        if self.wandb not in ("", "offline", "online"):
            raise InputError(f"--wandb {self.wandb}: it is offline or online")
        if self.decode not in ("auto", "host", "device"):
            raise InputError(f"--decode {self.decode}: it is auto, host or device")
        if self.dset not in ("", "trainval", "mini"):
            raise InputError(f"--dset {self.dset}: it is trainval or mini")
        if self.val_batches != "all" and not (self.val_batches.isdigit() and int(self.val_batches)):
            raise InputError(f"--val_batches {self.val_batches}: it is a positive number or all")
        if not self.do_rgbcompress and (self.use_radar or self.use_lidar):
            raise InputError("--do_rgbcompress False works with cameras alone; leave out --use_radar and --use_lidar")
        for item in fields(self):
            value, least = getattr(self, item.name), item.metadata["least"]
            if least is not None and not value >= least:  # NaN too
                raise InputError(f"--{item.name} {value} must be at least {least}")
            if (most := item.metadata["most"]) is not None and not value <= most:
                raise InputError(f"--{item.name} {value} must be at most {most}")
        check_visibility(self.protocol, self.min_visibility)
        for name in ("exp_name", "run_name"):  # of folders, curves and pages
            if not getattr(self, name).isprintable() or len(getattr(self, name)) > 200:
                raise InputError(
                    f"--{name} {getattr(self, name)!r:.50}: it is at most 200 characters that can be printed"
                )
        if self.no_pretrained and self.backbone_weights:
            raise InputError("--no_pretrained and --backbone_weights FILE contradict each other; leave one out")
        if self.seed >= 2**64:
            raise InputError(f"--seed {self.seed}: it has 64 bits at most")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise InputError(f"--lr {self.lr} must be positive")
        if not self.ema < 1:
            raise InputError(f"--ema {self.ema}: it is a decay below 1, such as 0.999")
        if self.order not in ("shuffled", "streams"):
            raise InputError(f"--order {self.order}: it is shuffled or streams")
        if self.crop not in ("", "bottom", "centre"):
            raise InputError(f"--crop {self.crop}: it is bottom or centre")
        if self.image_size and self.image_hw and self.res_scale != Options.res_scale:
            raise InputError(f"--image_size {self.image_size} and --res_scale {self.res_scale}; leave one out")
        if self.refcam and self.refcam_id != Options.refcam_id:
            raise InputError(f"--refcam {self.refcam} and --refcam_id {self.refcam_id}; leave one out")
        if parse_mix(self.mix) and self.order == "streams":
            raise InputError("--mix puts samples of several sets among each other; leave out --order streams")
        if self.frame not in ("cam0", "ego"):
            raise InputError(f"--frame {self.frame}: it is cam0 or ego")
        if class_specs(self.classes) and self.target_categories != Options.target_categories:
            raise InputError("--target_categories makes one class, and classes are given; leave one out")
        if len(self.bounds) != 6 or len(self.centroid) not in (0, 3):
            raise InputError("--bounds takes 6 numbers, --centroid 3")
        if any(low >= high for low, high in zip(self.bounds[::2], self.bounds[1::2], strict=True)):
            raise InputError("--bounds takes a lower and a higher number for each axis")

    def data_aug_conf(self):
        """Simple-BEV's data_aug_conf of this res_scale or image_size."""
        height, width = self.image_hw
        crops = self.rand_crop_and_resize
        return {
            "final_dim": (height, width),
            "resize_lim": [0.8, 1.2] if crops else [1.0, 1.0],
            "crop_offset": int(height * (1 - 0.8)) if crops else 0,
            "ncams": self.ncams,
            "crop": self.crop or ("bottom" if self.image_size else ""),
            **({"cams": self.cams} if self.cams else {}),
        }

    @property
    def image_hw(self):
        """(height, width) of the network's images. Raises ValueError for an --image_size that is none."""
        if not self.image_size:
            return tuple(int(n * self.res_scale) for n in BASE_HW)
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", self.image_size)
        if not found:
            raise InputError(f"--image_size {self.image_size}: it is height x width in pixels, such as 256x704")
        return int(found[1]), int(found[2])


def check_visibility(protocol, min_visibility):
    """Raise ValueError for a --min_visibility that its protocol does not look at, or that leaves every box out."""
    if protocol == "simple_bev" and min_visibility != 1:
        raise InputError(
            f"--min_visibility {min_visibility} belongs to --protocol min_visibility, not simple_bev; leave one out"
        )
    if min_visibility > MOST_VISIBLE:
        raise InputError(
            f"--min_visibility {min_visibility}: it is 1 to {MOST_VISIBLE}, nuScenes' levels, no percentage"
        )


def as_dict(options):
    """Options as plain values for a checkpoint, without what is secret: of addresses too."""
    values = {f.name: getattr(options, f.name) for f in fields(options) if not f.metadata["secret"]}
    values["data_dir"] = recordable(values["data_dir"])
    values |= {name: list(map(recordable, values[name])) for name in ("shards", "val_shards")}
    values["mix"] = recordable_mix(values["mix"])
    values["classes"] = [
        asdict(spec) | {"categories": list(spec.categories)} for spec in class_specs(values["classes"])
    ]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def of_today(recorded, strict):
    """(options that a file or a checkpoint holds, as coerce makes them; notes on those that are left out).

    strict: an option that this version does not have is an error; else it is left out. Raises ValueError.
    """
    known = {item.name for item in fields(Options)}
    others = [name for name in recorded if name not in known]
    if strict and others:
        raise InputError(f"{others[0]} is not an option; see --help")
    out = {name: coerce(name, value) for name, value in recorded.items() if name in known}
    return out, [f"{name} is no option of this version and is left out" for name in others]


def is_bool(text):
    """Whether a word is a value of a BOOL option."""
    return text.lower() in _BOOLS


def coerce(name, value):
    """A value of a command line or a config file, as the type of the option `name`. Raises ValueError."""
    item = next(f for f in fields(Options) if f.name == name)
    try:
        if name == "classes":
            return class_specs(value)
        if name in ("shards", "val_shards"):
            return tuple(part for text in ([value] if isinstance(value, str) else value) for part in _patterns(text))
        if item.type is tuple:
            if isinstance(value, str):
                value = [part.strip(" '\"") for part in value.strip(" []()").split(",") if part.strip()]
            kind = type(item.default[0]) if item.default else _ITEMS.get(name, str)
            return tuple(kind(part) for part in value)
        if item.type is bool:
            return value if isinstance(value, bool) else _BOOLS[str(value).lower()]
        fraction = item.type is int and isinstance(value, float) and not value.is_integer()
        if fraction or isinstance(value, (bool, list, tuple, dict)) or value is None:
            raise ValueError
        return item.type(value)
    except (TypeError, ValueError, KeyError):
        kinds = {bool: "True or False", tuple: "a list", int: "a whole number", float: "a number", str: "a text"}
        shown = "" if item.metadata["secret"] else f" {value!r}"
        raise InputError(f"--{name}{shown} is not {kinds[item.type]}") from None


def _patterns(text):
    """The patterns of shards in a text: one, or several with commas between. A pipe: command is left as it is."""
    text = text.strip()
    if text.lower().startswith("pipe:"):
        return [text]
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    parts = [part.strip(" '\"") for part in re.split(r",(?![^{<\[]*[}>\]])", inner)]
    several = all(part.endswith((".tar", ".json", "/")) for part in parts)
    return [part for part in parts if part] if several or inner is not text else [text]


# What --resume may be given anew; the rest makes the experiment or the order of its samples.
FREE_ON_RESUME = frozenset(
    "max_iters log_freq do_val val_freq val_batches log_dir wandb config save_freq keep_latest keep_best "
    "resume device device_ids timeout_min precision sync_bn find_unused compile deterministic shards val_shards mix "
    "data_dir dset nworkers nworkers_val reader decode verify_reads store_options requests retry_minutes "
    "cache_dir cache_gb".split()
)
