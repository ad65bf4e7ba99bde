"""Sensors of the nuScenes car, in the orders that every part of the project uses."""

# Slot order of the images in a batch before the reference camera is swapped into slot 0 (Simple-BEV's order).
CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
LIDAR = "LIDAR_TOP"
# The order in which Simple-BEV concatenates the radars.
RADARS = (
    "RADAR_BACK_RIGHT",
    "RADAR_BACK_LEFT",
    "RADAR_FRONT",
    "RADAR_FRONT_LEFT",
    "RADAR_FRONT_RIGHT",
)
REFERENCE_RADAR = "RADAR_FRONT"  # its timestamp and ego pose define the frame of all radar points

# Fields of a nuScenes radar PCD, in file order (devkit RadarPointCloud).
RADAR_FIELDS = (
    "x",
    "y",
    "z",
    "dyn_prop",
    "id",
    "rcs",
    "vx",
    "vy",
    "vx_comp",
    "vy_comp",
    "is_quality_valid",
    "ambig_state",
    "x_rms",
    "y_rms",
    "invalid_state",
    "pdh0",
    "vx_rms",
    "vy_rms",
)
LIDAR_FIELDS = ("x", "y", "z", "intensity", "ring")

MIN_DISTANCE_M = 2.2  # returns inside this square around the sensor come from the ego car itself
