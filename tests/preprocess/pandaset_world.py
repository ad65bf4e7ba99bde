"""Made PandaSet sequences: pickles as pandas 0.25 wrote them, without pandas."""

import copyreg
import gzip
import io
import json
import pickle
import types

import numpy as np
import simplejpeg

from preprocess.datasets.pandaset import CAMERAS
from preprocess.frames import quaternion_of

FRAMES = 11
_MODULES = {
    "DataFrame": "pandas.core.frame",
    "BlockManager": "pandas.core.internals.managers",
    "Index": "pandas.core.indexes.base",
    "_new_Index": "pandas.core.indexes.base",
    "RangeIndex": "pandas.core.indexes.range",
}


class DataFrame:
    def __init__(self, state):
        self.state = state

    def __reduce_ex__(self, protocol):
        return copyreg.__newobj__, (type(self),), self.state


class BlockManager(DataFrame):
    pass


class Index:
    def __init__(self, kind, parts):
        self.kind, self.parts = kind, parts

    def __reduce_ex__(self, protocol):
        return _new_Index, (self.kind, self.parts)


class RangeIndex(Index):
    pass


def _new_Index(kind, parts):
    return kind(kind, parts)


class _Pickler(pickle._Pickler):  # the one in Python, whose names can be others
    def save_global(self, obj, name=None):
        module, name = getattr(obj, "__module__", None), name or obj.__qualname__
        if module == __name__:
            module = _MODULES[name]
        elif module is not None:
            module = module.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name}\n".encode())
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {types.FunctionType: save_global}


def frame_pickle(columns):
    """The bytes of a `.pkl.gz` of {name: (n,) array}."""
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    arrays = {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in arrays.items()}
    groups = {}
    for name, array in arrays.items():
        groups.setdefault(array.dtype, []).append(name)

    def names_of(names):
        return Index(Index, {"data": np.array(names, object), "name": None})

    rows = RangeIndex(RangeIndex, {"start": 0, "stop": len(next(iter(arrays.values()))), "step": 1})
    blocks = [np.stack([arrays[name] for name in own]) for own in groups.values()]
    items = [names_of(own) for own in groups.values()]
    manager = BlockManager(([names_of(list(arrays)), rows], blocks, items, {"0.14.1": {"blocks": [slice(0, 1, 1)]}}))
    out = io.BytesIO()
    _Pickler(out, 3).dump(DataFrame({"_data": manager, "_typ": "dataframe", "_metadata": []}))
    return gzip.compress(out.getvalue(), 1)


def _quaternion(x_axis, y_axis):
    return dict(
        zip("wxyz", quaternion_of(np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)], 1)).tolist(), strict=True)
    )


def write_sequence(folder, speed_mps=5.0, frames=FRAMES, hw=(54, 96)):
    """A car that drives along world x, past a parked car 10 m to its left, behind one that keeps 12 m ahead of it."""
    ahead, left, up = np.eye(3)
    headings = dict(zip(CAMERAS, (ahead + left, ahead, ahead - left, left, -ahead, -left), strict=True))
    stamps = [1.5e9 + 0.1 * n for n in range(frames)]
    for name in ("annotations/cuboids", "lidar", "meta", *(f"camera/{c}" for c in CAMERAS)):
        (folder / name).mkdir(parents=True)
    (folder / "meta/timestamps.json").write_text(json.dumps(stamps))
    (folder / "meta/gps.json").write_text(json.dumps([{"lat": 37.77, "long": -122.4}] * frames))
    poses = [
        {"position": {"x": speed_mps * 0.1 * n, "y": 0.0, "z": 0.0}, "heading": _quaternion(-left, ahead)}
        for n in range(frames)
    ]
    (folder / "lidar/poses.json").write_text(json.dumps(poses))
    for camera, forward in headings.items():
        own, lag = folder / "camera" / camera, 0.05
        forward = forward / np.linalg.norm(forward)
        places = [{"x": speed_mps * (0.1 * n - lag), "y": 0.0, "z": 1.6} for n in range(frames)]
        heading = _quaternion(np.cross(forward, up), -up)
        (own / "poses.json").write_text(json.dumps([{"position": p, "heading": heading} for p in places]))
        (own / "timestamps.json").write_text(json.dumps([t - lag for t in stamps]))
        (own / "intrinsics.json").write_text(json.dumps({"fx": hw[1], "fy": hw[1], "cx": hw[1] / 2, "cy": hw[0] / 2}))
        for n in range(frames):
            grey = np.full((*hw, 3), 20 * n % 255, np.uint8)
            (own / f"{n:02d}.jpg").write_bytes(simplejpeg.encode_jpeg(grey))
    for n in range(frames):
        (folder / f"lidar/{n:02d}.pkl.gz").write_bytes(frame_pickle(_sweep(stamps[n], speed_mps * 0.1 * n)))
        (folder / f"annotations/cuboids/{n:02d}.pkl.gz").write_bytes(frame_pickle(_cuboids(speed_mps * 0.1 * n)))


def _sweep(stamp, x):
    points = np.array([[x + 10.0, 0, 1], [x + 12.0, 0, 1], [10.0, 10.0, 0.5], [x + 1.0, 0.5, 1.0], [x + 30, 3, 2]])
    return {
        **dict(zip("xyz", points.T, strict=True)),
        "i": np.array([1.0, 2, 3, 4, 255]),
        "t": stamp - np.array([0.1, 0.05, 0.02, 0.01, 0.03]),
        "d": np.array([0, 0, 0, 0, 1]),
    }


def _cuboids(x):
    """A parked car, one ahead with a box of each lidar, whose sibling's name is cut short, and a walker of lidar 1 alone."""
    count = 4
    return {
        "uuid": np.array(["aaaa-parked", "bbbb-ahead", "cccc-ahead", "dddd-walker"]),
        "label": np.array(["Car", "Car", "Car", "Pedestrian"]),
        "yaw": np.array([0.0, -np.pi / 2, -np.pi / 2, 1.0]),
        "stationary": np.array([True, False, False, False]),
        "camera_used": np.full(count, -1),
        "position.x": np.array([10.0, x + 12, x + 12.1, x + 5]),
        "position.y": np.array([10.0, 0, 0, -6]),
        "position.z": np.full(count, 0.8),
        "dimensions.x": np.array([1.8, 1.9, 1.9, 0.6]),
        "dimensions.y": np.array([4.5, 4.7, 4.7, 0.6]),
        "dimensions.z": np.full(count, 1.6),
        "attributes.object_motion": np.array(["Parked", "Moving", "Moving", np.nan], object),
        "cuboids.sibling_id": np.array(["-", "cccc-ahead", "bbbb", "-"]),
        "cuboids.sensor_id": np.array([-1, 0, 1, 1]),
    }
