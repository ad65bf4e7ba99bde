"""Names and constants of nuScenes' sensors, by which its tables are read; shards say them as common.rig.NUSCENES has them."""

from common.rig import NUSCENES

CAMERAS = NUSCENES.camera_names
[LIDAR] = NUSCENES.lidars
RADARS = NUSCENES.radar_names
REFERENCE_RADAR = NUSCENES.radar_clock  # its timestamp and ego pose define the frame of all radar points
LIDAR_FIELDS = tuple(field.name for field in NUSCENES.lidar_fields)
RADAR_FIELDS = tuple(field.name for field in NUSCENES.radar_fields)
MIN_DISTANCE_M = 2.2  # returns inside this square around the sensor come from the ego car itself
