"""The boxes of a scene: vehicles, people, cones, houses, hoardings."""

from dataclasses import dataclass

import numpy as np

from preprocess.synth.roads import Curve

BUILDING, SCREEN = "building", "screen"
OCCLUDERS = (BUILDING, SCREEN)  # which nuScenes does not annotate
# Category -> (width, length, height) in metres, which vary by a few per cent.
KINDS = {
    "vehicle.car": (1.9, 4.6, 1.7),
    "vehicle.truck": (2.5, 7.5, 3.0),
    "vehicle.bus.rigid": (2.9, 11.0, 3.4),
    "vehicle.trailer": (2.5, 11.5, 3.8),
    "vehicle.construction": (2.6, 6.5, 3.2),
    "vehicle.motorcycle": (0.8, 2.1, 1.5),
    "vehicle.bicycle": (0.6, 1.7, 1.3),
    "human.pedestrian.adult": (0.7, 0.7, 1.75),
    "movable_object.trafficcone": (0.4, 0.4, 1.0),
}
ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.moving", "pedestrian.standing"),
)


@dataclass
class Thing:
    """A box that stands or moves along a curve.

    wlh: size; s, left: where its middle is at time 0; turn: its heading from the curve's, radians; along: metres of s a
    second; attribute: as nuScenes names it, "" for none; colour RGB.
    """

    category: str
    wlh: np.ndarray
    curve: Curve
    s: float
    left: float
    turn: float
    along: float
    colour: np.ndarray
    attribute: str = ""
