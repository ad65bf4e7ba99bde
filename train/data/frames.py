"""Frames of a keyframe's window that are known on the host alone, where poses are float64: the sensors' own clocks.

As float32, a pose in map coordinates (UTM) would err by half a metre.
"""

import numpy as np

from common.geometry import rigid_inverse

GAP = 1.5  # keyframe intervals between two keyframes, from which on they do not follow each other


def ego_T_camegos(global_T_ego, global_T_camego):
    """(S,4,4) float32: the ego at the keyframe's time from the ego at each camera's. Poses float64, (4,4) and (S,4,4)."""
    return (rigid_inverse(global_T_ego) @ global_T_camego).astype(np.float32)


def ego_T_nows(global_T_ego):
    """(T,4,4) float32: the ego at each time of a window from the ego at its first. global_T_ego: (T,4,4) float64."""
    return (rigid_inverse(global_T_ego) @ global_T_ego[0]).astype(np.float32)


def ages_s(timestamps_us):
    """(T,) float32: seconds from each keyframe of a window to its first. timestamps_us: (T,) int64."""
    times = np.asarray(timestamps_us, np.int64)
    return ((times[0] - times) / 1e6).astype(np.float32)


def are_real(timestamps_us, interval_s):
    """(T,) bool: which keyframes of a window are what they stand for.

    In a window that looks back a keyframe is real where it lies before the one ahead of it, by at most GAP keyframe intervals,
    and where that one is real; a scene's first keyframe is repeated where there is none before it. In one that looks forward,
    Simple-BEV's, all are.
    """
    back_s = -np.diff(np.asarray(timestamps_us, np.int64)) / 1e6
    sound = (back_s < 0) | ((back_s > 0) & (back_s <= GAP * interval_s))
    return np.logical_and.accumulate(np.concatenate([[True], sound]))
