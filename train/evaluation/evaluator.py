"""Evaluation of a network over every sample of a loader, on any number of ranks."""

from train.evaluation.counting import ring_map
from train.evaluation.measure import measure
from train.evaluation.samples import Evaluation
from train.model.finite import finite_outputs
from train.model.forward import run_network, without_gradients
from train.processes.ranks import say

NAMED = 5  # samples, where a network's outputs are not finite


def evaluate(network, batches, grid, world, autocast=None, change=None):
    """The Evaluation over every batch of every rank, on rank 0; None on the others.

    One forward pass a batch serves all labels. The result does not depend on how many ranks share the batches, but for what the
    network itself makes of another batch size. Outputs that are not finite are told with their samples, and predict nothing.

    Args:
        network: see train/model/README.md; left in evaluation mode. batches: iterable of this rank's Batch objects.
        grid: VoxUtil. world: distributed.World. autocast: dtype of the network's arithmetic, None for float32.
        change: Batch -> Batch, what is done to each before the network sees it; labels are those of the batch itself.
    Raises:
        ValueError: the network gives no seg.
    """
    rings = ring_map(grid).to(world.device)
    own, wrong = Evaluation(), []

    def run(batch):
        return run_network(network, change(batch) if change else batch, grid, autocast=autocast)

    for batch, outputs in without_gradients(network, run, batches):
        if "seg" not in outputs:
            raise ValueError(f"{type(network).__name__} gives no seg, so there is no IoU to evaluate")
        outputs, not_finite = finite_outputs(outputs)
        own.add(*measure(outputs, batch, rings))
        wrong += [f.key for (f, *_), bad in zip(batch.facts, not_finite.tolist(), strict=True) if bad]
    wrong = sorted(key for part in world.gather(wrong) for key in part)
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        say(f"note: outputs that are not finite, and predict nothing, in {', '.join(wrong[:NAMED])}{more}")
    whole = Evaluation()
    for part in world.gather(own):
        whole.add(part.rows, part.scenes)
    return whole.sorted() if world.leads else None
