"""What preprocess.writer is given of a keyframe: images, points and boxes."""

from dataclasses import dataclass

import numpy as np

from common.rig import Distortion


@dataclass(frozen=True)
class CameraImage:
    """One camera's image of a keyframe.

    Attributes:
        image: bytes of a JPEG, kept as they are where nothing is to be changed, or an (H, W, 3) uint8 RGB array.
        intrinsics: (3, 3), its pixels from the camera's frame (X right, Y down, Z forward); the first pixel's middle is (0, 0).
        ego_T_cam: (4, 4) metres.
        timestamp_us: when it was taken; None: at the keyframe's time. global_T_ego: (4, 4) pose of the car then; None: the
            keyframe's.
        distortion: of its lens, where that is not the rig's: of drives that were calibrated anew, whose images are rectified.
    """

    image: bytes | np.ndarray
    intrinsics: np.ndarray
    ego_T_cam: np.ndarray
    timestamp_us: int | None = None
    global_T_ego: np.ndarray | None = None
    distortion: Distortion | None = None


@dataclass(frozen=True)
class PointCloud:
    """Points of one lidar or radar.

    Attributes:
        columns: name -> (n,) numbers: x, y, z in metres in the sensor's frame, and the other fields that the rig names; a lidar
            without intensity or ring has 0 and -1.
        ego_T_sensor: (4, 4) metres.
        timestamp_us, global_T_ego: as CameraImage's; sweeps before the keyframe need both.
    """

    columns: dict
    ego_T_sensor: np.ndarray
    timestamp_us: int | None = None
    global_T_ego: np.ndarray | None = None


@dataclass(frozen=True)
class Box:
    """One annotated thing.

    Attributes:
        category: a name of the rig's categories, or one that the writer's table maps to one.
        centre: x, y, z metres. size: width, length, height metres. Heading: `rotation`, a quaternion w, x, y, z, or
            `yaw`, radians from the frame's x towards its y; a thing drives along its own x. All in the global frame, or with
            frame="ego" in the keyframe's ego frame.
        instance: the same text for a thing in all keyframes. velocity: x, y, z m/s in that frame, or None.
        visibility: 1 to 4, or 0 where it is not annotated. num_lidar_pts, num_radar_pts: -1 where they are not known.
    """

    category: str
    centre: tuple
    size: tuple
    yaw: float | None = None
    rotation: tuple | None = None
    instance: str = ""
    frame: str = "global"
    velocity: tuple | None = None
    attributes: tuple = ()
    visibility: int = 0
    num_lidar_pts: int = -1
    num_radar_pts: int = -1
