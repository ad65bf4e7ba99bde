"""Do the labels that are asked for occur at all? A typo in a category would train on empty maps and show an IoU of 0."""

import itertools

import numpy as np

from common.record import SAMPLE, RecordError, decode_json

FEW = 8  # keyframes that are looked at one by one; where these do not do, the rest is fetched ahead


def check_categories(source, wanted, all_of_them):
    """Raise ValueError, listing the categories that are there, where target categories match no box of the shards.

    Keyframes are looked at spread over the set, first a few far apart, until every category was met: of usual sets one or two.
    Only where one is missing all are read (34,000 take some ten seconds from a local disk).

    Args:
        source: see train.data.sources; not being read elsewhere. wanted: prefixes of categories.
        all_of_them: each has to occur; else one of them is enough, as in a small set for evaluation.
    """
    if source.is_stream:  # that cannot be read here and there; evaluation counts the labelled cells
        return
    missing, there = list(wanted), set()
    for categories in _categories(source):
        there.update(categories)
        missing = [prefix for prefix in missing if not any(name.startswith(prefix) for name in there)]
        if not missing or (not all_of_them and len(missing) < len(wanted)):
            return
    raise ValueError(
        f"--target_categories {','.join(missing)}: no box of the shards is of such a category; "
        f"they have {', '.join(sorted(there)) or 'no boxes at all'}"
    )


def _categories(source):
    """Lists of the categories of keyframes; of damaged ones none, since these are named where they are loaded."""
    numbers, members = _spread(len(source)), [SAMPLE]
    try:
        for place, number in enumerate(numbers):
            if place == FEW:
                source.begin(numbers[FEW:], itertools.repeat(members, len(numbers) - FEW))
            try:
                yield decode_json(source.read(number, members)[SAMPLE])["boxes"]["category"]
            except (RecordError, KeyError, TypeError):
                continue
    finally:
        source.close()


def _spread(count):
    """The numbers below `count`, such that the first ones lie far apart."""
    step = max(1, round(count * 0.618))
    while np.gcd(step, count) > 1:
        step += 1
    return (np.arange(count) * step % max(count, 1)).tolist()
