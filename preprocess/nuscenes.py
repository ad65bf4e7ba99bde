"""Names and constants of nuScenes' own sensors, by which its tables are read; what shards say of them is common.rig.NUSCENES."""

from common.rig import NUSCENES

CAMERAS = NUSCENES.camera_names
[LIDAR] = NUSCENES.lidars
RADARS = NUSCENES.radar_names
REFERENCE_RADAR = NUSCENES.radar_clock  # its timestamp and ego pose define the frame of all radar points
LIDAR_FIELDS = tuple(field.name for field in NUSCENES.lidar_fields)
RADAR_FIELDS = tuple(field.name for field in NUSCENES.radar_fields)
MIN_DISTANCE_M = 2.2  # returns inside this square around the sensor come from the ego car itself
