"""A class of cells: what a channel of the label maps, and of a network's seg, stands for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import InputError
from common.map_layers import MAP_LAYERS

MAX_CLASSES = 64
MAP = "map:"  # before the name of a map layer among a class's categories

# Sets of classes that papers report, by the name of the paper's network. Of pon the names alone: its grid is another, a frustum
# before each camera, so that its figures are not to be compared.
PRESETS = {
    # Roddick and Cipolla, Predicting Semantic Map Representations from Images using Pyramid Occupancy Networks, CVPR 2020.
    "pon": "drivable_area=map:drivable_area; ped_crossing=map:ped_crossing; walkway=map:walkway; carpark=map:carpark_area; "
    "car=vehicle.car; truck=vehicle.truck; bus=vehicle.bus; trailer=vehicle.trailer; "
    "construction_vehicle=vehicle.construction; pedestrian=human.pedestrian; motorcycle=vehicle.motorcycle; "
    "bicycle=vehicle.bicycle; traffic_cone=movable_object.trafficcone; barrier=movable_object.barrier",
    # Liu et al., BEVFusion, ICRA 2023: six map classes, reported at 0.5 m cells and at the best threshold of each.
    "bevfusion": "drivable_area=map:drivable_area; ped_crossing=map:ped_crossing; walkway=map:walkway; "
    "stop_line=map:stop_line; carpark_area=map:carpark_area; divider=map:road_divider,lane_divider",
    # Zhou and Krähenbühl, Cross-view Transformers, CVPR 2022.
    "cvt": "vehicle=vehicle; road=map:lane,road_segment",
}
POSITIVES = 2.13  # times as much a cell of a class counts in the loss as one outside it; the benchmark's
MEAN = "mean of classes"  # in the place of a class, in figures


@dataclass(frozen=True)
class ClassSpec:
    """One class. name: on curves and in tables. categories: prefixes of the categories whose boxes are drawn, and "map:" with
    the name of each map layer that is drawn. weight: of its part of the loss, against the other classes'. positives: how many
    times as much a cell of the class counts there as one outside it; more for what is small and rare, which else is never
    likelier than not.

    Raises ValueError.
    """

    name: str
    categories: tuple
    weight: float = 1.0
    positives: float = POSITIVES

    def __post_init__(self):
        object.__setattr__(self, "categories", tuple(self.categories))
        for field in ("weight", "positives"):
            object.__setattr__(self, field, float(getattr(self, field)))
        if not (isinstance(self.name, str) and self.name and self.name.isprintable() and "/" not in self.name):
            raise InputError(f"class {self.name!r}: a name is a text without / and line breaks")
        if not self.categories or not all(isinstance(prefix, str) and prefix for prefix in self.categories):
            raise InputError(f"class {self.name} names no category; give one, such as vehicle")
        for layer in self.maps:
            if layer not in MAP_LAYERS:
                raise InputError(f"class {self.name}: there is no map layer {layer}; there are {', '.join(MAP_LAYERS)}")
        if not (0 < self.weight < math.inf):
            raise InputError(f"class {self.name} has weight {self.weight}; it is a positive number")
        if not (0 < self.positives < math.inf):
            raise InputError(f"class {self.name}: its cells count {self.positives} times; it is a positive number")

    @property
    def boxes(self):
        """Prefixes of the categories whose boxes are drawn."""
        return tuple(name for name in self.categories if not name.startswith(MAP))

    @property
    def maps(self):
        """Names of the map layers that are drawn."""
        return tuple(name.removeprefix(MAP) for name in self.categories if name.startswith(MAP))


def parse_classes(text):
    """Tuple of ClassSpecs of a text such as "vehicle=vehicle; road=map:lane,road_segment @2", or of the name of a preset.

    After the name come prefixes of categories, with commas between; after map: all that follow are map layers. @ stands before
    the weight, and + before how many times its cells count: "pedestrian=human.pedestrian @1 +20". Raises ValueError.
    """
    specs = []
    for part in PRESETS.get(text.strip(), text).split(";"):
        if not part.strip():
            continue
        name, equals, rest = part.partition("=")
        rest, plus, positives = rest.partition("+")
        rest, at, weight = rest.partition("@")
        names = [word.strip() for word in rest.split(",") if word.strip()]
        first = next((n for n, word in enumerate(names) if word.startswith(MAP)), len(names))
        names = [word if n < first or word.startswith(MAP) else MAP + word for n, word in enumerate(names)]
        numbers = {}
        for sign, given, field, number in (("@", at, "weight", weight), ("+", plus, "positives", positives)):
            try:
                numbers |= {field: float(number)} if given else {}
            except ValueError:
                raise InputError(f"class {name.strip()}: after {sign} stands no number: {number.strip()!r}") from None
        if not equals:
            raise InputError(
                f"--classes {part.strip()!r}: it is name=category,…; …, as in 'vehicle=vehicle; road=map:lane,road_segment', "
                f"or one of {', '.join(PRESETS)}"
            )
        specs.append(ClassSpec(name.strip(), tuple(names), **numbers))
    return class_specs(specs)


def one_class(categories):
    """The one class that boxes of these categories are: named by them."""
    return ClassSpec("+".join(categories), tuple(categories))


def class_specs(given):
    """Tuple of ClassSpecs of what Python or a config file gives: ClassSpecs, or mappings of their fields. Raises ValueError."""
    if isinstance(given, str):
        return parse_classes(given)
    if isinstance(given, Mapping) or not hasattr(given, "__iter__"):
        raise InputError(f"classes {given!r}: a list of classes, each with name and categories")
    specs = tuple(_spec(one) for one in given)
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names) or len(names) > MAX_CLASSES:
        raise InputError(f"classes {', '.join(names)}: they have different names, and there are at most {MAX_CLASSES}")
    return specs


def _spec(one):
    if isinstance(one, ClassSpec):
        return one
    if (
        not isinstance(one, Mapping)
        or set(one) - {"name", "categories", "weight", "positives"}
        or not {"name", "categories"} <= set(one)
    ):
        raise InputError(
            f"class {one!r}: it has a name, categories and, where they are not the usual ones, weight and positives"
        )
    categories = one["categories"]
    if isinstance(categories, str):
        categories = [part.strip() for part in categories.split(",")]
    try:
        return ClassSpec(**{**one, "categories": tuple(categories)})
    except TypeError:
        raise InputError(f"class {one['name']}: its categories are a list, weight and positives are numbers") from None


def key_of(protocol, of_class=""):
    """What an evaluation keeps a class's counts under: where there is one class, the label protocol's name alone."""
    return f"{protocol}, {of_class}" if of_class else protocol


def parts_of(key):
    """(protocol, class or "") of key_of."""
    protocol, _, of_class = key.partition(", ")
    return protocol, of_class
