"""Pictures of an evaluation's worst, median and best samples."""

import numpy as np

from common.files import write_atomically
from common.progress import progress
from train.evaluation.figures import keys_of
from train.jobs.showing import sheet_of
from train.pictures.layout import encode
from train.samples import Network, Samples

WIDTH_PX = 1000


def write_gallery(out, evaluation, label, parts, count):
    """Write `count` sheets, a third each of the worst, the median and the best samples by IoU, as JPEGs; how many.

    out: folder; pictures of earlier evaluations in it are replaced. evaluation: Evaluation. label: whose IoU counts. parts:
    train.evaluate.Parts. Samples in which nothing was predicted or true are not among them.
    """
    for old in out.glob("[0-9][0-9]_*.jpg"):
        old.unlink()
    chosen = chosen_rows(evaluation.rows, label, count)
    if not chosen or parts.loader.reader.is_stream:
        return 0
    samples = Samples(parts.loader.reader.shards)
    network = Network(parts.options, parts.network.eval(), parts.step, parts.loader.stage.device)
    for number, (kind, row, value) in enumerate(progress(chosen, "pictures", "gallery")):
        picture = sheet_of(samples, samples.find(row.key)[0], network, WIDTH_PX)
        write_atomically(out / f"{number:02d}_{kind}_IoU_{value:.3f}_{row.key}.jpg", encode(picture, ".jpg"))
    return len(chosen)


def chosen_rows(rows, label, count):
    """List of (kind, row, IoU), at most `count`, none twice: "worst", "median", "best", each sorted by IoU."""
    keys = keys_of(rows, label)
    scored = ((_iou([row.counts[key] for key in keys]), row.key, row) for row in rows)
    scored = sorted(
        (one for one in scored if not np.isnan(one[0])), key=lambda one: one[:2]
    )  # NaN has no place in an order
    each = min(count, len(scored)) // 3
    if not each:
        return [("worst", row, value) for value, _, row in scored[:count]]
    middle = (len(scored) - each) // 2
    places = {"worst": 0, "median": middle, "best": len(scored) - each}
    return [(kind, row, value) for kind, at in places.items() for value, _, row in scored[at : at + each]]


def _iou(counts):
    """IoU of (R,3) counts; of several classes, a list of these, the mean of those that there are. NaN where there are none."""
    found = []
    for own in counts:
        both, predicted, truth = own.sum(0).tolist()
        either = predicted + truth - both
        found += [both / either] if either else []
    return sum(found) / len(found) if found else float("nan")
