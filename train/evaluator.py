"""The one loop over batches without gradients: validation while training, and the evaluation of a checkpoint."""

import torch


def without_gradients(network, run, batches):
    """Yield (batch, run(batch)) of each batch, None left out; the network is put into evaluation mode and left in it."""
    network.eval()
    for batch in batches:
        if batch is None:
            continue
        with torch.no_grad():
            result = run(batch)
        yield batch, result


def evaluate(step, batches, world):
    """Means of a LossStep's figures over batches, and its counts summed over all samples, of all ranks.

    Args:
        step: LossStep; it is left in evaluation mode. batches: iterable; None where this rank has no share of one.
        world: distributed.World; every rank calls this.
    Returns:
        (dict of means, (2,) float64 intersection and union on the CPU or (0,) where the network gives no seg, the last batch
        and its outputs or None).
    """
    sums = seen = None
    for batch, (_, figures, outputs) in without_gradients(step, step, batches):
        seen = batch, outputs
        figures = torch.cat([figures, figures.new_ones(1)])
        sums = figures if sums is None else sums + figures
    # A rank may have had no batch at all: it learns from the others how many figures there are.
    length = world.any(0 if sums is None else len(sums))
    if not length:
        raise ValueError("no sample to evaluate")
    if sums is None:
        sums = torch.zeros(length, dtype=torch.float64, device=world.device)
    sums = world.sum(sums).cpu()
    means, _ = step.split(sums[:-1] / sums[-1], training=False)
    return means, sums[len(means) : -1], seen
