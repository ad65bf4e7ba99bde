"""Windows: which keyframes make one sample."""

import numpy as np

from common.errors import InputError

TEMPORAL_PATTERNS = {
    1: [[0]],
    2: [[0, 1], [0, 2]],
    3: [[0, 1, 2], [0, 1, 3], [0, 2, 3]],
    5: [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [0, 1, 2, 4, 5], [0, 1, 3, 4, 5], [0, 2, 3, 4, 5]],
}


def windows_of(reader, order):
    """The windows of a source's keyframes that an OrderConfig asks for, each with the keyframes that are loaded."""
    if order.past:
        return past_windows(reader.whole_scene_of, order.past)
    found = windows(reader.scene_of, order.seqlen, order.temporal_aug)
    return [window[: order.frames] for window in found]


def past_windows(scene_of, past):
    """For each keyframe k its window [k, k-1, … k-past]; a scene's first keyframe is repeated where there is none before it.

    scene_of: scene of each keyframe, keyframes of a scene being consecutive and in time order.
    """
    scene_of = np.asarray(scene_of)
    begins = np.concatenate([[True], np.diff(scene_of) != 0]) if len(scene_of) else np.zeros(0, bool)
    numbers = np.arange(len(scene_of))
    first = np.maximum.accumulate(np.where(begins, numbers, 0))
    return np.maximum(numbers[:, None] - np.arange(past + 1), first[:, None]).tolist()


def windows(scene_of, seqlen=1, temporal_aug=False):
    """Windows of `seqlen` keyframes that stay within a scene, in Simple-BEV's order.

    Args:
        scene_of: scene of each keyframe, keyframes of a scene being consecutive and in time order.
        temporal_aug: also the patterns that skip one keyframe (seqlen 1, 2, 3 or 5).
    Returns:
        List of lists of `seqlen` keyframe numbers.
    Raises:
        ValueError: a seqlen that is not positive, or that has no patterns for temporal_aug.
    """
    if seqlen < 1:
        raise InputError(f"seqlen is {seqlen}; it must be at least 1")
    if temporal_aug and seqlen not in TEMPORAL_PATTERNS:
        raise InputError(f"temporal_aug has patterns for seqlen 1, 2, 3 and 5, not {seqlen}")
    patterns = TEMPORAL_PATTERNS[seqlen] if temporal_aug else [list(range(seqlen))]
    out = []
    for start in range(len(scene_of)):
        for pattern in patterns:
            last = start + pattern[-1]
            if last < len(scene_of) and scene_of[last] == scene_of[start]:
                out.append([start + step for step in pattern])
    return out
