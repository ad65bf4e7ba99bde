"""The one geometry behind every sensor: boxes on flat ground and a car that drives through them.

Global frame: X east, Y north, Z up, ground at 0. Ego: x forward, y left, z up, on the ground.
"""

from dataclasses import dataclass

import numpy as np

# Category -> (share, width, length, height in metres, may move).
KINDS = {
    "vehicle.car": (0.45, 1.9, 4.6, 1.7, True),
    "vehicle.truck": (0.08, 2.5, 7.5, 3.0, True),
    "vehicle.bus.rigid": (0.04, 2.9, 11.0, 3.4, True),
    "vehicle.trailer": (0.03, 2.5, 11.5, 3.8, False),
    "vehicle.construction": (0.02, 2.8, 6.5, 3.2, False),
    "vehicle.motorcycle": (0.04, 0.8, 2.1, 1.5, True),
    "vehicle.bicycle": (0.04, 0.6, 1.7, 1.3, True),
    "human.pedestrian.adult": (0.18, 0.7, 0.7, 1.75, True),
    "movable_object.trafficcone": (0.12, 0.4, 0.4, 1.0, False),
}
KEYFRAME_S = 0.5
BUILDING = "building"  # an occluder that nuScenes does not annotate


@dataclass
class Thing:
    """A box: category, size (w, l, h), position at time 0 (x, y), yaw, speed along it, colour RGB."""

    category: str
    wlh: np.ndarray
    xy: np.ndarray
    yaw: float
    speed: float
    colour: np.ndarray

    def pose(self, seconds):
        """global_T_box (4, 4); the box's middle."""
        step = self.speed * seconds * np.array([np.cos(self.yaw), np.sin(self.yaw)])
        return planar(self.yaw, [*(self.xy + step), self.wlh[2] / 2])


def planar(yaw, xyz):
    """a_T_b (4, 4) of a frame turned by yaw about Z."""
    out = np.eye(4)
    out[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    out[:3, 3] = xyz
    return out


class Scene:
    """One drive. Everything follows from (seed, number)."""

    def __init__(self, seed, number, seconds):
        rng = np.random.default_rng((seed, number))
        self.start, self.heading = rng.uniform(300, 1500, 2), rng.uniform(-np.pi, np.pi)
        self.speed, self.turn = rng.uniform(2, 7), rng.uniform(-0.03, 0.03)
        self.light = rng.uniform(0.55, 1.15)
        self.sky, self.ground = rng.uniform(120, 230, 3), rng.uniform(60, 120) + rng.uniform(-12, 12, 3)
        self.things = self._things(rng, self.speed * seconds)

    def ego(self, seconds):
        """global_T_ego (4, 4)."""
        yaw = self.heading + self.turn * seconds
        middle = self.heading + self.turn * seconds / 2
        step = self.speed * seconds * np.array([np.cos(middle), np.sin(middle)])
        return planar(yaw, [*(self.start + step), 0.0])

    def _things(self, rng, travel):
        names = list(KINDS)
        shares = np.array([KINDS[n][0] for n in names])
        along, side = np.array([np.cos(self.heading), np.sin(self.heading)]), None
        side = np.array([-along[1], along[0]])
        things, taken = [], []

        def place(size, low, high):
            radius = np.hypot(size[0], size[1]) / 2
            for _ in range(20):
                a, b = rng.uniform(-35, 35 + travel), rng.uniform(low, high) * rng.choice([-1, 1])
                xy = self.start + a * along + b * side
                if all(np.hypot(*(xy - other)) > radius + r + 0.4 for other, r in taken):
                    taken.append((xy, radius))
                    return xy
            return None

        for _ in range(int(rng.integers(28, 46))):
            name = names[rng.choice(len(names), p=shares / shares.sum())]
            _, *wlh, moves = KINDS[name]
            wlh = np.array(wlh) * rng.uniform(0.88, 1.12, 3)
            xy = place(wlh, 3.2, 24)
            if xy is None:
                continue
            lane = rng.random() < 0.7
            yaw = self.heading + (rng.choice([0, np.pi]) + rng.normal(0, 0.08) if lane else rng.uniform(-np.pi, np.pi))
            speed = rng.uniform(0.5, 1.5) if moves and rng.random() < 0.3 else 0.0
            things.append(Thing(name, wlh, xy, yaw, speed, rng.uniform(30, 235, 3)))
        for _ in range(int(rng.integers(6, 12))):
            wlh = rng.uniform([6, 6, 4], [14, 20, 12])
            xy = place(wlh, 30, 45)
            if xy is not None:
                yaw = self.heading + rng.normal(0, 0.1)
                things.append(Thing(BUILDING, wlh, xy, yaw, 0.0, rng.uniform(70, 200, 3)))
        return things
