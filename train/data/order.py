"""The order of samples: a pure function of (seed, epoch). Neither workers nor ranks nor a resumed run change it."""

import numpy as np

# Streams of random numbers that must not share a seed.
ORDER_STREAM, SAMPLE_STREAM, FLIP_STREAM = 0, 1, 2


def epoch_order(count, seed, epoch, shuffle):
    """int64 permutation of `count` samples for one epoch; the identity without `shuffle`."""
    if not shuffle:
        return np.arange(count)
    return np.random.default_rng((ORDER_STREAM, seed, epoch)).permutation(count)


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
