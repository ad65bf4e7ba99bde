"""A scene as an MCAP file of Foxglove's protobuf messages.

By its documentation Foxglove shows all of them. Rerun (0.41 was tried, by `rerun mcap convert`) takes images, calibration,
points and transforms; it keeps boxes (SceneUpdate) and label maps (Grid) unread, so these are there a second time, in forms
that it shows: the boxes' edges as points, the maps as an image.

Frames: global > ego > each camera. Everything of a keyframe carries its timestamp; images are the stored bytes.
"""

from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import new_file
from common.record import CAMERAS_MEMBER, SAMPLE, decode_cameras, image_member, parse_sample
from train.pictures.layout import encode, panels
from train.pictures.palette import colour_of

PANELS_PX = 1200
_POINTS_AN_EDGE = 16


def _model_of(distortion):
    """Foxglove's name of a lens, and how many of its coefficients that has."""
    if distortion.model == "kannala_brandt":
        return "kannala_brandt", 4
    return ("plumb_bob", 5) if len(distortion.coefficients) <= 5 else ("rational_polynomial", 8)


def write_recording(path, frames):
    """Write keyframes to `path`; the file gets its name when it is whole. Returns their number.

    Args:
        frames: (members, View) of each keyframe, in time order: see train.pictures.view.view_of_record.
    Raises:
        ValueError: a name that does not end in .mcap, or packages that are not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".mcap":
        raise InputError(f"{path}: a recording ends in .mcap")
    try:
        from mcap_protobuf.writer import Writer

        messages = _Messages()
    except ImportError as error:
        raise InputError(f"a recording needs the mcap extra ({error}): pip install 'bevshards[mcap]'") from None
    count = 0
    with new_file(path) as file, Writer(file) as writer:
        for members, view in frames:
            stamp_ns = view.timestamp_us * 1000
            for topic, message in messages.of_keyframe(members, view, stamp_ns):
                writer.write_message(topic, message, log_time=stamp_ns, publish_time=stamp_ns)
            count += 1
    return count


def quaternion(rotation):
    """x, y, z, w of a rotation matrix (3, 3), by the largest of its four squares (Shepperd's method)."""
    trace = np.trace(rotation)
    largest = int(np.argmax([*np.diag(rotation), trace]))
    if largest == 3:
        xyz = [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
        raw = np.array([*xyz, 1 + trace])
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        raw = np.zeros(4)
        raw[i] = 1 + 2 * rotation[i, i] - trace
        raw[j], raw[k] = rotation[j, i] + rotation[i, j], rotation[k, i] + rotation[i, k]
        raw[3] = rotation[k, j] - rotation[j, k]
    return (raw / np.linalg.norm(raw)).tolist()


def edge_points():
    """(12 * _POINTS_AN_EDGE, 3) points on the edges of a cube of side 1 around the origin."""
    along = np.linspace(-0.5, 0.5, _POINTS_AN_EDGE)
    out = []
    for axis in range(3):
        for a in (-0.5, 0.5):
            for b in (-0.5, 0.5):
                edge = np.empty((_POINTS_AN_EDGE, 3))
                edge[:, axis], edge[:, axis - 1], edge[:, axis - 2] = along, a, b
                out.append(edge)
    return np.concatenate(out)


class _Messages:
    """The messages of a keyframe. The schemas are imported here alone, since they are an extra."""

    def __init__(self):
        from foxglove_schemas_protobuf import (
            CameraCalibration_pb2,
            CompressedImage_pb2,
            FrameTransform_pb2,
            Grid_pb2,
            PackedElementField_pb2,
            PointCloud_pb2,
            Pose_pb2,
            SceneEntity_pb2,
            SceneUpdate_pb2,
        )

        self.Calibration = CameraCalibration_pb2.CameraCalibration
        self.Image = CompressedImage_pb2.CompressedImage
        self.Transform = FrameTransform_pb2.FrameTransform
        self.Grid = Grid_pb2.Grid
        self.Field = PackedElementField_pb2.PackedElementField
        self.Cloud = PointCloud_pb2.PointCloud
        self.Pose = Pose_pb2.Pose
        self.Entity = SceneEntity_pb2.SceneEntity
        self.Scene = SceneUpdate_pb2.SceneUpdate

    def of_keyframe(self, members, view, stamp_ns):
        """(topic, message) of all that a keyframe holds."""
        sample = parse_sample(members[SAMPLE])
        yield "/pose", self._transform("global", "ego", np.array(sample["global_T_ego"], float), stamp_ns)
        rows = decode_cameras(members[CAMERAS_MEMBER], sample)
        rows = dict(zip([camera["channel"] for camera in sample["cameras"]], rows, strict=True))
        lenses = {camera.name: camera.distortion for camera in view.rig.cameras}
        for camera in view.cameras:
            yield "/pose", self._transform("ego", camera.name, camera.ego_T_cam, stamp_ns)
            yield (
                f"/{camera.name}/calibration",
                self._calibration(camera.name, rows[camera.name], lenses.get(camera.name), stamp_ns),
            )
            yield (
                f"/{camera.name}/image",
                self._image(camera.name, members[image_member(camera.name)], "jpeg", stamp_ns),
            )
        if view.lidar is not None:
            yield "/lidar", self._cloud(view.lidar, ("x", "y", "z", "intensity"), stamp_ns)
        if view.radar is not None:
            yield "/radar", self._cloud(view.radar, ("x", "y", "z", "vx", "vy"), stamp_ns)
        yield "/boxes", self._boxes(view, sample["boxes"]["instance"], stamp_ns)
        yield "/boxes/edges", self._edges(view.boxes, stamp_ns)
        if view.maps is not None:
            if view.maps.truth is not None or view.maps.prediction is not None:
                yield "/bev/grid", self._grid(view.maps, stamp_ns)
            yield "/bev/panels", self._image("ego", encode(panels(view, PANELS_PX)), "png", stamp_ns)

    def _stamped(self, kind, frame, stamp_ns):
        message = kind(frame_id=frame)
        message.timestamp.FromNanoseconds(stamp_ns)
        return message

    def _pose(self, matrix):
        pose = self.Pose()
        pose.position.x, pose.position.y, pose.position.z = matrix[:3, 3].tolist()
        q = pose.orientation
        q.x, q.y, q.z, q.w = quaternion(matrix[:3, :3])
        return pose

    def _transform(self, parent, child, parent_T_child, stamp_ns):
        message = self.Transform(parent_frame_id=parent, child_frame_id=child)
        message.timestamp.FromNanoseconds(stamp_ns)
        pose = self._pose(parent_T_child)
        message.rotation.CopyFrom(pose.orientation)
        message.translation.x, message.translation.y, message.translation.z = parent_T_child[:3, 3].tolist()
        return message

    def _calibration(self, name, row, distortion, stamp_ns):
        message = self._stamped(self.Calibration, name, stamp_ns)
        message.width, message.height = int(row["width"]), int(row["height"])
        if distortion is not None:
            model, count = _model_of(distortion)
            message.distortion_model = model
            message.D.extend([*distortion.coefficients, 0.0][:count])
        message.K.extend(row["intrinsics"].ravel().tolist())
        message.R.extend(np.eye(3).ravel().tolist())
        message.P.extend(np.pad(row["intrinsics"], ((0, 0), (0, 1))).ravel().tolist())
        return message

    def _image(self, frame, data, kind, stamp_ns):
        message = self._stamped(self.Image, frame, stamp_ns)
        message.data, message.format = bytes(data), kind
        return message

    def _cloud(self, points, names, stamp_ns, colours=None):
        """points: (n, N) float32, a row a name. colours: (N, 4) uint8, red, green, blue and opacity of each point."""
        message = self._stamped(self.Cloud, "ego", stamp_ns)
        message.pose.CopyFrom(self._pose(np.eye(4)))
        message.fields.extend(
            self.Field(name=name, offset=4 * n, type=self.Field.FLOAT32) for n, name in enumerate(names)
        )
        data = np.ascontiguousarray(points[: len(names)].T, "<f4").view(np.uint8)
        if colours is not None:
            message.fields.extend(
                self.Field(name=name, offset=data.shape[1] + n, type=self.Field.UINT8)
                for n, name in enumerate(("red", "green", "blue", "alpha"))
            )
            data = np.concatenate([data, colours], 1)
        message.point_stride = data.shape[1]
        message.data = data.tobytes()
        return message

    def _edges(self, boxes, stamp_ns):
        """The twelve edges of each box as points in its category's colour."""
        own = edge_points() * boxes.lrt[:, None, :3]
        points = np.einsum("nij,npj->npi", boxes.ego_T_box[:, :3, :3], own) + boxes.ego_T_box[:, None, :3, 3]
        colours = np.array([(*colour_of(name), 255) for name in boxes.categories], np.uint8).reshape(-1, 4)
        return self._cloud(points.reshape(-1, 3).T, ("x", "y", "z"), stamp_ns, colours.repeat(own.shape[1], 0))

    def _boxes(self, view, instances, stamp_ns):
        scene, boxes = self.Scene(), view.boxes
        for n, instance in enumerate(instances):
            entity = self._stamped(self.Entity, "ego", stamp_ns)
            entity.id = instance
            # Boxes vanish where the next keyframe does not renew them.
            entity.lifetime.FromNanoseconds(round(1e9 * view.rig.keyframe_interval_s))
            entity.metadata.add(key="category", value=boxes.categories[n])
            entity.metadata.add(key="visibility", value=str(int(boxes.visibility[n])))
            cube = entity.cubes.add()
            cube.pose.CopyFrom(self._pose(boxes.ego_T_box[n]))
            cube.size.x, cube.size.y, cube.size.z = boxes.lrt[n, :3].tolist()
            red, green, blue = (c / 255 for c in colour_of(boxes.categories[n]))
            cube.color.r, cube.color.g, cube.color.b = red, green, blue
            cube.color.a = 0.2 if boxes.visibility[n] == 1 else 0.5
            scene.entities.append(entity)
        return scene

    def _grid(self, maps, stamp_ns):
        """The maps, side by side in each cell; a Grid's columns go along its x axis, its rows along y: X and Z of ref."""
        layers = {}
        for name in ("truth", "valid", "prediction"):
            layer = getattr(maps, name)
            if layer is None:
                continue
            of_classes = zip(maps.class_names, layer, strict=True) if maps.class_names else ()
            layers |= {f"{name} {of}": own for of, own in of_classes} or {name: layer}
        rows, columns = next(iter(layers.values())).shape
        message = self._stamped(self.Grid, "ego", stamp_ns)
        low, high = np.array(maps.low_xz_m), np.array(maps.high_xz_m)
        ego_T_grid = np.eye(4)
        ego_T_grid[:3, :3] = maps.ego_T_ref[:3, :3] @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
        ego_T_grid[:3, 3] = maps.ego_T_ref[:3, :3] @ [low[0], 0.0, low[1]] + maps.ego_T_ref[:3, 3]
        ego_T_grid[2, 3] = 0.0  # on the road, not at the camera
        message.pose.CopyFrom(self._pose(ego_T_grid))
        message.column_count = columns
        message.cell_size.x, message.cell_size.y = ((high - low) / [columns, rows]).tolist()
        message.cell_stride = 4 * len(layers)
        message.row_stride = columns * message.cell_stride
        message.fields.extend(
            self.Field(name=name, offset=4 * n, type=self.Field.FLOAT32) for n, name in enumerate(layers)
        )
        message.data = np.stack(list(layers.values()), -1).astype("<f4").tobytes()
        return message
