"""A batch and what a network said of it -> rows and scene sums."""

import numpy as np
import torch
import torch.nn.functional as F

from common.geometry import similarity_inverse
from train.classes import key_of
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
from train.loss import offset_mask


def measure(outputs, batch, rings):
    """Count one batch.

    Args:
        outputs: mapping with seg (B,K,Z,X) logits, and center and offset, where the network gives them.
        batch: Batch with T >= 1; its first time step is compared. rings: (Z,X) of `ring_map`, on the batch's device.
    Returns:
        (list of B SampleRow, dict of scene name -> SceneSums). Without a seg rows have no counts and scenes no sums.
    """
    names, counted = _counted(outputs, batch, rings)
    boxes = box_cells(_predicted_of_boxes(outputs, batch), batch.box_numbers[:, 0], batch.lrtlist.shape[2])
    # One wait for the device per batch.
    counted, boxes = counted.cpu().numpy() if names else [()] * len(batch.facts), boxes.cpu().numpy()
    losses = {name: values.tolist() for name, values in sample_losses(outputs, batch).items()}
    classes = batch.box_class[:, 0].tolist()
    lengths = batch.lrtlist[:, 0, :, 0].cpu().numpy()
    distances = _distances(batch)
    rows, scenes = [], {}
    for b, (facts, *_) in enumerate(batch.facts):
        by_label = dict(zip(names, counted[b], strict=True))
        own = [n for n in range(len(facts.categories)) if classes[b][n] >= 0]  # others lie in no map
        recall = _recall(facts, own, boxes[b], lengths[b], distances[b]) if names else {}
        scenes.setdefault(facts.scene, SceneSums()).add(SceneSums(by_label, recall))
        in_view = int((boxes[b, own, 1] > 0).sum())
        rows.append(
            _row(facts, batch.tokens[b][0], by_label, in_view, {name: values[b] for name, values in losses.items()})
        )
    return rows, scenes


def _counted(outputs, batch, rings):
    """(keys, (B,keys,R,2,P) int64) of every label and class; no keys and None without a seg."""
    if "seg" not in outputs:
        return [], None
    logits = outputs["seg"]
    classes = batch.class_names if logits.shape[1] > 1 else ("",)
    keys, counted = [], []
    for k, name in enumerate(classes):
        keys += [key_of(protocol, name) for protocol in batch.labels]
        maps = [(seg[:, 0, k], valid[:, 0, k]) for seg, valid in batch.labels.values()]
        counted.append(histograms(logits[:, k], maps, rings))
    return keys, torch.cat(counted, 1)


def _predicted_of_boxes(outputs, batch):
    """(B,Z,X) bool: whether the class of the box that lies on top of a cell is predicted there; nowhere without a seg."""
    numbers = batch.box_numbers[:, 0]
    if "seg" not in outputs:
        return torch.zeros_like(numbers, dtype=torch.bool)
    predicted = outputs["seg"].float().sigmoid().round() > 0
    if predicted.shape[1] == 1:
        return predicted[:, 0]
    # Of a box of no class nobody asks; 0 stands for no box.
    classes = torch.cat([batch.box_class.new_zeros(len(numbers), 1), batch.box_class[:, 0].clamp(min=0)], 1)
    on_top = classes.gather(1, numbers.long().flatten(1)).view_as(numbers)
    return predicted.gather(1, on_top[:, None])[:, 0]


def sample_losses(outputs, batch):
    """Dict of (B,) float32: mean cross-entropy over valid cells, squared error of centres, absolute error of offsets.

    Plain means of each sample, not weighed against each other nor against the classes' shares.
    """
    out = {}
    if "seg" in outputs:
        each = F.binary_cross_entropy_with_logits(outputs["seg"].float(), batch.seg_bev[:, 0], reduction="none")
        out["cross_entropy"] = _mean(each, batch.valid_bev[:, 0])
    if "center" in outputs:
        out["center"] = (outputs["center"].float() - batch.center_bev[:, 0]).square().flatten(1).mean(1)
    if "offset" in outputs:
        error = (outputs["offset"].float() - batch.offset_bev[:, 0]).abs().sum(1, keepdim=True)
        out["offset"] = _mean(error, offset_mask(batch))
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
        dataset=getattr(getattr(facts, "rig", None), "dataset", ""),
    )


def _distances(batch):
    """(B,N) metres from the origin of the grid's frame to each box's middle, along the ground."""
    ego_T_box = batch.lrtlist[:, 0, :, 3:].unflatten(-1, (4, 4))
    away = ego_T_box[..., :2, 3] - similarity_inverse(batch.ref_T_ego[:, :1])[..., :2, 3]
    return torch.linalg.vector_norm(away, dim=-1).cpu().numpy()


def _recall(facts, own, cells, lengths, distances):
    """(dimension, bucket) -> (2,) int64, predicted cells and cells, over the `own` boxes of one sample."""
    rings = ring_names()
    out = {}
    for n in own:
        category = facts.categories[n]
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
