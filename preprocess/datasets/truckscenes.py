"""MAN TruckScenes: nuScenes' tables of a truck. Built by its published schema, without a look at the data.

Its four cameras take the places of nuScenes' at the corners, and the top front lidar that of LIDAR_TOP, unless --channels says
otherwise; its other lidars, and its radars, whose fields are others, are left out. No official split of it is known here: give
--split-file.
"""

from dataclasses import replace

from preprocess.datasets.nuscenes import Dataset as NuScenes
from preprocess.datasets.nuscenes import lidar_points, radar_points

__all__ = ["CHANNELS", "Dataset", "lidar_points", "radar_points"]

CHANNELS = (
    ("CAM_BACK_LEFT", "CAMERA_LEFT_BACK"),
    ("CAM_BACK_RIGHT", "CAMERA_RIGHT_BACK"),
    ("CAM_FRONT_LEFT", "CAMERA_LEFT_FRONT"),
    ("CAM_FRONT_RIGHT", "CAMERA_RIGHT_FRONT"),
    ("LIDAR_TOP", "LIDAR_TOP_FRONT"),
)


class Dataset(NuScenes):
    """See preprocess.datasets."""

    def __init__(self, dataroot, version, options, on_error="stop", say=lambda text: None):
        chosen = options if options.channels else replace(options, channels=CHANNELS)
        super().__init__(dataroot, version, chosen, on_error, say)
        licence = "MAN TruckScenes data: CC BY-NC-SA 4.0; shards carry the same licence"
        self.rig = replace(self.rig, dataset="MAN TruckScenes", licence=licence)
