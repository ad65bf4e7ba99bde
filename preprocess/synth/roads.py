"""The streets of one generated scene: a main road that bends once, side roads across it, what is painted on them.

Everything is planar and analytic, in metres of the global frame. Layers bear the names that nuScenes' map expansion
gives them, so that the same streets can be written as a map later. s runs along a centreline, `left` to its left.
"""

from dataclasses import dataclass, field

import numpy as np

LANE_M, PARKING_M, WALK_M, LINE_M = 3.5, 2.4, 3.0, 0.18
STOP_M = 1.2  # from a pedestrian crossing to the stop line
SIDE_LENGTH_M, BEYOND_M = 90.0, 150.0  # of a side road from the main road; of the main road beyond the drive
CARPARK_M = (24.0, 16.0)  # along and across
_STEP_M = 5.0  # chord of the bend: 2 cm off the arc at the smallest radius

AREAS = ("drivable_area", "road_segment", "lane", "ped_crossing", "walkway", "stop_line", "carpark_area")
LINES = ("road_divider", "lane_divider")
# What the ground is covered with, in the order in which it is laid.
SURFACES = ("walkway", "kerb", "carpark", "asphalt", "yellow", "white")


@dataclass(frozen=True)
class Curve:
    """A centreline: straight up to s = 0, an arc of `curvature` (1/m, positive to the left) up to `bend`, straight on."""

    start: tuple
    heading: float
    curvature: float = 0.0
    bend: float = 0.0

    def at(self, s, left=0.0):
        """(...) metres -> (..., 3): x, y and heading in radians."""
        s = np.asarray(s, float)
        turned = s.clip(0, self.bend)
        chord = turned * np.sinc(self.curvature * turned / (2 * np.pi))
        middle, yaw = self.heading + self.curvature * turned / 2, self.heading + self.curvature * turned
        rest = s - turned
        x = self.start[0] + chord * np.cos(middle) + rest * np.cos(yaw) - left * np.sin(yaw)
        y = self.start[1] + chord * np.sin(middle) + rest * np.sin(yaw) + left * np.cos(yaw)
        return np.stack([x, y, yaw + np.zeros_like(x)], -1)

    def stations(self, low, high):
        """Increasing s from low to high, close enough for straight pieces between them."""
        inner = np.arange(0, self.bend + _STEP_M, _STEP_M) if self.curvature else np.empty(0)
        inner = inner[(inner > low + 0.1) & (inner < high - 0.1)]
        return np.concatenate([[low], inner, [high]])

    def line(self, low, high, left):
        """(n, 2) points."""
        return self.at(self.stations(low, high), left)[:, :2]


@dataclass(frozen=True)
class Element:
    """One feature of a map layer: (n, 2) global metres, a polygon or a line; kind tells features of a layer apart."""

    layer: str
    points: np.ndarray
    kind: str = ""


@dataclass(frozen=True)
class Road:
    """A carriageway. lanes: of each direction; drive_left: traffic keeps left; span: its s from and to.

    crossed: (s, half width) of each road that crosses it.
    """

    curve: Curve
    lanes: int
    drive_left: bool
    span: tuple
    crossed: tuple = ()

    @property
    def half(self):
        """Metres from the centreline to the kerb."""
        return self.lanes * LANE_M + PARKING_M

    def lane(self, number, direction):
        """`left` of a lane's middle: lane 0 is next to the centreline, direction 1 follows s, -1 goes against it."""
        return (1 if self.drive_left else -1) * direction * (number + 0.5) * LANE_M

    def direction(self, left):
        """1 or -1: which way traffic goes on that side of the centreline."""
        return 1 if (left > 0) == self.drive_left else -1

    def gaps(self, beyond):
        """(low, high) of each crossing, `beyond` metres wider than the crossing carriageway."""
        return [(s - half - beyond, s + half + beyond) for s, half in self.crossed]

    def pieces(self, beyond):
        """(low, high) of each stretch between the crossings."""
        out, at = [], self.span[0]
        for low, high in sorted(self.gaps(beyond)):
            if low > at + 1:
                out.append((at, low))
            at = max(at, high)
        return [*out, (at, self.span[1])] if self.span[1] > at + 1 else out


@dataclass
class Roads:
    """The streets. main: the road that the ego drives on; sides: those across it; carpark: (s, side) beside main or None.

    elements: features of the map layers. paint: (surface, (4, 2) global metres) quadrilaterals, in the order in which
    they cover each other.
    """

    main: Road
    sides: tuple
    carpark: tuple | None = None
    elements: list = field(default_factory=list)
    paint: list = field(default_factory=list)

    def __post_init__(self):
        for road in (self.main, *self.sides):
            self._surfaces(road)
            self._dividers(road)
        for road in (self.main, *self.sides):
            self._crossings(road)
        if self.carpark:
            self._stalls(*self.carpark)
        self.paint.sort(key=lambda item: SURFACES.index(item[0]))

    def layer(self, name):
        """The elements of one layer."""
        return [element for element in self.elements if element.layer == name]

    def _ribbon(self, curve, along, across, surface=None, layer=None, kind=""):
        """Pave what lies between two s and two `left`, and enter it in a layer."""
        s = curve.stations(*along)
        right, left = curve.at(s, min(across))[:, :2], curve.at(s, max(across))[:, :2]
        if surface:
            self.paint.extend((surface, q) for q in np.stack([right[:-1], right[1:], left[1:], left[:-1]], 1))
        if layer:
            self.elements.append(Element(layer, np.concatenate([right, left[::-1]]), kind))

    def _surfaces(self, road):
        half, curve = road.half, road.curve
        self._ribbon(curve, road.span, (-half, half), "asphalt", "drivable_area")
        for piece in road.pieces(WALK_M):
            self._ribbon(curve, piece, (-half, half), layer="road_segment")
            for direction in (-1, 1):
                for number in range(road.lanes):
                    middle = road.lane(number, direction)
                    edges = (middle - LANE_M / 2, middle + LANE_M / 2)
                    self._ribbon(curve, piece, edges, layer="lane", kind="forward" if direction > 0 else "backward")
        for gap in road.gaps(WALK_M):
            if road is self.main:
                self._ribbon(curve, gap, (-half, half), layer="road_segment", kind="intersection")
        for side in (-1, 1):
            for piece in road.pieces(0.0) + self._closed(road, side):
                self._ribbon(curve, piece, (side * half, side * (half + WALK_M)), "walkway", "walkway")
                self._ribbon(curve, piece, (side * half, side * (half + 0.2)), "kerb")

    def _closed(self, road, side):
        """(low, high) of each stretch of the main road's kerb that faces a side road which ends at the main road."""
        if road is not self.main:
            return []
        ends = [(s, other) for s, other in zip(road.gaps(0.0), self.sides, strict=True)]
        return [gap for gap, other in ends if side * other.span[(side + 1) // 2] <= road.half]

    def _dividers(self, road):
        curve = road.curve
        for low, high in road.pieces(WALK_M + STOP_M + 0.3):
            self.elements.append(Element("road_divider", curve.line(low, high, 0.0)))
            double = road.lanes > 1
            for left in (-0.2, 0.2) if double else (0.0,):
                across = (left - LINE_M / 2, left + LINE_M / 2)
                self._ribbon(curve, (low, high), across, "white" if road.drive_left else "yellow")
            for side in (-1, 1):
                edge = side * road.lanes * LANE_M
                self._ribbon(curve, (low, high), (edge - 0.07, edge + 0.07), "white")
                for number in range(1, road.lanes):
                    self._dashes(curve, low, high, side * number * LANE_M)

    def _dashes(self, curve, low, high, left):
        self.elements.append(Element("lane_divider", curve.line(low, high, left), "dashed"))
        for s in np.arange(low + 1, high - 3, 8.0):
            self._ribbon(curve, (s, s + 3), (left - LINE_M / 2, left + LINE_M / 2), "white")

    def _crossings(self, road):
        """Striped crossings over `road` on either side of each road across it, with the stop lines before them."""
        half, curve = road.half, road.curve
        for s, other in road.crossed:
            for side in (-1, 1):
                near, far = s + side * other, s + side * (other + WALK_M)
                if not road.span[0] <= far <= road.span[1]:
                    continue
                self._ribbon(curve, sorted((near, far)), (-half, half), layer="ped_crossing")
                stripe = sorted((s + side * (other + 0.3), s + side * (other + WALK_M - 0.3)))
                for left in np.arange(-half + 0.4, half - 0.4, 1.1):
                    self._ribbon(curve, stripe, (left, left + 0.55), "white")
                reach = road.lanes * LANE_M * np.sign(road.lane(0, -side))  # traffic that comes towards the crossing
                stop = sorted((far + side * STOP_M, far + side * (STOP_M - 0.4)))
                self._ribbon(curve, stop, (0.0, reach), "white", "stop_line")

    def _stalls(self, s, side):
        """A car park behind the walkway, with a drive over it."""
        curve, inner = self.main.curve, self.main.half + WALK_M
        along, across = (s - CARPARK_M[0] / 2, s + CARPARK_M[0] / 2), (side * inner, side * (inner + CARPARK_M[1]))
        self._ribbon(curve, along, across, "carpark", "carpark_area")
        self._ribbon(curve, along, across, layer="drivable_area")
        self._ribbon(curve, (s - 3, s + 3), (side * self.main.half, side * inner), "carpark", "drivable_area")
        for row in carpark_rows(self.main.half):
            for at in np.arange(along[0], along[1] + 0.1, 2.7):
                self._ribbon(curve, (at - 0.06, at + 0.06), (side * (row - 2.5), side * (row + 2.5)), "white")


def carpark_rows(half):
    """|left| of the middles of a car park's two rows, beside a road whose kerb is `half` metres from its middle."""
    return half + WALK_M + 2.8, half + WALK_M + CARPARK_M[1] - 2.8


def lay_out(rng, place, drive_left, travel):
    """Streets around a drive of `travel` metres that starts at s = 0 of the main road; its middle lies at `place` (x, y)."""
    curvature = 0.0
    if rng.random() < 0.6:
        curvature = rng.choice([-1, 1]) * rng.uniform(1 / 400, min(1 / 150, 1.2 / (travel + 60)))
    curve = Curve((0.0, 0.0), rng.uniform(-np.pi, np.pi), curvature, travel + 60)
    start = np.asarray(place) - curve.at(travel / 2)[:2]
    curve = Curve(tuple(start), curve.heading, curvature, curve.bend)
    where = [rng.uniform(4, travel + 22)]
    second = where[0] + rng.choice([-1, 1]) * rng.uniform(70, 90)
    if rng.random() < 0.5 and -45 < second < travel + 60:
        where.append(second)
    lanes = int(rng.integers(1, 3))
    main = Road(curve, lanes, drive_left, (-BEYOND_M, travel + BEYOND_M))
    sides = []
    for s in sorted(where):
        x, y, yaw = curve.at(s)
        ends = rng.permutation([SIDE_LENGTH_M, SIDE_LENGTH_M if rng.random() < 0.65 else main.half])
        across = Curve((x, y), yaw + np.pi / 2)
        sides.append(Road(across, 1, drive_left, (-ends[0], ends[1]), ((0.0, main.half),)))
    main = Road(
        curve, lanes, drive_left, main.span, tuple((s, r.half) for s, r in zip(sorted(where), sides, strict=True))
    )
    return Roads(main, tuple(sides), _carpark(rng, main, travel))


def _carpark(rng, main, travel):
    """(s, side) of a car park clear of the side roads, or None."""
    s, side = rng.uniform(-22, travel + 22), int(rng.choice([-1, 1]))
    reach = CARPARK_M[0] / 2 + WALK_M + 1
    clear = all(not low - reach < s < high + reach for low, high in main.gaps(0.0))
    return (s, side) if clear and rng.random() < 0.7 else None
