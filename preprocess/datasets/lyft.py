"""Lyft Level 5 perception data: nuScenes' tables under other words. Built by its published schema, without a look at the data.

`--version` is the folder of its tables, such as v1.02-train, which has no official split: give --split-file. Its top lidar and
its six cameras around the car have nuScenes' names; a zoomed camera and two lidars beside them are left out.
"""

from dataclasses import replace

from preprocess.datasets.nuscenes import Dataset as NuScenes
from preprocess.datasets.nuscenes import lidar_points, radar_points
from preprocess.errors import SourceError

__all__ = ["CATEGORIES", "Dataset", "lidar_points", "radar_points"]

CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus",
    "emergency_vehicle": "vehicle.emergency",
    "other_vehicle": "vehicle.other",
    "motorcycle": "vehicle.motorcycle",
    "bicycle": "vehicle.bicycle",
    "pedestrian": "human.pedestrian",
    "animal": "animal",
}


class Dataset(NuScenes):
    """See preprocess.datasets. Raises SourceError for a category that Lyft does not have, and as nuScenes' does."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        unknown = [name for name in self.rig.categories if name not in CATEGORIES]
        if unknown:
            raise SourceError(
                f"category {unknown[0]!r:.60} is none of Lyft's; tables of nuScenes' words need no --dataset"
            )
        self.rig = replace(
            self.rig,
            dataset="Lyft Level 5",
            licence="Lyft Level 5 data: CC BY-NC-SA 4.0; shards carry the same licence",
            categories=tuple(dict.fromkeys(CATEGORIES[name] for name in self.rig.categories)),
        )

    def keyframe(self, scene, tokens, keys, i):
        recipe = super().keyframe(scene, tokens, keys, i)
        recipe.boxes = [{**box, "category": CATEGORIES[box["category"]]} for box in recipe.boxes]
        return recipe
