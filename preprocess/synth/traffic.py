"""Who is on a scene's streets: traffic in its lanes, cars at the roadside, people on the walkways, houses behind them.

Nothing overlaps at any time: what shares a lane shares its speed, and on the side roads cars wait or drive away.
"""

import numpy as np

from preprocess.synth.roads import CARPARK_M, LANE_M, PARKING_M, STOP_M, WALK_M, carpark_rows
from preprocess.synth.things import BUILDING, KINDS, SCREEN, Thing

_DRIVING = ("vehicle.car", 0.7), ("vehicle.truck", 0.1), ("vehicle.bus.rigid", 0.08), ("vehicle.motorcycle", 0.12)
_PARKED = ("vehicle.car", 0.74), ("vehicle.truck", 0.09), ("vehicle.trailer", 0.05), ("vehicle.bicycle", 0.12)
_CARS = (("vehicle.car", 1.0),)
_AROUND_M = 45.0  # of the drive that is populated
_LIMIT, _BUILDINGS = 58, 10  # at most so many boxes per scene: what a nuScenes sample holds, and quick to draw
_CONE_RGB = np.array([235.0, 90.0, 25.0])
_SCREEN_M, _GAP_M, _SCREEN_HIGH_M, _SCREEN_WIDE_M, _SCREEN_SPEED = (4.0, 6.0), (10.0, 16.0), (2.2, 2.6), 0.1, 12.0


class _Crowd:
    """Collects the things of one scene."""

    def __init__(self, rng, scene):
        self.rng, self.main, self.sides = rng, scene.roads.main, scene.roads.sides
        self.scene, self.things, self.houses = scene, [], []
        self.low, self.high = -_AROUND_M, scene.travel + _AROUND_M
        self.works = self._works_zone()

    def pick(self, kinds):
        """(category, size (w, l, h)) drawn by the shares in `kinds`."""
        names, shares = zip(*kinds, strict=True)
        name = names[self.rng.choice(len(names), p=shares)]
        return name, np.array(KINDS[name]) * self.rng.uniform([0.94, 0.9, 0.9], [1.06, 1.1, 1.1])

    def row(self, kinds, span, gap, most=99):
        """(category, size, s) of things one behind the other within span (low, high), gap (least, most) metres apart."""
        out, at = [], span[0] + self.rng.uniform(0, 1) * gap[0]
        while len(out) < most:
            name, size = self.pick(kinds)
            if at + size[1] > span[1]:
                break
            out.append((name, size, at + size[1] / 2))
            at += size[1] + self.rng.uniform(*gap)
        return out

    def add(self, name, size, road, s, left, *, turn=0.0, along=0.0, attribute="", colour=None):
        """Enter one thing."""
        colour = self.rng.uniform(30, 235, 3) if colour is None else colour
        self.things.append(Thing(name, size, road.curve, s, left, turn, along, colour, attribute))

    def drive(self, road, lane, direction, span, gap, speed, most=99):
        """Vehicles in a lane that all drive at `speed`; at 0 they wait."""
        for name, size, s in self.row(_DRIVING, span, gap, most):
            left = road.lane(lane, direction) + self.rng.normal(0, 0.05)
            state = "moving" if speed else "stopped"
            attribute = "cycle.with_rider" if name == "vehicle.motorcycle" else f"vehicle.{state}"
            turn = 0.0 if direction > 0 else np.pi
            self.add(name, size, road, s, left, turn=turn, along=direction * speed, attribute=attribute)

    def park(self, road, side, span, gap):
        """Vehicles at the kerb of one side, facing as the traffic beside them does."""
        left = side * (road.half - PARKING_M / 2)
        for name, size, s in self.row(_PARKED, span, gap):
            turn = (0.0 if road.direction(left) > 0 else np.pi) + self.rng.normal(0, 0.015)
            attribute = "cycle.without_rider" if name == "vehicle.bicycle" else "vehicle.parked"
            self.add(name, size, road, s, left, turn=turn, attribute=attribute)

    def _works_zone(self):
        """(s, side) of road works at the kerb, clear of the side roads, or None."""
        s, side = self.rng.uniform(-20, self.scene.travel + 25), int(self.rng.choice([-1, 1]))
        clear = all(not low - 8 < s < high + 8 for low, high in self.main.gaps(WALK_M))
        return (s, side) if clear else None

    def traffic(self):
        """The lanes of the main road; the ego's own lane goes at the ego's speed."""
        rng, scene, main = self.rng, self.scene, self.main
        for direction in (1, -1):
            for lane in range(main.lanes):
                if direction > 0 and lane == scene.lane:
                    self.drive(main, lane, 1, (rng.uniform(12, 22), 62.0), (9, 28), scene.speed)
                    self.drive(main, lane, 1, (-self.high, rng.uniform(-14, -9)), (9, 28), scene.speed, 2)
                    continue
                self.drive(main, lane, direction, (self.low, self.high), (5, 32), rng.uniform(2, 8))

    def roadside(self):
        """Cars parked along the main road, and road works with their cones."""
        main = self.main
        pieces = [(max(low, self.low), min(high, self.high)) for low, high in main.pieces(WALK_M + 4)]
        for side in (-1, 1):
            for low, high in pieces:
                zone = self.works if self.works and self.works[1] == side else None
                if zone and low < zone[0] < high:
                    self.park(main, side, (low, zone[0] - 7), (0.8, 11))
                    self.park(main, side, (zone[0] + 7, high), (0.8, 11))
                else:
                    self.park(main, side, (low, high), (0.8, 11))
        if self.works:
            s, side = self.works
            digger = np.array(KINDS["vehicle.construction"])
            where = side * (main.half - PARKING_M / 2)
            self.add("vehicle.construction", digger, main, s, where, attribute="vehicle.parked")
            for at in (-6.2, -5.2, -4.2, 4.2, 5.2, 6.2):
                left = side * (main.lanes * LANE_M + 0.3 + 0.6 * (abs(at) - 4.2))
                size = np.array(KINDS["movable_object.trafficcone"])
                self.add("movable_object.trafficcone", size, main, s + at, left, colour=_CONE_RGB)

    def side_roads(self):
        """Those who wait to enter the main road, those who have left it, and those who park there."""
        rng = self.rng
        for road in self.sides:
            for arm in (-1, 1):
                end = arm * road.span[(arm + 1) // 2]
                begin = self.main.half + WALK_M + STOP_M
                if end < begin + 10:
                    continue
                self._arm(road, arm, -arm, (begin + 0.6, begin + 26), (1.5, 4), 0.0, int(rng.integers(0, 3)))
                self._arm(road, arm, arm, (begin + 1, begin + 35), (9, 25), rng.uniform(3, 7), int(rng.integers(0, 3)))
                for side in (-1, 1):
                    span = sorted((arm * (begin + 6), arm * (begin + 32)))
                    self.park(road, side, span, (2, 16))

    def _arm(self, road, arm, direction, span, gap, speed, most):
        """As `drive`, with span as distances from the main road's middle; filled from there."""
        before = len(self.things)
        self.drive(road, 0, direction, span, gap, speed, most)
        if arm < 0:
            for thing in self.things[before:]:
                thing.s = -thing.s

    def car_park(self):
        """Cars side by side in the stalls."""
        if not self.scene.roads.carpark:
            return
        middle, side = self.scene.roads.carpark
        for row in carpark_rows(self.main.half):
            for at in np.arange(1.35, CARPARK_M[0] - 1, 2.7):
                if self.rng.random() < 0.4:
                    name, size = self.pick(_CARS)
                    turn = self.rng.choice([-1, 1]) * np.pi / 2
                    s = middle - CARPARK_M[0] / 2 + at
                    self.add(name, size, self.main, s, side * row, turn=turn, attribute="vehicle.parked")

    def people(self):
        """Two files on each walkway, over the side roads' crossings too, and people who stand at the kerb."""
        rng, main, kind = self.rng, self.main, (("human.pedestrian.adult", 1.0),)
        for side in (-1, 1):
            for inward, direction in ((0.9, 1), (2.0, -1)):
                pace = rng.uniform(0.8, 1.5)
                for name, size, s in self.row(kind, (self.low, self.high), (8, 60)):
                    turn = 0.0 if direction > 0 else np.pi
                    left = side * (main.half + inward)
                    self.add(
                        name, size, main, s, left, turn=turn, along=direction * pace, attribute="pedestrian.moving"
                    )
            for s, half in main.crossed:
                for end in (-1, 1):
                    if rng.random() < 0.6:
                        at, left = s + end * (half + WALK_M / 2), side * (main.half + 0.15)
                        name, size = self.pick(kind)
                        turn = -side * np.pi / 2
                        self.add(name, size, main, at, left, turn=turn, attribute="pedestrian.standing")

    def buildings(self):
        """Houses behind the walkways, none on a side road or the car park."""
        rng, main = self.rng, self.main
        for side in (-1, 1):
            taken = main.gaps(WALK_M + 2)
            if self.scene.roads.carpark and self.scene.roads.carpark[1] == side:
                s = self.scene.roads.carpark[0]
                taken.append((s - CARPARK_M[0] / 2 - 1, s + CARPARK_M[0] / 2 + 1))
            at = self.low - 10
            while at < self.high + 15:
                size = rng.uniform([7, 9, 4], [15, 22, 14])
                middle = at + size[1] / 2
                if all(high < at or at + size[1] < low for low, high in taken):
                    left = side * (main.half + WALK_M + rng.uniform(1, 5) + size[0] / 2)
                    colour = rng.uniform(70, 200) + rng.uniform(-25, 25, 3)
                    self.houses.append(Thing(BUILDING, size, main.curve, middle, left, 0.0, 0.0, colour))
                    at += size[1] + rng.uniform(1, 12)
                else:
                    at += 4.0

    def screens(self, rng):
        """Hoardings that are drawn past along the kerbs' lanes, fast: each hides what is behind it for a keyframe or two."""
        far = _SCREEN_SPEED * self.scene.travel / self.scene.speed
        for left in (-self.main.lanes * LANE_M, self.main.lanes * LANE_M):
            along, at = -self.main.direction(left) * _SCREEN_SPEED, self.low - far + rng.uniform(0, _GAP_M[0])
            while (end := at + rng.uniform(*_SCREEN_M)) < self.high + far:
                size = np.array([_SCREEN_WIDE_M, end - at, rng.uniform(*_SCREEN_HIGH_M)])
                colour = rng.uniform(60, 210, 3)
                yield Thing(SCREEN, size, self.main.curve, (at + end) / 2, left, 0.0, along, colour)
                at = end + rng.uniform(*_GAP_M)

    def sticks_out(self, thing):
        """Whether something at the kerb reaches into the lane beside it, where hoardings are drawn past."""
        edge = abs(thing.left) - thing.wlh[0] / 2 - _SCREEN_WIDE_M / 2
        return thing.curve is self.main.curve and not thing.along and edge < self.main.lanes * LANE_M


def populate(rng, scene, hoardings=None):
    """The things of a scene, at most as many as nuScenes annotates; scene: what is known of it, streets and speed.

    hoardings: random numbers of their own, so that the rest of the world is the same without them but for what would be in
    their way; None for none.
    """
    crowd = _Crowd(rng, scene)
    for part in (crowd.traffic, crowd.roadside, crowd.side_roads, crowd.car_park, crowd.people, crowd.buildings):
        part()
    things = [*_some(rng, crowd.things, _LIMIT), *_some(rng, crowd.houses, _BUILDINGS)]
    if hoardings is None:
        return things
    return [*(thing for thing in things if not crowd.sticks_out(thing)), *crowd.screens(hoardings)]


def _some(rng, things, most):
    """At most that many of them, in their order."""
    return [things[i] for i in sorted(rng.choice(len(things), min(most, len(things)), replace=False))]


def sights(scene):
    """What there is to see, in the words of nuScenes' descriptions."""
    held = {thing.category for thing in scene.things}
    states = {thing.attribute for thing in scene.things}
    told = (
        ("intersection", True),
        ("turn", scene.roads.main.curve.curvature != 0),
        ("parking lot", scene.roads.carpark is not None),
        ("parked cars", "vehicle.parked" in states),
        ("construction zone", "vehicle.construction" in held),
        ("peds on sidewalk", "pedestrian.moving" in states),
        ("peds at crossing", "pedestrian.standing" in states),
        ("bus", "vehicle.bus.rigid" in held),
        ("trailer", "vehicle.trailer" in held),
    )
    return [word for word, true in told if true]
