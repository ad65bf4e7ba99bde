"""What an evaluation keeps: one row per sample, and sums per scene that need more room than a row has."""

from dataclasses import dataclass, field, replace

import numpy as np

# Upper ends of the buckets that boxes and samples are put into, and their names.
VEHICLES_IN_VIEW = ((0, "none"), (5, "1-5"), (15, "6-15"), (30, "16-30"), (np.inf, "over 30"))
LIDAR_POINTS = ((0, "0"), (5, "1-5"), (20, "6-20"), (100, "21-100"), (np.inf, "over 100"))
LENGTH_M = ((3.0, "under 3 m"), (6.0, "3-6 m"), (np.inf, "over 6 m"))
NOT_STATED = "not stated"  # light or weather of a keyframe whose record says nothing of it
VISIBILITY = {0: "not annotated", 1: "0-40 %", 2: "40-60 %", 3: "60-80 %", 4: "80-100 %"}


def bucket(value, buckets):
    """Name of the first bucket whose upper end the value does not exceed."""
    return next(name for end, name in buckets if value <= end)


@dataclass(frozen=True)
class SampleRow:
    """One sample.

    counts: label -> (R,3) int64 of `both_predicted_true` at 0.5. boxes: category -> visibility -> boxes.
    in_view: boxes that have a cell in the grid. losses: name -> value.
    """

    key: str
    token: str
    scene: str
    timestamp_us: int
    location: str
    light: str
    weather: str
    counts: dict
    boxes: dict
    in_view: int
    losses: dict
    dataset: str = ""


@dataclass
class SceneSums:
    """Sums over a scene's samples: histograms label -> (R,2,P), and recall (dimension, bucket) -> predicted cells, cells."""

    histograms: dict = field(default_factory=dict)
    recall: dict = field(default_factory=dict)

    def add(self, other):
        """Add the sums of the same scene from another rank or batch."""
        for name, counts in other.histograms.items():
            self.histograms[name] = self.histograms.get(name, 0) + counts
        for place, counts in other.recall.items():
            self.recall[place] = self.recall.get(place, 0) + counts


@dataclass
class Evaluation:
    """Rows and scenes of one evaluation, and `about`: protocol, split, checkpoint, grid, digests, options, versions.

    metrics: the network's own, see train.metrics; scores: their figures, once all is counted. collected: name -> key of a
    sample -> what the network's `collect` gave for it. thumbnails: key -> kind -> bytes of a picture.
    """

    rows: list = field(default_factory=list)
    scenes: dict = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    metrics: list = field(default_factory=list)
    scores: dict = field(default_factory=dict)
    collected: dict = field(default_factory=dict)
    thumbnails: dict = field(default_factory=dict)

    def add(self, rows, scenes):
        """Take in what one batch or one rank counted."""
        self.rows += rows
        for name, sums in scenes.items():
            self.scenes.setdefault(name, SceneSums()).add(sums)

    def merge(self, other):
        """Take in the evaluation of another rank."""
        self.add(other.rows, other.scenes)
        self.metrics = self.metrics or other.metrics
        for mine, theirs in zip(self.metrics, other.metrics, strict=False):
            if mine is not theirs:
                mine.merge(theirs)
        self.thumbnails.update(other.thumbnails)
        for name, values in other.collected.items():
            self.collected.setdefault(name, {}).update(values)

    def sorted(self):
        """The same evaluation with rows in the order of keys, so that it does not depend on how many ranks counted."""
        return replace(
            self,
            rows=sorted(self.rows, key=lambda row: row.key),
            scenes=dict(sorted(self.scenes.items())),
            about=dict(self.about),
        )
