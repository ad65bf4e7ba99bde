"""Which samples of an evaluation are worth a picture: its worst, its median and its best."""

import numpy as np

from train.evaluation.figures import keys_of


def chosen_rows(rows, label, count):
    """List of (kind, row, IoU), at most `count`, none twice: "worst", "median", "best", each sorted by IoU.

    Each kind is of as many different scenes as there are, before a scene has a second one.
    """
    keys = keys_of(rows, label)
    scored = ((iou_of_counts([row.counts[key] for key in keys]), row.key, row) for row in rows)
    scored = sorted(
        (one for one in scored if not np.isnan(one[0])), key=lambda one: one[:2]
    )  # NaN has no place in an order
    each = min(count, len(scored)) // 3
    if not each:
        return [("worst", row, value) for value, _, row in _of_many_scenes(scored, count)]
    out = {"worst": _of_many_scenes(scored, each)}
    taken = {key for _, key, _ in out["worst"]}
    left = [one for one in scored if one[1] not in taken]
    out["best"] = _of_many_scenes(left[::-1], each)[::-1]
    taken = {key for _, key, _ in out["best"]}
    left = [one for one in left if one[1] not in taken]
    middle = np.argsort(np.abs(np.arange(len(left)) - (len(left) - 1) / 2), kind="stable")
    out["median"] = sorted(_of_many_scenes([left[n] for n in middle], each), key=lambda one: one[:2])
    return [(kind, row, value) for kind in ("worst", "median", "best") for value, _, row in out[kind]]


def _of_many_scenes(scored, count):
    """The first `count` of (IoU, key, row), one per scene as far as these go, in the order in which they lie."""
    seen, turns = {}, []
    for place, (_, _, row) in enumerate(scored):
        turn = seen[row.scene] = seen.get(row.scene, -1) + 1
        turns.append((turn, place))
    return [scored[place] for place in sorted(place for _, place in sorted(turns)[:count])]


def iou_of_counts(counts):
    """IoU of (R,3) counts; of several classes, a list of these, the mean of those that there are. NaN where there are none."""
    found = []
    for own in counts:
        both, predicted, truth = own.sum(0).tolist()
        either = predicted + truth - both
        found += [both / either] if either else []
    return sum(found) / len(found) if found else float("nan")
