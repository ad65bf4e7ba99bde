"""What is said of an export: its card, lines on the console, the table of forms."""

import platform
from dataclasses import dataclass, field

import torch

from common.progress import counted
from common.versions import own_version, version_of
from train.data.points import RADAR_FILTERS
from train.exporting import folder
from train.exporting.card import sha256_of
from train.exporting.compare import NEAR
from train.exporting.writing import OPSET


@dataclass
class Facts:
    """What was chosen and found on the way to a file.

    view, seconds: the camera mean's form, and of those that were tried the seconds of each. constants: inputs that are baked
    in. bound: of float32 outputs' differences from PyTorch's. operators: how many of each. quantisation: see
    quantised.write_int8. batches: largest difference in those of each size.
    """

    format: str
    precision: str
    view: str
    seconds: dict
    constants: dict
    bound: float
    operators: dict = field(default_factory=dict)
    quantisation: dict | None = None
    batches: dict = field(default_factory=dict)


def card_of(parts, feeds, reference, tensors, file, found, facts):
    """The card, as JSON has it. parts: of train.jobs.exporting. found: Comparison. The rest as there."""
    options = parts.options
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
        "format": facts.format,
        "precision": facts.precision,
        "opset": OPSET if facts.format == "onnx" else None,
        "operators": facts.operators,
        "quantisation": facts.quantisation,
        "network": options.model,
        "inputs": folder.described(tensors, reference.inputs, feeds.form.images),
        "outputs": folder.outputs_described(found.kept[0][2]),
        "images": feeds.form.images,
        "calibration": feeds.form.calibration,
        "constants": {name: value.tolist() for name, value in facts.constants.items()},
        "view": facts.view,
        "views_s": facts.seconds,
        "cameras": list(feeds.cams),
        "sweeps": options.nsweeps,
        "true_times": options.true_times,
        "resize": feeds.resize_facts() if "images" in tensors else None,
        "grid": {"frame": options.frame, "Z": options.Z, "Y": options.Y, "X": options.X}
        | {"bounds": list(options.bounds), "centroid": list(parts.loader.decode.grid.centroid)},
        "classes": list(parts.loader.decode.labels[0].class_names),
        "checkpoint": {"path": str(parts.path), "step": parts.step, "weights": parts.weights}
        | {"sha256": sha256_of(parts.path)},
        "data": _data(parts.loader.reader),
        "measured": _measured(found, facts, len(parts.loader.windows)),
        "versions": {"bevshards": own_version(), "python": platform.python_version(), "torch": str(torch.__version__)}
        | {name: version_of(name) for name in ("onnx", "onnxscript", "onnxruntime")},
    }


def _data(reader):
    return {
        "dataset": reader.rig.dataset,
        "licence": reader.rig.licence,
        "version": reader.facts["version"],
        "split": reader.facts.get("split", ""),
        "samples_sha256": reader.samples_sha256,
        "shards": {str(index.tar): index.tar_sha256 for index in reader.indexes},
    }


def _measured(found, facts, samples):
    (own, other), (first, second) = found.iou(), found.cpu_s()
    return {
        "samples": found.samples,
        "of": samples,
        "kept": len(found.kept),
        "difference": found.differences,
        "batches": {str(size): value for size, value in facts.batches.items()},
        "bound": facts.bound if facts.precision == "fp32" else None,
        "cells": found.cells,
        "cells_other": found.other,
        "cells_near": found.near,
        "iou": {"checkpoint": own["iou"], "exported": other["iou"]} if own else None,
        "iou_of_classes": {"checkpoint": own, "exported": other},
        "cpu_ms": {"checkpoint": 1000 * first, "exported": 1000 * second},
        "machine": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}{_vnni()}",
    }


def _vnni():
    """Whether the CPU multiplies bytes as fast as int8 wants it."""
    try:
        with open("/proc/cpuinfo") as file:
            return " with VNNI" if "_vnni" in file.read() else " without VNNI"
    except OSError:
        return ""


def radar_filters(options, rig):
    """(row, values) of each field that --use_radar_filters looks at."""
    if not options.use_radar_filters:
        return []
    names = [each.name for each in rig.radar_fields]
    return [(names.index(name), list(values)) for name, values in RADAR_FILTERS.items()]


def lines_of(card, took):
    """What is said of an export that took so many seconds."""
    measured = card["measured"]
    what = [f"{card['bytes'] / 1e6:.1f} MB", card["precision"]]
    if card["opset"]:
        what += [f"opset {card['opset']}", f"{sum(card['operators'].values())} operators"]
    if card["view"]:
        what.append(f"view {card['view']}")
    yield f"{card['file']}: {', '.join(what)}; exported in {took:.0f} s"
    if card["quantisation"]:
        errors = ", ".join(f"{name} {value:.4f}" for name, value in card["quantisation"]["error"].items())
        left = ", ".join(card["quantisation"]["left_out"]) or "none"
        yield f"convolutions left in float32: {left}; mean error of logits with each group left out: {errors}"
    differences = ", ".join(f"{name} {value:.1e}" for name, value in measured["difference"].items())
    sizes = ", ".join(f"{size}: {value:.1e}" for size, value in measured["batches"].items())
    yield f"beside PyTorch on {counted(measured['samples'], 'sample')}: largest difference {differences}; batches of {sizes}"
    yield (
        f"{measured['cells_other']} of {measured['cells']} cells predicted otherwise, {measured['cells_near']} of them "
        f"within {NEAR:g} of the threshold"
    )
    if measured["iou"]:
        yield f"IoU {measured['iou']['exported']:.5f}, the checkpoint's {measured['iou']['checkpoint']:.5f}"
    yield f"{measured['cpu_ms']['exported']:.0f} ms of CPU a sample, PyTorch {measured['cpu_ms']['checkpoint']:.0f}"


def table_of(cards):
    """Lines of the table of forms; cards by name."""
    first = next(iter(cards.values()))["measured"]
    yield "| form | MB | CPU ms a sample | PyTorch's | IoU | checkpoint's | largest difference of logits | cells otherwise |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, card in cards.items():
        found, iou = card["measured"], card["measured"]["iou"] or {"exported": 0.0, "checkpoint": 0.0}
        view = f" ({card['view']})" if card["calibration"] else ""
        yield (
            f"| {name}{view} | {card['bytes'] / 1e6:.1f} "
            f"| {found['cpu_ms']['exported']:.0f} | {found['cpu_ms']['checkpoint']:.0f} "
            f"| {iou['exported']:.5f} | {iou['checkpoint']:.5f} | {max(found['difference'].values()):.1e} "
            f"| {found['cells_other']} of {found['cells']} |"
        )
    yield ""
    yield f"{first['samples']} of {first['of']} val samples; {first['machine']}; network and file in pairs, medians."
