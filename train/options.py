"""Every option of training and evaluation: one dataclass, from which the command line is made."""

import dataclasses
import math
from dataclasses import dataclass, field, fields

import click

from common.cameras import CAMERAS
from train.model.encoders import ENCODERS

FULL_HW = (448, 800)  # network image size at res_scale 2; the lineage scales (224, 400)


# Items of list options whose default is empty and so does not tell.
_ITEMS = {"device_ids": int}


def _option(default, help, group):
    kind = "default_factory" if callable(default) else "default"
    return field(metadata={"help": help, "group": group}, **{kind: default})


@dataclass
class Options:
    """Options of a run; validate() raises ValueError with the remedy. Lengths in metres, cam0 axes."""

    exp_name: str = _option("debug", "name of the experiment, part of the run's name", "run")
    max_iters: int = _option(25000, "optimizer updates", "run")
    log_freq: int = _option(1000, "updates between TensorBoard's pictures", "run")
    val_freq: int = _option(100, "updates between validation batches", "run")
    save_freq: int = _option(1000, "updates between checkpoints", "run")
    val_batches: str = _option("1", "validation batches at a time, going round the val set, or all", "run")
    do_val: bool = _option(True, "validate while training", "run")
    log_dir: str = _option("logs_nuscenes", "TensorBoard folder", "run")
    ckpt_dir: str = _option("checkpoints", "folder of the runs' checkpoint folders", "run")
    keep_latest: int = _option(2, "checkpoints to keep", "run")
    init_dir: str = _option("", "start from this checkpoint file or folder", "run")
    ignore_load: tuple = _option((), "comma list: weights whose names hold one are not loaded", "run")
    load_step: bool = _option(False, "with --init_dir: continue at its step", "run")
    load_optimizer: bool = _option(False, "with --init_dir: load optimizer and scheduler", "run")
    device: str = _option("", "cuda or cpu; the default is CUDA where there is one", "run")
    device_ids: tuple = _option((), "CUDA devices, a process each; default: all (with --device cpu: processes)", "run")
    resume: str = _option("", "continue this run's folder exactly, with its own options", "run")
    config: str = _option("", "YAML or JSON file of options; the command line wins", "run")
    deterministic: bool = _option(False, "only deterministic kernels, where torch has them", "run")
    precision: str = _option("", "bf16 or fp32; default: bf16 on CUDA, fp32 on the CPU", "run")
    sync_bn: bool = _option(False, "batch-norm statistics over all CUDA devices, not a device", "run")
    compile: bool = _option(False, "torch.compile the network", "run")
    shards: tuple = _option((), "train shards: path, glob, range in <> or {}, or several", "data")
    val_shards: tuple = _option((), "default: val-*.tar beside the train shards", "data")
    data_dir: str = _option("", "instead of --shards: folder with train-*.tar and val-*.tar", "data")
    dset: str = _option("", "trainval or mini: refuse shards of another version", "data")
    seqlen: int = _option(1, "keyframes a sample; the network sees the first", "data")
    temporal_aug: bool = _option(False, "with seqlen: also windows that skip a keyframe", "data")
    shuffle: bool = _option(True, "a new order each epoch", "data")
    nworkers: int = _option(12, "loader threads, at most one a core", "data")
    nworkers_val: int = _option(1, "loader threads of validation", "data")
    reader: str = _option("auto", "indexed (local files), stream (pipe:, http, s3 ...) or auto", "data")
    verify_reads: bool = _option(False, "compare checksums while reading", "data")
    cache_dir: str = _option("", "keep streamed shards in this folder", "data")
    cache_gb: float = _option(100.0, "size of cache_dir", "data")
    seed: int = _option(0, "of order, augmentation and weights", "data")
    batch_size: int = _option(8, "samples over all devices", "optimisation")
    grad_acc: int = _option(5, "batches an update", "optimisation")
    lr: float = _option(3e-4, "peak learning rate", "optimisation")
    use_scheduler: bool = _option(True, "AdamW with OneCycle, else Adam", "optimisation")
    weight_decay: float = _option(1e-7, "", "optimisation")
    grad_clip: float = _option(5.0, "largest norm of the gradient", "optimisation")
    res_scale: float = _option(2.0, "image size over 224x400, at least 0.25", "augmentation")
    rand_flip: bool = _option(False, "flip images and BEV features", "augmentation")
    rand_crop_and_resize: bool = _option(True, "random scale 0.8-1.2 and crop", "augmentation")
    ncams: int = _option(6, "cameras of a training sample", "augmentation")
    do_shuffle_cams: bool = _option(True, "draw the reference camera", "augmentation")
    refcam_id: int = _option(1, "reference camera slot in evaluation", "augmentation")
    interpolation: str = _option("bilinear", "bilinear (antialiased) or nearest (the lineage's)", "augmentation")
    nsweeps: int = _option(3, "lidar and radar sweeps, keyframe included", "sensors")
    use_radar: bool = _option(False, "radar occupancy", "sensors")
    use_radar_filters: bool = _option(False, "the devkit's default radar filters", "sensors")
    use_metaradar: bool = _option(False, "radar with its 16 features", "sensors")
    use_lidar: bool = _option(False, "lidar occupancy", "sensors")
    encoder_type: str = _option("res101", f"one of {', '.join(ENCODERS)}", "model")
    do_rgbcompress: bool = _option(True, "compress height by convolution, else by sum", "model")
    latent_dim: int = _option(128, "channels of the features", "model")
    no_pretrained: bool = _option(False, "random backbone weights", "model")
    backbone_weights: str = _option("", "local file with ImageNet weights", "model")
    protocol: str = _option("simple_bev", "simple_bev or min_visibility", "labels")
    min_visibility: int = _option(1, "with min_visibility: boxes under it are left out", "labels")
    target_categories: tuple = _option(("vehicle",), "comma list of category prefixes", "labels")
    bounds: tuple = _option((-50.0, 50.0, -5.0, 5.0, -50.0, 50.0), "xmin,xmax,ymin,ymax,zmin,zmax", "grid")
    centroid: tuple = _option((0.0, 1.0, 0.0), "x,y,z of the grid's middle", "grid")
    grid: tuple = _option((200, 8, 200), "voxels Z,Y,X", "grid")

    def precision_on(self, device):
        """bf16 or fp32."""
        return self.precision or ("bf16" if device.type == "cuda" else "fp32")

    def validate(self, world_size=1):
        """Raise ValueError, naming the remedy, for values that cannot work together."""
        if self.batch_size < 1 or self.batch_size % world_size:
            raise ValueError(f"batch_size {self.batch_size} is not a positive multiple of the {world_size} device(s)")
        if self.use_metaradar and not self.use_radar:
            raise ValueError("--use_metaradar needs --use_radar")
        if self.encoder_type not in ENCODERS:
            raise ValueError(f"--encoder_type {self.encoder_type}: it is one of {', '.join(ENCODERS)}")
        if self.precision not in ("", "bf16", "fp32"):
            raise ValueError(f"--precision {self.precision}: it is bf16 or fp32")
        if self.dset not in ("", "trainval", "mini"):
            raise ValueError(f"--dset {self.dset}: it is trainval or mini")
        if self.val_batches != "all" and not (self.val_batches.isdigit() and int(self.val_batches)):
            raise ValueError(f"--val_batches {self.val_batches}: it is a positive number or all")
        if not self.do_rgbcompress and (self.use_radar or self.use_lidar):
            raise ValueError("--do_rgbcompress False works with cameras alone; leave out --use_radar and --use_lidar")
        if not self.res_scale >= 0.25:
            raise ValueError(f"--res_scale {self.res_scale} is under 0.25")
        for name in ("max_iters", "grad_acc", "keep_latest", "val_freq", "save_freq", "log_freq"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least 1")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"--lr {self.lr} must be positive")
        if len(self.bounds) != 6 or len(self.centroid) != 3 or len(self.grid) != 3:
            raise ValueError("--bounds takes 6 numbers, --centroid 3 and --grid 3")

    def data_aug_conf(self):
        """The lineage's data_aug_conf of this res_scale."""
        height, width = int(224 * self.res_scale), int(400 * self.res_scale)
        crops = self.rand_crop_and_resize
        return {
            "final_dim": (height, width),
            "resize_lim": [0.8, 1.2] if crops else [1.0, 1.0],
            "crop_offset": int(height * (1 - 0.8)) if crops else 0,
            "cams": list(CAMERAS),
            "ncams": self.ncams,
        }


def _parse(kind, default, kind_of_items=str):
    def convert(_context, parameter, value):
        if not isinstance(value, str):
            return value
        if kind is bool:
            if value.lower() in ("true", "1", "yes", "false", "0", "no"):
                return value.lower() in ("true", "1", "yes")
            raise click.BadParameter(f"{value!r} is not True or False")
        items = [part.strip() for part in value.strip("[]()").split(",") if part.strip()]
        number = type(default[0]) if default else kind_of_items
        try:
            return tuple(number(item) for item in items)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of numbers") from None

    return convert


def add_options(command):
    """Give a click command every field of Options, spelled with _ or -."""
    for item in reversed(fields(Options)):
        default = item.default
        names = dict.fromkeys([f"--{item.name}", f"--{item.name.replace('_', '-')}"])
        text = f"[{item.metadata['group']}] {item.metadata['help']}"
        if item.name in ("shards", "val_shards"):
            extra = {"multiple": True}
        elif item.type is bool:
            extra = {"is_flag": False, "flag_value": "true", "default": str(default), "callback": _parse(bool, default)}
        elif item.type is tuple:
            shown = ",".join(map(str, default))
            extra = {"default": shown, "callback": _parse(tuple, default, _ITEMS.get(item.name, str))}
        else:
            extra = {"type": item.type, "default": default}
        command = click.option(*names, item.name, help=text, show_default=True, **extra)(command)
    return command


def join_words(arguments):
    """Words after --shards and --val_shards, as a shell's {} range leaves them, become options of their own."""
    out, current = [], None
    for word in arguments:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            current = word if not equals and name in ("--shards", "--val_shards", "--val-shards") else None
            out += [] if current else [word]
        else:
            out += [current, word] if current else [word]
    return out


def as_dict(options):
    """Options as plain values for a checkpoint."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}


def from_mapping(values, recorded, given, source):
    """Put recorded options over the values that were not given on the command line.

    Raises ValueError for a name that is no option.
    """
    unknown = sorted(set(recorded) - {f.name for f in fields(Options)})
    if unknown:
        raise ValueError(f"{source}: {unknown[0]} is not an option; see --help")
    for name, value in recorded.items():
        if name not in given and name not in ("resume", "config"):
            values[name] = tuple(value) if isinstance(value, list) else value
    return values
