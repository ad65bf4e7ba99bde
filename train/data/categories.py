"""Do the labels that are asked for occur at all? A typo in a category would train on empty maps and show an IoU of 0."""

import itertools

import numpy as np

from common.errors import InputError
from common.record import SAMPLE, RecordError, decode_json

FEW = 8  # keyframes that are looked at one by one; where these do not do, the rest is fetched ahead


def check_categories(source, wanted, all_of_them):
    """Raise ValueError, listing the categories that are there, where target categories match no box of the shards.

    Keyframes are looked at spread over the set, first a few far apart, until every category was met: of usual sets one or two.
    Only where one is missing all are read (34,000 take some ten seconds from a local disk).

    A stream cannot be read here and there: its Loader looks at the epoch as it passes.

    Args:
        source: see train.data.sources; not being read elsewhere. wanted: prefixes of categories.
        all_of_them: each has to occur; else one of them is enough, as in a small set for evaluation.
    """
    if source.is_stream:
        return
    there = set()
    for categories in _categories(source):
        there.update(categories)
        if not _missing(there, wanted, all_of_them):
            return
    check_met(there, wanted, all_of_them, "the shards")


def check_met(there, wanted, all_of_them, where):
    """Raise ValueError where `wanted` match none of `there`, the categories of all boxes of `where`; see check_categories."""
    missing = _missing(there, wanted, all_of_them)
    if missing:
        raise InputError(
            f"--target_categories {','.join(missing)}: no box of {where} is of such a category; "
            f"they have {', '.join(sorted(there)) or 'no boxes at all'}"
        )


def _missing(there, wanted, all_of_them):
    missing = [prefix for prefix in wanted if not any(name.startswith(prefix) for name in there)]
    return missing if all_of_them or len(missing) == len(wanted) else []


def _categories(source):
    """Lists of the categories of keyframes; of damaged ones none, since these are named where they are loaded."""
    numbers, members = _spread(len(source)), [SAMPLE]
    try:
        for place, number in enumerate(numbers):
            if place == FEW:
                source.begin(numbers[FEW:], itertools.repeat(members, len(numbers) - FEW))
            try:
                names = decode_json(source.read(number, members)[SAMPLE])["boxes"]["category"]
                yield [name for name in names if isinstance(name, str)]
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
