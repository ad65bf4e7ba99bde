"""Which boxes become label maps, class by class, and under which protocol."""

from dataclasses import dataclass

from common.errors import InputError
from common.record import MOST_VISIBLE
from train.classes import class_specs, one_class

PROTOCOLS = ("simple_bev", "min_visibility")
LABEL_SOURCES = ("boxes",)


@dataclass(frozen=True)
class LabelSpec:
    """One pair of label maps, seg and valid, of K classes.

    name: key in Batch.labels. source: "boxes", with those map layers that the classes name. categories: prefixes of the
    categories drawn. protocol: "simple_bev" draws every box and masks those of visibility 1 out of loss and IoU;
    "min_visibility" leaves boxes under `min_visibility` out and masks nothing. A visibility of 0, not annotated, counts as
    seen. classes: ClassSpecs, whose categories are then all that is drawn; without them there is one class, of `categories`.

    Raises ValueError, also for a `min_visibility` that the protocol does not look at or that leaves every box out.
    """

    name: str = "vehicle"
    source: str = "boxes"
    categories: tuple = ("vehicle",)
    protocol: str = "simple_bev"
    min_visibility: int = 1
    classes: tuple = ()

    @classmethod
    def of(cls, options):
        """The label maps of Options, or of any object with their names."""
        categories, classes = options.target_categories, options.classes
        return cls("target", "boxes", categories, options.protocol, options.min_visibility, classes)

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise InputError(f"protocol {self.protocol!r}; it is one of {', '.join(PROTOCOLS)}")
        if not 0 <= self.min_visibility <= MOST_VISIBLE:
            raise InputError(f"min_visibility {self.min_visibility}; it is 0 to {MOST_VISIBLE}, nuScenes' levels")
        if self.protocol == "simple_bev" and self.min_visibility > 1:
            raise InputError(
                f"min_visibility {self.min_visibility} belongs to the protocol min_visibility, not simple_bev"
            )
        if self.source not in LABEL_SOURCES:
            raise InputError(f"labels {self.name} from {self.source!r}; they come from {', '.join(LABEL_SOURCES)}")
        if not (self.classes or self.categories):
            raise InputError(f"labels {self.name} name no category; give one, such as vehicle")
        classes = class_specs(self.classes) or (one_class(self.categories),)
        object.__setattr__(self, "classes", classes)
        prefixes = dict.fromkeys(prefix for spec in classes for prefix in spec.boxes)
        object.__setattr__(self, "categories", tuple(prefixes))

    @property
    def has_maps(self):
        """Whether a class is drawn from layer map."""
        return any(spec.maps for spec in self.classes)

    @property
    def class_names(self):
        """Names of the K classes."""
        return tuple(spec.name for spec in self.classes)


def labels_side_by_side(options):
    """LabelSpecs of the options' classes under every protocol that papers use, for one pass: the chosen one first, then
    Simple-BEV's, then the filters of visibility 1 (none) and 2."""
    chosen = [
        (options.protocol, options.min_visibility),
        ("simple_bev", 1),
        ("min_visibility", 1),
        ("min_visibility", 2),
    ]
    specs = {}
    for kind, least in chosen:
        name = kind if kind == "simple_bev" else f"visibility >= {least}"
        specs.setdefault(name, LabelSpec(name, "boxes", options.target_categories, kind, least, options.classes))
    return tuple(specs.values())
