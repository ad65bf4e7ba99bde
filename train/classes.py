"""A class of cells: what a channel of the label maps, and of a network's seg, stands for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MAX_CLASSES = 64
MEAN = "mean of classes"  # in the place of a class, in figures


@dataclass(frozen=True)
class ClassSpec:
    """One class. name: on curves and in tables. categories: prefixes of the categories whose boxes are drawn.

    weight: of its part of the loss, against the other classes'.

    Raises ValueError.
    """

    name: str
    categories: tuple
    weight: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "categories", tuple(self.categories))
        object.__setattr__(self, "weight", float(self.weight))
        if not (isinstance(self.name, str) and self.name and self.name.isprintable() and "/" not in self.name):
            raise ValueError(f"class {self.name!r}: a name is a text without / and line breaks")
        if not self.categories or not all(isinstance(prefix, str) and prefix for prefix in self.categories):
            raise ValueError(f"class {self.name} names no category; give one, such as vehicle")
        if not (0 < self.weight < math.inf):
            raise ValueError(f"class {self.name} has weight {self.weight}; it is a positive number")


def one_class(categories):
    """The one class that boxes of these categories are: named by them."""
    return ClassSpec("+".join(categories), tuple(categories))


def class_specs(given):
    """Tuple of ClassSpecs of what Python or a config file gives: ClassSpecs, or mappings of their fields. Raises ValueError."""
    if isinstance(given, (str, Mapping)) or not hasattr(given, "__iter__"):
        raise ValueError(f"classes {given!r}: a list of classes, each with name and categories")
    specs = tuple(_spec(one) for one in given)
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names) or len(names) > MAX_CLASSES:
        raise ValueError(f"classes {', '.join(names)}: they have different names, and there are at most {MAX_CLASSES}")
    return specs


def _spec(one):
    if isinstance(one, ClassSpec):
        return one
    if (
        not isinstance(one, Mapping)
        or set(one) - {"name", "categories", "weight"}
        or not {"name", "categories"} <= set(one)
    ):
        raise ValueError(f"class {one!r}: it has a name, categories and, if it is not 1, a weight")
    categories = one["categories"]
    if isinstance(categories, str):
        categories = [part.strip() for part in categories.split(",")]
    try:
        return ClassSpec(one["name"], tuple(categories), one.get("weight", 1.0))
    except TypeError:
        raise ValueError(f"class {one['name']}: its categories are a list, its weight is a number") from None


def key_of(protocol, of_class=""):
    """What an evaluation keeps a class's counts under: where there is one class, the label protocol's name alone."""
    return f"{protocol}, {of_class}" if of_class else protocol


def parts_of(key):
    """(protocol, class or "") of key_of."""
    protocol, _, of_class = key.partition(", ")
    return protocol, of_class
