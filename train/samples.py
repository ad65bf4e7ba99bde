"""Any one sample of shards: its record, the batch that a network gets of it, and what the network of a run says to it."""

import dataclasses
from dataclasses import dataclass, fields

import torch

from common import addresses
from common.cameras import CAMERAS
from common.keys import scene_key
from common.record import BOXES_MEMBER, CAMERAS_MEMBER, SAMPLE, RecordError, image_member, lidar_member, radar_member
from common.shard_set import find_shards
from train import checkpoint
from train.data import make_frame_options, make_vox_util
from train.data.device_stage import DeviceStage
from train.data.draws import AugmentConfig, draw
from train.data.frame import decode_frame
from train.data.order import FLIP_STREAM, sample_rng
from train.data.sources import open_source
from train.forward import run_network
from train.model.interface import Flips
from train.options import Options, coerce
from train.setup import make_network

# All that a picture can show of a record.
_MEMBERS = (SAMPLE, CAMERAS_MEMBER, BOXES_MEMBER, *map(image_member, CAMERAS), lidar_member(0), radar_member(0))


class Samples:
    """The keyframes of shards, numbered in order; a folder's splits one after another.

    Args:
        patterns: what common.shard_set.find_shards takes.
    Raises:
        ValueError (ShardError): no shards, or shards that do not belong together.
    """

    def __init__(self, patterns):
        self.sources = [open_source(group) for group in _groups(patterns)]
        self.keys = [key for source in self.sources for key in source.keys]
        self.tokens = [token for source in self.sources for token in source.tokens]

    def __len__(self):
        return len(self.keys)

    def find(self, name):
        """Numbers of the keyframes that a key, token, number or scene names: one, or all of a scene. Raises ValueError."""
        for names in (self.keys, self.tokens):
            if name in names:
                return [names.index(name)]
        scene = [n for n, key in enumerate(self.keys) if key.rpartition("_")[0] in (name, scene_key(name))]
        if scene:
            return scene
        if name.isdigit() and int(name) < len(self):
            return [int(name)]
        raise ValueError(
            f"{name}: no key, token, scene or number of these {len(self)} keyframes; "
            f"the first is {self.keys[0]}, the last {self.keys[-1]}"
        )

    def source_of(self, number):
        """(source, number within it) of a keyframe."""
        for source in self.sources:
            if number < len(source):
                return source, number
            number -= len(source)
        raise IndexError(number)

    def where(self, number):
        """Shard and key, for messages."""
        source, own = self.source_of(number)
        return source.where(own)

    def members(self, number):
        """Dict from name to bytes of all that a picture can show of a keyframe."""
        source, own = self.source_of(number)
        return source.read(own, _MEMBERS)

    def decoded(self, number, decode):
        """decode() of a keyframe's members; a damaged one raises ValueError with shard and key."""
        try:
            return decode()
        except RecordError as error:
            raise ValueError(
                f"{self.where(number)}: {error}; check the shard with python -m preprocess.verify"
            ) from None


def _groups(patterns):
    """ShardSets that belong together: where folders are named, one a split."""
    shards = find_shards(patterns)
    splits = {}
    for tar in shards:
        splits.setdefault(addresses.split(tar)[1].rpartition("-")[0], []).append(tar)
    return [dataclasses.replace(shards, shards=tuple(tars)) for tars in splits.values()]


@dataclass(frozen=True)
class Network:
    """The network of a run: options that it was trained with, its update, and the BEV grid."""

    options: Options
    model: torch.nn.Module
    step: int
    device: torch.device


def network_of(run, device):
    """Network of a checkpoint or a run's folder, in evaluation mode. Raises ValueError."""
    path = checkpoint.find(run)
    content = checkpoint.read(path)
    recorded = content.get("options")
    if not recorded:
        raise ValueError(f"{path}: records no options, so there is no telling which network it is of")
    known = {item.name for item in fields(Options)}
    own = {name: coerce(name, value) for name, value in recorded.items() if name in known}
    options = Options(**{**own, "interpolation": checkpoint.interpolation(content)})
    model, options = make_network(options, device=device)
    step = checkpoint.load_weights(path, content, model, ())
    return Network(options, model.eval(), step, device)


def options_without_run(facts):
    """Options that any shards can serve: images at half size and the labels of the default grid."""
    return Options(nsweeps=1, res_scale=1.0, **({"refcam_id": 0} if len(facts.get("cameras", CAMERAS)) < 2 else {}))


def batch_of(samples, number, options, device="cpu", epoch=None):
    """The Batch of one keyframe as a network of these Options gets it.

    Args:
        epoch: of training, whose draws are taken; None for evaluation, which draws nothing.
    Raises:
        ValueError: naming shard and key.
    """
    source, own = samples.source_of(number)
    config = AugmentConfig.from_dict(options.data_aug_conf())
    if source.facts.get("cameras"):
        config = dataclasses.replace(config, cams=tuple(source.facts["cameras"]))
    is_train = epoch is not None
    rng = sample_rng(options.seed, epoch, own) if is_train else None
    chosen = draw(rng, config, 1, is_train, options.do_shuffle_cams, options.refcam_id)
    wanted = make_frame_options(
        options.grid,
        options.nsweeps,
        options.use_radar,
        options.use_lidar,
        options.use_radar_filters,
        options.protocol,
        options.min_visibility,
        options.target_categories,
    )
    members = source.read(own, wanted.members(chosen.cams))
    frame = samples.decoded(number, lambda: decode_frame(members, chosen.cams, wanted))
    grid = make_vox_util(options.grid, device)
    stage = DeviceStage(device, config.final_hw, options.interpolation, grid, get_tids=False)
    return stage([[frame]], [chosen], [own], epoch or 0), chosen, grid


def flips_of(batch, options):
    """The Flips that training draws for this Batch of one sample; None without rand_flip."""
    if not options.rand_flip:
        return None
    uniform = sample_rng(options.seed, batch.epoch, batch.indices[0], FLIP_STREAM).random(2 + batch.imgs.shape[2])
    return Flips.of(torch.from_numpy(uniform[None]))


def predict(network, batch, grid):
    """(Z, X) float32 probabilities of the first sample of a Batch."""
    with torch.no_grad():
        return run_network(network.model, batch, grid)["seg"][0, 0].sigmoid().cpu()
