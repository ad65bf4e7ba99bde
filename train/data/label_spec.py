"""Which boxes become label maps, and under which protocol."""

from dataclasses import dataclass

from common.record import MOST_VISIBLE

PROTOCOLS = ("simple_bev", "min_visibility")
LABEL_SOURCES = ("boxes",)


@dataclass(frozen=True)
class LabelSpec:
    """One pair of label maps, seg and valid.

    name: key in Batch.labels. source: "boxes". categories: prefixes of the categories drawn. protocol: "simple_bev" draws every
    box and masks those of visibility 1 out of loss and IoU; "min_visibility" leaves boxes under `min_visibility` out and
    masks nothing. A visibility of 0, not annotated, counts as seen.

    Raises ValueError, also for a `min_visibility` that the protocol does not look at or that leaves every box out.
    """

    name: str = "vehicle"
    source: str = "boxes"
    categories: tuple = ("vehicle",)
    protocol: str = "simple_bev"
    min_visibility: int = 1

    @classmethod
    def of(cls, options):
        """The label maps of Options, or of any object with their names."""
        return cls("target", "boxes", options.target_categories, options.protocol, options.min_visibility)

    def __post_init__(self):
        object.__setattr__(self, "categories", tuple(self.categories))
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r}; it is one of {', '.join(PROTOCOLS)}")
        if not 0 <= self.min_visibility <= MOST_VISIBLE:
            raise ValueError(f"min_visibility {self.min_visibility}; it is 0 to {MOST_VISIBLE}, nuScenes' levels")
        if self.protocol == "simple_bev" and self.min_visibility > 1:
            raise ValueError(
                f"min_visibility {self.min_visibility} belongs to the protocol min_visibility, not simple_bev"
            )
        if self.source not in LABEL_SOURCES:
            raise ValueError(f"labels {self.name} from {self.source!r}; they come from {', '.join(LABEL_SOURCES)}")
        if not self.categories:
            raise ValueError(f"labels {self.name} name no category; give one, such as vehicle")


def labels_side_by_side(categories, protocol, min_visibility):
    """LabelSpecs under every protocol that papers use, for one pass: the chosen one first, then Simple-BEV's, then the filters
    of visibility 1 (none) and 2."""
    chosen = [(protocol, min_visibility), ("simple_bev", 1), ("min_visibility", 1), ("min_visibility", 2)]
    specs = {}
    for kind, least in chosen:
        name = kind if kind == "simple_bev" else f"visibility >= {least}"
        specs.setdefault(name, LabelSpec(name, "boxes", categories, kind, least))
    return tuple(specs.values())
