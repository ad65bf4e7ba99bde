"""Points of one's own data, which preprocess.writer is given as arrays and not as files."""

from preprocess.errors import SourceError
from preprocess.pointclouds import lidar_problem, radar_problem, remove_ego_returns


def lidar_points(data, path, files, facts, found):
    """The cloud that the writer was given; see preprocess.datasets."""
    return [_checked(data, path, lidar_problem(data), facts) for _ in files]


def radar_points(data, path, file, facts):
    """The same of a radar."""
    return _checked(data, path, radar_problem(data, ()), facts)


def _checked(points, path, problem, facts):
    if problem is not None:
        raise SourceError(f"{path}: {problem}")
    return remove_ego_returns(points, facts["min_distance_m"])
