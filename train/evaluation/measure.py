"""A batch and what a network said of it -> rows and scene sums."""

import numpy as np
import torch
import torch.nn.functional as F

from common.geometry import similarity_inverse
from train.evaluation.bins import RINGS_M, both_predicted_true, ring_names
from train.evaluation.counting import box_cells, histograms
from train.evaluation.samples import (
    LENGTH_M,
    LIDAR_POINTS,
    NOT_STATED,
    VISIBILITY,
    SampleRow,
    SceneSums,
    bucket,
)


def measure(outputs, batch, rings):
    """Count one batch.

    Args:
        outputs: mapping with seg (B,1,Z,X) logits, and center and offset where the network gives them.
        batch: Batch with T >= 1; its first time step is compared. rings: (Z,X) of `ring_map`, on the batch's device.
    Returns:
        (list of B SampleRow, dict of scene name -> SceneSums).
    """
    logits = outputs["seg"][:, 0]
    names = list(batch.labels)
    maps = [(seg[:, 0, 0], valid[:, 0, 0]) for seg, valid in batch.labels.values()]
    counted = histograms(logits, maps, rings)
    boxes = box_cells(logits, batch.box_numbers[:, 0], batch.lrtlist.shape[2])
    # One wait for the device a batch.
    counted, boxes = counted.cpu().numpy(), boxes.cpu().numpy()
    losses = {name: values.tolist() for name, values in sample_losses(outputs, batch).items()}
    lengths = batch.lrtlist[:, 0, :, 0].cpu().numpy()
    distances = _distances(batch)
    rows, scenes = [], {}
    for b, (facts, *_) in enumerate(batch.facts):
        by_label = dict(zip(names, counted[b], strict=True))
        sums = SceneSums(by_label, _recall(facts, boxes[b], lengths[b], distances[b]))
        scenes.setdefault(facts.scene, SceneSums()).add(sums)
        in_view = int((boxes[b, :, 1] > 0).sum())
        own = {name: values[b] for name, values in losses.items()}
        rows.append(_row(facts, batch.tokens[b][0], by_label, in_view, own))
    return rows, scenes


def sample_losses(outputs, batch):
    """Dict of (B,) float32: mean cross-entropy over valid cells, squared error of centres, absolute error of offsets.

    Plain means of each sample, not weighed against each other nor against the classes' shares.
    """
    seg, valid = batch.seg_bev[:, 0], batch.valid_bev[:, 0]
    each = F.binary_cross_entropy_with_logits(outputs["seg"].float(), seg, reduction="none")
    out = {"cross_entropy": _mean(each, valid)}
    if "center" in outputs:
        out["center"] = (outputs["center"].float() - batch.center_bev[:, 0]).square().flatten(1).mean(1)
    if "offset" in outputs:
        error = (outputs["offset"].float() - batch.offset_bev[:, 0]).abs().sum(1, keepdim=True)
        out["offset"] = _mean(error, seg * valid)
    return out


def _mean(values, mask):
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


def _row(facts, token, by_label, in_view, losses):
    boxes = {}
    for category, seen in zip(facts.categories, facts.visibility, strict=True):
        by_visibility = boxes.setdefault(category, {})
        by_visibility[int(seen)] = by_visibility.get(int(seen), 0) + 1
    return SampleRow(
        key=facts.key,
        token=token,
        scene=facts.scene,
        timestamp_us=facts.timestamp_us,
        location=facts.location,
        light=facts.conditions.get("light", NOT_STATED),
        weather=facts.conditions.get("weather", NOT_STATED),
        counts={name: both_predicted_true(histogram) for name, histogram in by_label.items()},
        boxes=boxes,
        in_view=in_view,
        losses=losses,
    )


def _distances(batch):
    """(B,N) metres from the origin of the grid's frame to each box's middle, along the ground."""
    ego_T_box = batch.lrtlist[:, 0, :, 3:].unflatten(-1, (4, 4))
    away = ego_T_box[..., :2, 3] - similarity_inverse(batch.ref_T_ego[:, :1])[..., :2, 3]
    return torch.linalg.vector_norm(away, dim=-1).cpu().numpy()


def _recall(facts, cells, lengths, distances):
    """(dimension, bucket) -> (2,) int64, predicted cells and cells, over the boxes of one sample."""
    rings = ring_names()
    out = {}
    for n, category in enumerate(facts.categories):
        ring = rings[int(np.searchsorted(RINGS_M, distances[n]))]
        places = (
            ("category", category),
            ("category and distance", f"{category}, {ring}"),
            ("visibility", VISIBILITY.get(int(facts.visibility[n]), "not annotated")),
            ("size", bucket(float(lengths[n]), LENGTH_M)),
            ("lidar points", bucket(max(int(facts.num_lidar_pts[n]), 0), LIDAR_POINTS)),
        )
        for place in places:
            out[place] = out.get(place, 0) + cells[n]
    return out
