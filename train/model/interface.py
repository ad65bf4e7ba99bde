"""What a network is to the rest of the project. README.md beside this file shows it on one page, with an example.

A network is built by a factory `build(options, grid)`, from anywhere; nothing outside this folder names a particular one.
"""

import dataclasses
import importlib
import inspect
from dataclasses import dataclass, field

import torch
from torch import nn

from common.errors import InputError
from train.model.arguments import arguments_of
from train.model.memory import has_memory

NAMES = {
    "simple_bev": "train.model.simple_bev:build",
    "lift_splat": "train.model.lift_splat:build",
    "pillars": "train.model.pillars:build",
}  # networks that go by a short name
LIDAR = (None, False, "points", "voxels")
RADAR = (*LIDAR, "metaradar")
TRAIN_ONLY = ("cameras", "lidar", "radar", "layers")


@dataclass(frozen=True)
class Flips:
    """Which inputs to flip: image (B,S), bev_x (B,) along X, bev_z (B,) along Z; bool, on any device."""

    image: torch.Tensor
    bev_x: torch.Tensor
    bev_z: torch.Tensor

    @classmethod
    def of(cls, draws):
        """From (B, 2 + S) uniform draws in [0,1): each flip with probability 1/2."""
        bits = draws < 0.5
        return cls(bits[:, 2:], bits[:, 0], bits[:, 1])

    def to(self, device):
        """On another device; never waiting for it."""
        pinned = torch.device(device).type == "cuda" and self.image.device.type == "cpu"
        parts = (v.pin_memory() if pinned else v for v in (self.image, self.bev_x, self.bev_z))
        return Flips(*(v.to(device, non_blocking=True) for v in parts))


@dataclass(frozen=True)
class Needs:
    """What a network's batches must hold; the loader reads this and nothing else. None leaves it to the options.

    cameras: their images. lidar: "points" (Batch.lidar_data), "voxels" (Batch.lidar_voxels besides) or False; None: voxels
    with --use_lidar. radar: the same, and "metaradar" for voxels with the radars' 16 features; None: as --use_radar and
    --use_metaradar say. sweeps: of lidar and radar, keyframe included; None: --nsweeps. past: K, the keyframes before the
    present that a sample holds besides it; None: --past. past_points: False where of these lidar and radar are not read, and
    their counts are 0. remembers: with --order streams samples hold the present alone, and
    the past is the network's memory. train_only: of "cameras", "lidar", "radar", "layers" those that evaluation does without;
    their fields of the batch are None there, or empty. track_ids: Batch.tidlist. layers: name of a layer -> names of the
    members of it that Batch.layers holds; "map" need not be named for classes that are drawn from it. lenses: True where the
    network projects by Batch.lenses; others take no shards whose images keep their distortion.

    Raises:
        ValueError: another value.
    """

    cameras: bool = True
    lidar: bool | str | None = None
    radar: bool | str | None = None
    sweeps: int | None = None
    past: int | None = 0
    past_points: bool = True
    remembers: bool = False
    train_only: tuple = ()
    track_ids: bool = False
    layers: dict = field(default_factory=dict)
    lenses: bool = False
    frames: None = None  # of earlier networks, whose windows ran into the future

    def __post_init__(self):
        for name, known in (("cameras", (True, False)), ("lidar", LIDAR), ("radar", RADAR)):
            value = getattr(self, name)
            if not any(value is k or (isinstance(k, str) and value == k) for k in known):
                raise InputError(f"Needs: {name}={value!r}; it is one of {', '.join(map(repr, known))}")
        for name, least in (("sweeps", 1), ("past", 0)):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= least):
                raise InputError(f"Needs: {name}={value!r}; it is a number of at least {least}, or None")
        if self.frames is not None:
            raise InputError(
                f"Needs: frames={self.frames!r}: its windows ran into the future, and what a network said of its last keyframe "
                "was held against the first; past=K gives the K keyframes before the present, which is t = 0"
            )
        if not (isinstance(self.train_only, tuple) and set(self.train_only) <= set(TRAIN_ONLY)):
            raise InputError(f"Needs: train_only={self.train_only!r}; it is a tuple of {', '.join(TRAIN_ONLY)}")
        sound = isinstance(self.layers, dict) and all(
            isinstance(name, str)
            and isinstance(members, tuple)
            and members
            and all(isinstance(m, str) for m in members)
            for name, members in self.layers.items()
        )
        if not sound:
            raise InputError(f"Needs: layers={self.layers!r}; it is a dict such as {{'depth': ('depth.npy.zst',)}}")
        for name in ("track_ids", "lenses", "past_points", "remembers"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"Needs: {name}={getattr(self, name)!r}; it is True or False")


def find_network(name):
    """The factory of a short name or of "package.module:factory". Raises ValueError with the remedy."""
    place = NAMES.get(name, name)
    module, colon, attribute = place.partition(":")
    if not (module and colon and attribute):
        raise InputError(f"--model {name}: it is one of {', '.join(NAMES)}, or package.module:factory")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the network's own file imports
        raise InputError(
            f"--model {name}: there is no module {module}; run in the folder that holds it, or put that on PYTHONPATH"
        ) from None
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InputError(f"--model {name}: {module} has no function or class {attribute}")
    return found


def name_of(build):
    """What --model must say for find_network to give this factory."""
    return next((n for n, place in NAMES.items() if place == _place(build)), _place(build))


def _place(build):
    return f"{getattr(build, '__module__', None)}:{getattr(build, '__qualname__', type(build).__qualname__)}"


def build_network(build, options, grid):
    """What the factory gives, checked to be a network; it finds --model_args in options.model_args, see arguments_of."""
    if not _binds(build, 2):
        raise InputError(
            f"{name_of(build)} takes {inspect.signature(build)}; a network's factory is build(options, grid)"
        )
    network = build(dataclasses.replace(options, model_args=arguments_of(build, options.model_args)), grid)
    check_network(network)
    return network


def check_network(network):
    """Give a network without `needs` its default, cameras alone. Raise ValueError for what is no network: it says why."""
    name = type(network).__name__
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} is no torch.nn.Module; a factory build(options, grid) returns one")
    if not hasattr(network, "needs"):
        network.needs = Needs(lidar=False, radar=False)
    if not isinstance(network.needs, Needs):
        raise InputError(f"{name} has no `needs = Needs(…)`; see train/model/README.md")
    has_memory(network)
    for part, value in (*network.named_parameters(), *network.named_buffers()):
        if nn.parameter.is_lazy(value):
            raise InputError(
                f"{name}.{part} has no shape yet; give its layer sizes, or let build() run the network once"
            )
    taken = inspect.signature(network.forward).parameters
    if len(taken) < 2:
        raise InputError(f"{name}.forward takes ({', '.join(taken)}); it is forward(batch, grid, flips=None)")
    if (loss := getattr(network, "loss", None)) is not None:
        _check_loss(name, loss)


def _check_loss(name, loss):
    """Raise ValueError where a network's attribute `loss` is something else than the hook of that name."""
    hook = "loss(outputs, batch, normaliser[, grid]) -> (total, terms)"
    remedy = f"{name}.loss is the hook {hook}; name yours otherwise, such as self.criterion, and call it from there"
    if isinstance(loss, nn.Module):
        raise InputError(f"{remedy}: it is a {type(loss).__name__}")
    if not callable(loss):
        raise InputError(f"{remedy}: it is {loss!r}")
    if not _binds(loss, 3) and not _binds(loss, 4):
        raise InputError(f"{remedy}: it takes other arguments")


def _binds(function, count):
    """Whether a function can be called with so many values."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):  # the latter: it does not say what it takes
        return False
    return True


def loss_of(network, default, grid):
    """The network's hook, or the default, as a function of outputs, batch and normaliser."""
    loss = getattr(network, "loss", None) or default
    if _binds(loss, 3) and "grid" not in inspect.signature(loss).parameters:
        return loss
    return lambda outputs, batch, normaliser: loss(outputs, batch, normaliser, grid)


def takes_flips(network):
    """Whether its forward has a parameter `flips`; it then flips inputs, and its maps back, as they say."""
    return "flips" in inspect.signature(network.forward).parameters


def complete(needs, options):
    """Needs without open ends, and the options that load what they ask for. Raises ValueError where they contradict.

    An option at its default contradicts nothing.
    """
    lidar, use_lidar = _sensor("lidar", needs.lidar, options.use_lidar, "voxels")
    radar, use_radar = _sensor("radar", needs.radar, options.use_radar, "voxels")
    metaradar = options.use_metaradar and use_radar
    if needs.radar is None and metaradar:
        radar = "metaradar"
    if metaradar and needs.radar not in (None, "metaradar"):
        raise InputError(f"--use_metaradar: the network takes radar as {needs.radar}; leave it out")
    changes = {
        "use_lidar": use_lidar,
        "use_radar": use_radar,
        "use_metaradar": radar == "metaradar",
        "nsweeps": _number("nsweeps", needs.sweeps, options),
        "past": _number("past", needs.past, options),
    }
    needs = dataclasses.replace(needs, lidar=lidar, radar=radar, past=changes["past"])
    return needs, dataclasses.replace(options, **changes)


def _sensor(name, need, use, default):
    """(how the network takes it, whether it is loaded)."""
    if need is False and use:
        raise InputError(f"--use_{name}: the network takes no {name}; leave it out")
    if need is None:
        need = default if use else False
    return need, need is not False


def _number(name, need, options):
    given = getattr(options, name)
    default = next(f.default for f in dataclasses.fields(options) if f.name == name)
    if need is None or given == need:
        return given
    if given != default:
        raise InputError(f"--{name} {given}: the network needs {need}; leave it out")
    return need
