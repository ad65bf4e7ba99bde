"""How a car and the objects around it move between what a data set states: poses in between, velocities from centres."""

import bisect

import numpy as np

from preprocess.frames import quaternion_of, transform

MAX_VELOCITY_STEP_S = 1.5  # between two annotations, as in the devkit's box_velocity


class Track:
    """Poses of a car over time: between two stated ones turned evenly about one axis (Shoemake's slerp) and moved evenly.

    Before the first and after the last it goes on as between the nearest two.

    stamps_us: increasing. poses: (n, 4, 4) global_T_ego.
    """

    def __init__(self, stamps_us, poses):
        self.stamps_us, self.poses = list(stamps_us), np.asarray(poses, np.float64)

    def at(self, stamp_us):
        """(4, 4) at a time in microseconds."""
        if len(self.stamps_us) == 1:
            return self.poses[0]
        after = min(max(bisect.bisect_right(self.stamps_us, stamp_us), 1), len(self.stamps_us) - 1)
        begin, end = self.stamps_us[after - 1], self.stamps_us[after]
        part = (stamp_us - begin) / (end - begin)
        if part == 0:
            return self.poses[after - 1]
        first, last = self.poses[after - 1], self.poses[after]
        quaternion = _slerp(quaternion_of(first[:3, :3]), quaternion_of(last[:3, :3]), part)
        return transform(quaternion, first[:3, 3] + part * (last[:3, 3] - first[:3, 3]))


def _slerp(first, last, part):
    cosine = float(first @ last)
    if cosine < 0:  # q and -q turn alike: the shorter way
        last, cosine = -last, -cosine
    angle = np.arccos(min(cosine, 1.0))
    if angle < 1e-9:
        return first + part * (last - first)
    return (np.sin((1 - part) * angle) * first + np.sin(part * angle) * last) / np.sin(angle)


def velocities(names, places, stamp_us, around):
    """[x, y, z] m/s of each object in the frame of its places, or None: from where the frames around have it, or from one of
    them and its own place.

    names: of n objects. places: (3,) of each at stamp_us. around: (stamp_us, {name: place}) of the frames before and after.
    """
    out = []
    for name, place in zip(names, places, strict=True):
        seen = sorted(
            [(stamp_us, place), *((t, there[name]) for t, there in around if name in there)], key=lambda one: one[0]
        )
        (begin, start), (end, stop) = seen[0], seen[-1]
        seconds = 1e-6 * (end - begin)
        sound = 0 < seconds <= MAX_VELOCITY_STEP_S * (len(seen) - 1)
        out.append(((np.asarray(stop) - np.asarray(start)) / seconds).tolist() if sound else None)
    return out
