"""The order of samples: a pure function of (seed, epoch). Neither workers nor ranks nor a resumed run change it.

Two orders: shuffled, and streams, in which every slot of the batch plays whole scenes in time order, one after another.
"""

import numpy as np

# Streams of random numbers that must not share a seed.
ORDER_STREAM, SAMPLE_STREAM, FLIP_STREAM = 0, 1, 2
BEV_STREAM, DROP_STREAM, COLOUR_STREAM = 3, 4, 5
MIX_STREAM = 6


def epoch_order(count, seed, epoch, shuffle):
    """int64 permutation of `count` samples for one epoch; the identity without `shuffle`."""
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(count)


def stream_slots(scene_of, slots, seed, epoch, shuffle):
    """The samples of each slot of a batch over an epoch: whole scenes, in time order.

    Scenes are dealt in their order, a random one with `shuffle`: each to the slot that has the fewest samples so far, of
    several the first. Without `shuffle` the longest slots then come first: those that still go on are always the first ones.

    Args:
        scene_of: scene of each sample, samples of a scene being consecutive and in time order. slots: of a global batch.
    Returns:
        List of `slots` int64 arrays of sample numbers; together every sample once.
    """
    starts = np.flatnonzero(np.diff(scene_of, prepend=-1))
    scenes = np.split(np.arange(len(scene_of)), starts[1:])
    own, lengths = [[] for _ in range(slots)], np.zeros(slots, np.int64)
    for scene in epoch_order(len(scenes), seed, epoch, shuffle):
        slot = int(lengths.argmin())
        own[slot].append(scenes[scene])
        lengths[slot] += len(scenes[scene])
    out = [np.concatenate(parts) if parts else np.zeros(0, np.int64) for parts in own]
    return out if shuffle else [out[slot] for slot in np.argsort(-lengths, kind="stable")]


def num_stream_batches(slots, rank=0, world_size=1, drop_last=True):
    """Batches that one rank sees in an epoch of streams. Each rank plays a contiguous share of the slots.

    With drop_last every rank's epoch ends with the slot of all that ends first; without, when all of its own have ended.
    """
    own = slots if drop_last else _own(slots, rank, world_size)
    return (min if drop_last else max)(map(len, own))


def stream_batches(slots, rank=0, world_size=1, drop_last=True):
    """The samples of this rank in each of its batches: lists of lists, one sample from each of its slots that go on."""
    own = _own(slots, rank, world_size)
    count = num_stream_batches(slots, rank, world_size, drop_last)
    return [[int(slot[n]) for slot in own if n < len(slot)] for n in range(count)]


def _own(slots, rank, world_size):
    share = len(slots) // world_size
    return slots[rank * share : (rank + 1) * share]


def num_batches(count, batch_size, rank=0, world_size=1, drop_last=True):
    """Batches that one rank sees in an epoch of `count` samples.

    batch_size counts all ranks' samples. With drop_last every rank sees count // batch_size; without, the last batch
    may be partial, and a rank whose share of it is empty sees one batch less.
    """
    full, rest = divmod(count, batch_size)
    return full + (not drop_last and rest > rank * (batch_size // world_size))


def rank_batch(order, number, batch_size, rank=0, world_size=1):
    """The samples of global batch `number` that this rank loads: a contiguous share, in global order."""
    share = batch_size // world_size
    start = number * batch_size + rank * share
    return order[start : min(start + share, (number + 1) * batch_size)]


def sample_rng(seed, epoch, sample, stream=SAMPLE_STREAM):
    """The random generator of one sample in one epoch, whatever was drawn before or elsewhere."""
    return np.random.default_rng((stream, seed, epoch, sample))
