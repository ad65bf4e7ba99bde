"""The one geometry behind every sensor: boxes on flat ground, the streets painted on it, and a car that drives there.

Global frame: X east, Y north, Z up, ground at 0. Ego: x forward, y left, z up, on the ground.
"""

import numpy as np

from preprocess.synth.conditions import LOCATIONS, Conditions
from preprocess.synth.roads import BEYOND_M, lay_out
from preprocess.synth.traffic import populate

KEYFRAME_S = 0.5
SPEED = (2.0, 7.0)  # of the ego, metres per second
_COLUMNS = 3  # of the grid of scenes at a location
_RATE_S = 0.05


def planar(yaw, xyz):
    """a_T_b (4, 4) of a frame turned by yaw about Z."""
    out = np.eye(4)
    out[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    out[:3, 3] = xyz
    return out


class Scene:
    """One drive of `seconds` through streets of its own. Everything follows from (seed, number).

    occluders: with hoardings between the car and much of the traffic, see preprocess.synth.traffic.
    """

    def __init__(self, seed, number, seconds, occluders=False):
        rng = np.random.default_rng((seed, number))
        self.conditions = Conditions.of(number)
        self.speed = rng.uniform(*SPEED)
        self.travel = self.speed * seconds
        place = _place(number, SPEED[1] * seconds + 2 * BEYOND_M + 20)
        self.roads = lay_out(rng, place, self.conditions.drive_left, self.travel)
        main = self.roads.main
        self.lane = int(rng.integers(main.lanes))
        self.left = main.lane(self.lane, 1)
        hoardings = np.random.default_rng((seed, number, 1)) if occluders else None
        self.things = populate(rng, self, hoardings)
        self.sizes = np.array([t.wlh for t in self.things])
        self.look_seed = int(rng.integers(2**31))
        self._groups = [
            (curve, np.flatnonzero([t.curve is curve for t in self.things]))
            for curve in (main.curve, *(side.curve for side in self.roads.sides))
        ]
        self._moves = np.array([[t.s, t.left, t.turn, t.along] for t in self.things])

    def ego(self, seconds):
        """global_T_ego (4, 4)."""
        x, y, yaw = self.roads.main.curve.at(self.speed * seconds, self.left)
        return planar(yaw, [x, y, 0.0])

    def ego_velocity(self, seconds):
        """(2,) metres per second, global."""
        return (self.ego(seconds + _RATE_S)[:2, 3] - self.ego(seconds - _RATE_S)[:2, 3]) / (2 * _RATE_S)

    def places(self, seconds):
        """(things, 3): x, y, yaw."""
        out = np.empty((len(self.things), 3))
        s, left, turn, along = self._moves.T
        for curve, members in self._groups:
            out[members] = curve.at(s[members] + along[members] * seconds, left[members])
        out[:, 2] += turn
        return out

    def poses(self, seconds):
        """global_T_box (things, 4, 4); the boxes' middles."""
        x, y, yaw = self.places(seconds).T
        out = np.zeros((len(x), 4, 4))
        out[:, 0, 0], out[:, 0, 1], out[:, 1, 0], out[:, 1, 1] = np.cos(yaw), -np.sin(yaw), np.sin(yaw), np.cos(yaw)
        out[:, 0, 3], out[:, 1, 3], out[:, 2, 3] = x, y, self.sizes[:, 2] / 2
        out[:, 2, 2] = out[:, 3, 3] = 1.0
        return out

    def velocities(self, seconds):
        """(things, 2) metres per second, global."""
        return (self.places(seconds + _RATE_S) - self.places(seconds - _RATE_S))[:, :2] / (2 * _RATE_S)


def _place(number, pitch):
    """(x, y) of the middle of a scene: those of one location share its map and must not overlap."""
    row, column = divmod(number // len(LOCATIONS), _COLUMNS)
    return pitch * (column + 0.5), pitch * (row + 0.5)
