"""What calibration and boxes can be: asked of the tables by preprocessing, and of finished records by verify."""

import numpy as np

from preprocess.errors import SourceError

MAX_COUNT = 2**31 - 1


def check_intrinsics(matrix, what):
    """Raise SourceError unless (3, 3) intrinsics have positive focal lengths and 0, 0, 1 below them."""
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or matrix[2].tolist() != [0, 0, 1]:
        raise SourceError(
            f"{what}: camera_intrinsic {matrix.tolist()} is not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx and fy positive"
        )


def check_rigid(a_T_b, what):
    """Raise SourceError unless a (4, 4) transform turns and shifts without stretching."""
    rotation = a_T_b[:3, :3]
    turned = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6) and np.linalg.det(rotation) > 0
    if not turned or a_T_b[3].tolist() != [0, 0, 0, 1]:
        raise SourceError(f"{what}: is not a rigid transform, its rotation stretches or mirrors")


def check_camera(intrinsics, ego_T_cam, what):
    """Raise SourceError for a camera's calibration that cannot be."""
    check_intrinsics(intrinsics, what)
    check_rigid(ego_T_cam, what)


def check_sizes(rows, wlh, table):
    """Raise SourceError for the first of (n, 3) box sizes with a negative side; `rows` are its table's."""
    negative = (wlh < 0).any(1)
    if negative.any():
        n = int(np.flatnonzero(negative)[0])
        raise SourceError(f"{table} {rows[n]['token']}: size {wlh[n].tolist()} has a negative side")


def check_count(value, what, name):
    """Raise SourceError unless `value` is a number of points, or -1 where the source has none."""
    if type(value) is not int or not -1 <= value <= MAX_COUNT:
        raise SourceError(f"{what}: {name} = {value!r} is no number of points")


def check_boxes(rows, what):
    """Raise SourceError for (n,) rows of BOX_DTYPE that the tables could not have given."""
    check_sizes([{"token": f"row {n}"} for n in range(len(rows))], rows["wlh"], what)
    for n, row in enumerate(rows):
        where = f"{what}: row {n}"
        for name in ("num_lidar_pts", "num_radar_pts"):
            check_count(int(row[name]), where, name)
        if not 0 <= row["visibility"] <= 4:
            raise SourceError(f"{where}: visibility {row['visibility']} is not 0 to 4")
        check_rigid(row["ego_lrt"][3:].reshape(4, 4), where)
        if not row["global_quat_wxyz"].any():
            raise SourceError(f"{where}: rotation is the zero quaternion")
