"""Networks with a memory: what one sample of a scene leaves behind for the next.

Such a network has reset(which), stream_state() and load_stream_state(state); README.md beside this file says what they are. Its
memory has a row for each slot of the batch, and is state of the run as its weights are.
"""

from contextlib import contextmanager

import torch

from common.errors import InputError

METHODS = ("reset", "stream_state", "load_stream_state")


def has_memory(network):
    """Whether the network has the methods of one. Raises ValueError where it has some of them alone."""
    missing = [name for name in METHODS if not callable(getattr(network, name, None))]
    if missing and len(missing) < len(METHODS):
        raise InputError(
            f"{type(network).__name__} has {', '.join(name for name in METHODS if name not in missing)} and no "
            f"{', '.join(missing)}; a network with a memory has all of {', '.join(METHODS)}"
        )
    return not missing


def begin(network, batch):
    """Let the network forget in those rows of the Batch that do not go on from the batch before."""
    if has_memory(network):
        network.reset(batch.starts)


def memory_of(network):
    """A copy of the network's memory: dict from name to tensor (rows, …); empty where there is none."""
    return (
        {name: value.detach().clone() for name, value in network.stream_state().items()} if has_memory(network) else {}
    )


def load_memory(network, state, device):
    """Give the network back what memory_of gave, moved to the device; an empty one lets it forget everything."""
    if has_memory(network):
        network.load_stream_state({name: value.to(device, copy=True) for name, value in state.items()})


@contextmanager
def apart(network, state, device):
    """Within, the network remembers `state`, a dict that at the end holds what it then does; after it, what it did before."""
    before = memory_of(network)
    load_memory(network, state, device)
    try:
        yield
    finally:
        state.clear()
        state.update(memory_of(network))
        load_memory(network, before, device)


def joined(memories):
    """The memory of a global batch of those of its ranks, in their order, on the CPU. A rank without rows may have none."""
    names = dict.fromkeys(name for memory in memories for name in memory)
    return {name: torch.cat([memory[name].cpu() for memory in memories if name in memory]) for name in names}


def share_of(memory, order):
    """The rows of a global batch's memory that the rank of an OrderConfig plays; empty where it plays none."""
    share = order.batch_size // order.world_size
    rows = {name: value[order.rank * share : (order.rank + 1) * share] for name, value in memory.items()}
    return {name: value for name, value in rows.items() if len(value)}
