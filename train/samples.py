"""Any one sample of shards: its record, the batch that a network gets of it, and what the network of a run says to it."""

import dataclasses
import itertools
from dataclasses import dataclass

import torch

from common import addresses
from common.errors import InputError
from common.keys import scene_key
from common.record import BOXES_MEMBER, CAMERAS_MEMBER, SAMPLE, RecordError, image_member, lidar_member, radar_member
from common.shard_set import find_shards
from common.spelling import spelled
from train import checkpoint
from train.command import known_options
from train.data import Loader, layered
from train.data.config import DataConfig, Wanted
from train.data.order import FLIP_STREAM, sample_rng
from train.data.sources import open_source
from train.errors import DataError
from train.model.finite import finite_outputs
from train.model.forward import run_network
from train.model.interface import Flips
from train.options import Options
from train.processes.precision import full_float32
from train.processes.ranks import say
from train.runs import find_run
from train.setup import make_network, share_of_cores

PRESENT = Wanted(frames=1)  # images of the present


class Samples:
    """The keyframes of shards, numbered in order; a folder's splits one after another.

    Args:
        patterns, options: what common.shard_set.find_shards takes. sources: to use instead, which are open already.
    Raises:
        ValueError (ShardError): no shards, or shards that do not belong together.
    """

    def __init__(self, patterns=(), options=None, sources=()):
        self.sources = list(sources) or [
            open_source(group) for group in _groups(find_shards(patterns, options=options))
        ]
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
        raise InputError(
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
        images = map(image_member, source.rig.camera_names)
        return source.read(own, (SAMPLE, CAMERAS_MEMBER, BOXES_MEMBER, *images, lidar_member(0), radar_member(0)))

    def decoded(self, number, decode):
        """decode() of a keyframe's members; a damaged one raises ValueError with shard and key."""
        try:
            return decode()
        except RecordError as error:
            raise InputError(
                f"{self.where(number)}: {error}; check the shard with {spelled('preprocess.verify')}"
            ) from None


def _groups(shards):
    """The parts of a ShardSet that belong together: where folders are named, one per split."""
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


def network_of(run, device, weights="trained"):
    """Network of a run or a checkpoint, as find_run knows it, in evaluation mode. Raises ValueError.

    weights: as checkpoint.load_weights takes it.
    """
    path = checkpoint.find(find_run(str(run), Options.ckpt_dir, "--run"))
    content = checkpoint.read(path, command=f"{spelled('train.show')} … --run")
    recorded = content.get("options")
    if not recorded:
        raise InputError(f"{path}: records no options, so there is no telling which network it is of")
    recorded = known_options(recorded, path, strict=False)
    options = Options(**{**recorded, "interpolation": checkpoint.interpolation(content)})
    model, options = make_network(options, device=device)
    step = checkpoint.load_weights(path, content, model, (), weights)
    return Network(options, model.eval(), step, device)


def options_without_run(classes=()):
    """Options that any shards can serve: images at half size and the labels of the default grid, of these ClassSpecs."""
    return Options(nsweeps=1, res_scale=1.0, classes=classes)


def batch_of(samples, number, options, device="cpu", epoch=None, wanted=PRESENT):
    """The Batch of the sample that begins at a keyframe, as a network of these Options gets it; its Augmentation; the grid.

    Args:
        epoch: of training, whose augmentation is taken; None for evaluation, which has none. wanted: see
            train.setup.wanted_of.
    Returns:
        (Batch, its Augmentation, VoxUtil).
    Raises:
        ValueError: naming shard and key.
    """
    source, own = samples.source_of(number)
    is_train = epoch is not None
    loader = _loader_of(source, dataclasses.replace(options, batch_size=1), device, is_train, wanted)
    sample = next((n for n, window in enumerate(loader.windows) if window[0] == own), None)
    if sample is None:
        raise InputError(
            f"{samples.where(number)}: fewer than {options.seqlen} keyframes from here on; name an earlier one"
        )
    loader.load_state_dict({"epoch": epoch or 0, "position": 0})
    try:
        batch = loader.batch_of([sample], augment=is_train)
    except DataError as error:
        raise InputError(str(error)) from None
    return batch, loader.draw(sample, epoch or 0, is_train), loader.stage.vox_util


def batches_of(samples, numbers, options, device="cpu", wanted=PRESENT):
    """Yield (the keyframes' numbers, their Batch, VoxUtil) over keyframes in order, as evaluation loads and batches them.

    One loader serves all keyframes of a split, in as many threads as --nworkers and this machine's cores allow. The other
    arguments and errors are those of batch_of; of seqlen's windows only the present is loaded.
    """
    own = [(samples.source_of(number), number) for number in numbers]
    for source, group in itertools.groupby(own, lambda one: one[0][0]):
        group = list(group)
        loader = _loader_of(source, options, device, False, wanted, share_of_cores("nworkers", options.nworkers))
        windows = {window[0]: n for n, window in enumerate(loader.windows)}
        left = iter([number for _, number in group])
        try:
            for batch in loader.batches_of([windows[place] for (_, place), _ in group]):
                yield list(itertools.islice(left, len(batch))), batch, loader.stage.vox_util
        except DataError as error:
            raise InputError(str(error)) from None


def _loader_of(source, options, device, is_train, wanted, threads=0):
    options = dataclasses.replace(options, shuffle=False, decode="auto", order="shuffled")
    config = DataConfig.of(options, device, wanted=wanted, is_train=is_train)
    config = config if is_train else config.of_evaluation
    augment = config.augment.of_source(source)
    return Loader(layered(source, config), config.order, config.decode, augment, config.stage, threads)


def flips_of(batch, options):
    """The Flips that training draws for this Batch of one sample; None without rand_flip."""
    if not options.rand_flip:
        return None
    uniform = sample_rng(options.seed, batch.epoch, batch.indices[0], FLIP_STREAM).random(2 + batch.rots.shape[2])
    return Flips.of(torch.from_numpy(uniform[None]))


@full_float32()
def predict(network, batch, grid):
    """Probabilities of each sample of a Batch, all in float32: (Z, X), of several classes (K, Z, X).

    Nones of a network without a seg.
    """
    with torch.no_grad():
        outputs = run_network(network.model, batch, grid)
    if "seg" not in outputs:
        return [None] * len(batch)
    outputs, not_finite = finite_outputs(outputs)
    for (facts, *_), bad in zip(batch.facts, not_finite.tolist(), strict=True):
        if bad:
            say(f"note: {facts.key}: outputs that are not finite, and predict nothing")
    seg = outputs["seg"].sigmoid().cpu()
    return list(seg if seg.shape[1] > 1 else seg[:, 0])
