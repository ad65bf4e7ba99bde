"""Colours, and what they stand for. Hues are Okabe and Ito's, which people with any kind of colour blindness tell apart."""

from dataclasses import dataclass

import numpy as np

PAGE = (18, 20, 24)
GROUND = (30, 33, 39)  # behind points and maps
OUTSIDE = (22, 24, 28)  # beyond the BEV grid
LINE = (84, 90, 99)  # rings and axes
INK = (232, 234, 237)
FAINT_INK = (158, 164, 173)
EGO = (232, 234, 237)
RADAR = (255, 255, 255)

TRUTH = (205, 210, 216)
HIT = (0, 158, 115)
FALSE = (230, 90, 10)
MISSED = (86, 180, 233)
MASKED = (200, 180, 60)  # the lines that hatch it


@dataclass(frozen=True)
class Kind:
    """Categories that share a colour: those that begin with one of `prefixes`."""

    name: str
    colour: tuple
    prefixes: tuple


KINDS = (
    Kind("car", (240, 165, 20), ("vehicle.car",)),
    Kind("truck", (225, 95, 10), ("vehicle.truck",)),
    Kind("bus", (240, 228, 66), ("vehicle.bus",)),
    Kind("bicycle, motorcycle", (214, 125, 172), ("vehicle.bicycle", "vehicle.motorcycle")),
    Kind("other vehicle", (60, 130, 235), ("vehicle",)),
    Kind("pedestrian", (96, 196, 245), ("human",)),
    Kind("cone, barrier", (20, 175, 130), ("movable_object",)),
    Kind("other", (170, 170, 170), ("",)),
)


def kind_of(category):
    """The Kind of a nuScenes category: the first one with a prefix of it."""
    return next(kind for kind in KINDS if category.startswith(kind.prefixes))


def colour_of(category):
    """(3,) RGB of a nuScenes category."""
    return kind_of(category).colour


# Of classes of cells, in turn; those after them are the same, darker.
_CLASSES = (
    (240, 165, 20),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (214, 125, 172),
    (60, 130, 235),
    (225, 95, 10),
)


def class_colours(count):
    """(count, 3) uint8 RGB: a colour for each of several classes of cells."""
    rounds = [(_CLASSES[n % len(_CLASSES)], n // len(_CLASSES)) for n in range(count)]
    return np.array([dimmed(colour, 0.6**darker) for colour, darker in rounds], np.uint8)


def dimmed(colour, share=0.45):
    """The colour on its way to the ground's."""
    return tuple(round(share * c + (1 - share) * g) for c, g in zip(colour, GROUND, strict=True))


def _ramp(*stops):
    stops = np.array(stops, float)
    at = np.linspace(0, len(stops) - 1, 256)
    table = np.stack([np.interp(at, np.arange(len(stops)), stops[:, c]) for c in range(3)], 1)
    return table.round().astype(np.uint8)


# (256, 3) uint8 tables from low to high, each of rising lightness. Height: blue to yellow. Probability: ground to light.
HEIGHT_RAMP = _ramp((70, 70, 150), (40, 120, 165), (45, 170, 140), (150, 210, 80), (250, 235, 90))
PROBABILITY_RAMP = _ramp(GROUND, (95, 40, 110), (190, 60, 90), (245, 130, 50), (255, 240, 190))
GREYS = _ramp(GROUND, TRUTH)
LOW_HEIGHT_M, HIGH_HEIGHT_M = -0.5, 3.5


def ramp(table, values, low, high):
    """Colours (..., 3) uint8 of values (...) between low and high."""
    share = (np.nan_to_num(np.asarray(values, float)) - low) / (high - low)
    return table[(share.clip(0, 1) * 255).round().astype(np.uint8)]


# (256, 3): blue below, ground at nothing, orange above.
_DIVERGING = _ramp((86, 180, 233), (45, 95, 150), GROUND, (150, 75, 20), (245, 150, 40))


def diverging(values, most):
    """Colours (..., 3) uint8 of signed values (...): blue at -most, dark at 0, orange at most."""
    return ramp(_DIVERGING, values, -most, most)
