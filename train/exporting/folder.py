"""The folder of an export: the model, its card, a program that runs it without this project, and what PyTorch said."""

import json
from pathlib import Path

import jinja2
import numpy as np

from common.files import write_atomically
from train.exporting.card import CARD
from train.exporting.writing import counted_axis

README, RUN, REFERENCE = "README.md", "run.py", "reference.npz"
# What inputs mean: name, or name and form of the images.
ABOUT = {
    "images stored": "RGB as decoded from the shards' JPEGs, cameras in the order of `cameras`; resized inside",
    "images network": "RGB in [0, 1], resized and cropped as `resize` says",
    "pix_T_cams stored": "4x4 intrinsics: pixels of the stored images from each camera's frame (X right, Y down, Z forward)",
    "pix_T_cams network": "4x4 intrinsics: pixels of the resized images from each camera's frame (X right, Y down, Z forward)",
    "ref_T_cams": "the grid's frame from each camera's, rigid, metres",
    "ref_T_ego": "the grid's frame from the ego's at the keyframe's time, rigid, metres",
    "lidar_points": "x, y, z in metres in the ego frame, of all sweeps, padded with anything",
    "lidar_count": "how many lidar points each sample has",
    "radar_points": "the rows of radar sweeps as shards have them (x, y, z in metres in the ego frame, …) and the lag in "
    "seconds, padded",
    "radar_count": "how many radar points each sample has",
    "lidar_cells": "number z * X + x of the column that each point lies in, ascending; Z * X for none, and for padding",
    "lidar_features": "of train.model.pillars.grouped, in the order of lidar_cells",
    "radar_cells": "as lidar_cells",
    "radar_features": "as lidar_features",
    "past_features": "`features` of the K keyframes before this one, the newest first",
    "past_pix_T_cams stored": "their intrinsics, as pix_T_cams",
    "past_pix_T_cams network": "their intrinsics, as pix_T_cams",
    "past_ref_T_cams": "the present grid's frame from where their cameras were",
    "past_age_s": "seconds from them to the present",
    "past_is_real": "whether there is such a keyframe; where not, the rest means nothing",
    "lidar_voxels": "1 where a voxel of the grid has a lidar point, else 0",
    "radar_voxels": "what the grid's voxels have of radar: 1 or 0, or 16 features of the last point",
}
# Inputs that run.py knows how to make of a shard.
OF_SHARDS = {"images", "pix_T_cams", "ref_T_cams", "ref_T_ego"} | {
    *("lidar_points", "lidar_count", "radar_points", "radar_count")
}
OUTPUTS = {
    "features": "image features, the newest of the next keyframe's past_features",
    "seg": "logits of each class of `classes`; over 0 is predicted",
    "center": "how near a cell is to the middle of a box, in [0, 1]",
    "offset": "cells along X and Z to the middle of the box that a cell lies in",
}


def described(tensors, inputs, images):
    """{name: {shape, dtype, about}} of inputs, from tensors of one sample; images: of the Form. Axes that vary are named."""
    out = {}
    for name in inputs:
        shape = ["B", *tensors[name].shape[1:]]
        if counted_axis(name):
            shape[1] = "P"
        about = ABOUT.get(f"{name} {images}") or ABOUT.get(name, "as the network's infer takes it")
        out[name] = {"shape": shape, "dtype": str(tensors[name].dtype).removeprefix("torch."), "about": about}
    return out


def outputs_described(outputs):
    """The same of {name: tensor} of outputs."""
    return {
        name: {"shape": ["B", *value.shape[1:]], "dtype": "float32", "about": OUTPUTS.get(name, "the network's own")}
        for name, value in outputs.items()
    }


def write_folder(folder, card, kept, program):
    """Everything but the model. kept: (key, tensors, outputs) of samples. program: what run.py is made for, or None.

    See program_of.
    """
    _write(folder / CARD, json.dumps(card, indent=1) + "\n")
    _write(folder / README, _template("card.md.jinja").render(card=card, has_program=program is not None))
    if program is not None:
        _write(folder / RUN, program_text(program))
    keys = np.array([key for key, _, _ in kept])
    outputs = {name: np.concatenate([want[name].numpy() for *_, want in kept]) for name in kept[0][2]}
    if card["images"] == "network" and "images" in card["inputs"]:  # the loader rounds them to whole levels
        outputs["images"] = np.concatenate([(255 * t["images"].numpy()).round().astype(np.uint8) for _, t, _ in kept])
    np.savez_compressed(folder / REFERENCE, keys=keys, **outputs)


def program_of(card, radar_filters):
    """What run.py.jinja is rendered with; None where an input is one that it does not know how to make.

    radar_filters: (row, values) of each.
    """
    if not set(card["inputs"]) <= OF_SHARDS:
        return None
    points = [sensor for sensor in ("lidar", "radar") if f"{sensor}_points" in card["inputs"]]
    images = card["images"] if "images" in card["inputs"] else ""
    return {
        "file": card["file"],
        "images": images,
        "points": points,
        "calibration": not card["calibration"],
        "frame": card["grid"]["frame"],
        "true_times": card["true_times"],
        "radar_filters": radar_filters,
    }


def program_text(program):
    """The text of run.py. program: what program_of gives."""
    return _template("run.py.jinja").render(**program)


def _write(path, text):
    write_atomically(path, text.encode())


def _template(name):
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).get_template(name)
