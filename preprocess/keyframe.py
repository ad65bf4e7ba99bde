"""One keyframe's recipe + its sensor files -> the record's members."""

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.record import (
    BOX_DTYPE,
    BOXES_MEMBER,
    CAMERA_DTYPE,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    encode_json,
    encode_points,
    encode_rows,
    image_member,
    lidar_member,
    parse_sample,
    radar_member,
)
from common.rig import rig_of
from common.rigid import rigid_inverse
from preprocess.datasets import dataset_of
from preprocess.errors import SourceError, sample_error
from preprocess.frames import rotation_matrix
from preprocess.images import stored_image
from preprocess.pointclouds import to_frame


def read_source(source, filename, key):
    """(what a sensor file holds, what messages call it).

    source: the data set's folder; or a mapping from names to bytes and arrays, of data that lies in no files.
    Raises SourceError, naming file and sample, if a file is missing or empty.
    """
    if isinstance(source, Mapping):
        return source[filename], filename
    path = Path(source) / filename
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise SourceError(f"{path}: sensor file is {reason} (sample {key})") from None
    if not data:
        raise SourceError(f"{path}: sensor file is empty (sample {key})")
    return data, path


def build_record(source, recipe, facts, image_hw=None, jpeg_quality=90):
    """The members of one keyframe.

    Args:
        source: the data set's folder, or a mapping: see read_source.
        recipe: KeyframeRecipe. facts: of its shard, written into sample.json.
        image_hw: (height, width) to re-encode images to; None keeps the source bytes.
    Returns:
        (members, read): dict from member name to bytes in tar order; bytes read by kind of file, and by their names how often
            what preprocess.pointclouds counts was met.
    Raises:
        SourceError: naming file and sample. What a reader would refuse is refused here already.
    """
    try:
        rig = rig_of(facts, recipe.facts["schema"])
        cameras, images, camera_in = _images(source, recipe, rig, image_hw, jpeg_quality)
        radar, radar_in = _radar(source, recipe, rig, facts)
        lidar, lidar_in, found = _lidar(source, recipe, rig, facts)
        members = {
            SAMPLE: encode_json(_sample_json(recipe, facts, rig)),
            CAMERAS_MEMBER: encode_rows(cameras),
            BOXES_MEMBER: encode_rows(_boxes(recipe)),
            **radar,
            **images,
            **lidar,
        }
        sample = parse_sample(members[SAMPLE])
        decode_cameras(members[CAMERAS_MEMBER], sample)
        decode_boxes(members[BOXES_MEMBER], sample)
    except (SourceError, RecordError) as error:
        text = str(error)
        raise sample_error(text if recipe.key in text else f"{text} (sample {recipe.key})") from None
    return members, {"images": camera_in, "radar": radar_in, "lidar": lidar_in, **found}


def _sample_json(recipe, facts, rig):
    cameras = [{"channel": c.channel, "token": c.token, "filename": c.filename} for c in recipe.cameras]
    lidar, radar = ([[_sweep_json(f) for f in files] for files in sweeps] for sweeps in (recipe.lidar, recipe.radar))
    return {
        **recipe.facts,
        "facts": facts,
        "global_T_ego": recipe.global_T_ego.tolist(),
        "cameras": cameras,
        "lidar": lidar if len(rig.lidars) > 1 else [files[0] for files in lidar],
        "radar": radar,
        "boxes": {name: [b[name] for b in recipe.boxes] for name in ("token", "instance", "category", "attributes")},
    }


def _sweep_json(file):
    return {
        "channel": file.channel,
        "token": file.token,
        "filename": file.filename,
        "timestamp_us": file.timestamp,
        "lag_s": file.lag,
    }


def _images(source, recipe, rig, image_hw, quality):
    rows = np.zeros(len(recipe.cameras), CAMERA_DTYPE)
    members, read = {}, 0
    kept = {camera.name: camera.distortion for camera in rig.cameras}
    for row, camera in zip(rows, recipe.cameras, strict=True):
        data, path = read_source(source, camera.filename, recipe.key)
        read += len(data)
        bent = camera.distortion if kept[camera.channel] is None else None
        image = stored_image(data, path, camera.intrinsics, image_hw, quality, bent)
        if camera.height and (camera.height, camera.width) != image.source_hw:
            found, said = ("x".join(map(str, size)) for size in (image.source_hw, (camera.height, camera.width)))
            raise SourceError(f"{path}: {found} pixels, its table says {said}")
        row["intrinsics"], row["ego_T_cam"], row["global_T_ego"] = (
            image.intrinsics,
            camera.ego_T_cam,
            camera.global_T_ego,
        )
        row["timestamp_us"], (row["height"], row["width"]) = camera.timestamp, image.hw
        members[image_member(camera.channel)] = image.data
    return rows, members, read


def _lidar(source, recipe, rig, facts):
    """One member per sweep: the rig's fields and, of a rig with several lidars, the lidar's place in it."""
    members, read, found, reader = {}, 0, Counter(), dataset_of(facts)
    for k, sweep in enumerate(recipe.lidar):
        clouds = []
        # A data set may keep several lidars of a sweep in one file, which is read once.
        for filename, group in itertools.groupby(sweep, lambda file: file.filename):
            files = list(group)
            data, path = read_source(source, filename, recipe.key)
            read += len(data)
            found_here = reader.lidar_points(data, path, files, facts, found)
            for file, points in zip(files, found_here, strict=True):
                clouds.append(_numbered(to_frame(points, file.ego_T_sensor), file.channel, rig))
        members[lidar_member(k)] = encode_points(np.concatenate(clouds, axis=1) if len(clouds) > 1 else clouds[0])
    return members, read, found


def _numbered(points, channel, rig):
    """The points of a lidar with its place in the rig, where that has several."""
    if len(rig.lidars) == 1:
        return points
    number = np.full((1, points.shape[1]), rig.lidars.index(channel), np.float32)
    return np.concatenate([points, number])


def _radar(source, recipe, rig, facts):
    """One member per sweep: the rig's fields, then time lag in seconds, then the radar's place in the rig."""
    members, read, reader = {}, 0, dataset_of(facts)
    for k, files in enumerate(recipe.radar):
        clouds = []
        for file in files:
            data, path = read_source(source, file.filename, recipe.key)
            read += len(data)
            points = reader.radar_points(data, path, file, facts)
            extra = np.empty((2, points.shape[1]), np.float32)
            extra[0], extra[1] = file.lag, rig.radar_names.index(file.channel)
            clouds.append(np.concatenate([to_frame(points, file.ego_T_sensor), extra]))
        members[radar_member(k)] = encode_points(np.concatenate(clouds, axis=1))
    return members, read


def _boxes(recipe):
    rows = np.zeros(len(recipe.boxes), BOX_DTYPE)
    if not len(rows):
        return rows
    for name in ("visibility", "num_lidar_pts", "num_radar_pts"):
        rows[name] = [b[name] for b in recipe.boxes]
    rows["global_xyz"] = [b["translation"] for b in recipe.boxes]
    rows["wlh"] = [b["size"] for b in recipe.boxes]
    rows["global_quat_wxyz"] = [b["rotation"] for b in recipe.boxes]
    rows["velocity"] = [b["velocity"] or (np.nan,) * 3 for b in recipe.boxes]
    ego_T_global = rigid_inverse(recipe.global_T_ego)
    ego_T_box = np.zeros((len(rows), 4, 4))
    ego_T_box[:, :3, :3] = ego_T_global[:3, :3] @ rotation_matrix(rows["global_quat_wxyz"])
    # Rotating the difference, not the position: global coordinates are in the thousands of metres.
    moved = rows["global_xyz"] - recipe.global_T_ego[:3, 3]
    ego_T_box[:, :3, 3] = moved @ ego_T_global[:3, :3].T
    ego_T_box[:, 3, 3] = 1.0
    lengths = rows["wlh"][:, [1, 0, 2]]
    rows["ego_lrt"] = np.concatenate([lengths, ego_T_box.reshape(-1, 16)], axis=1)
    return rows
