"""Batches made worse on purpose: what a network still says when a camera, the calibration, a sensor or the picture fails.

Every change is a pure function of the batch and of (seed, sample), so that two networks meet the same damage. The eight
corruptions and their three strengths follow RoboBEV (Xie et al., "RoboBEV: Towards Robust Bird's Eye View Perception under
Corruptions", 2023): bright, dark, fog, snow, motion blur, colour quantisation, camera crash and frame lost. Their strengths are
this project's own, since the benchmark's pictures are made offline; resilience is defined as there, with IoU for NDS.
"""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from train.data.order import sample_rng

STREAM = 7  # of random numbers; order, draws and flips have theirs
STRENGTHS = (1, 2, 3)
FAR_PIXELS = -1e6


def without_camera(batch, camera):
    """The batch with one camera absent from the mean: nothing in the grid falls into its image any more."""
    intrins = batch.intrins.clone()
    for b, names in enumerate(batch.cams):
        for slot in _slots(names, camera):
            intrins[b, :, slot, :2, 2] = FAR_PIXELS
    return dataclasses.replace(batch, intrins=intrins)


def with_black_camera(batch, camera):
    """The batch with one camera's images black."""
    imgs = batch.imgs.clone()
    for b, names in enumerate(batch.cams):
        for slot in _slots(names, camera):
            imgs[b, :, slot] = 0.0
    return dataclasses.replace(batch, imgs=imgs)


def _slots(names, camera):
    return [slot for slot, name in enumerate(names) if name == camera]


def with_moved_cameras(batch, degrees, metres, seed=0):
    """The batch with each camera but the reference turned about a random axis and moved in a random direction.

    degrees, metres: of every turn and move. The reference camera stays, since labels are in its frame.
    """
    rots, trans = batch.rots.clone(), batch.trans.clone()
    for b, sample in enumerate(batch.indices):
        rng = sample_rng(seed, 0, sample, STREAM)
        for slot in range(1, rots.shape[2]):
            turn = torch.from_numpy(_rotation(rng, math.radians(degrees))).to(rots)
            move = rng.normal(size=3)
            move = torch.from_numpy(metres * move / np.linalg.norm(move)).to(trans)
            rots[b, :, slot] = rots[b, :, slot] @ turn
            trans[b, :, slot] = trans[b, :, slot] + move
    return dataclasses.replace(batch, rots=rots, trans=trans)


def _rotation(rng, radians):
    """(3,3) rotation by an angle about a random axis (Rodrigues)."""
    x, y, z = (axis := rng.normal(size=3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(radians) * cross + (1 - np.cos(radians)) * cross @ cross


def without_points(batch, sensor):
    """The batch with no returns of "lidar" or "radar": only padding, for networks that look at points themselves too."""
    counts = ("num_radar",) if sensor == "radar" else ("num_lidar", "num_lidar0")
    gone = {name: torch.zeros_like(getattr(batch, name)) for name in (f"{sensor}_data", *counts)}
    if sensor == "lidar":
        gone["lidar_extra"] = torch.full_like(batch.lidar_extra, -1.0)
    return dataclasses.replace(batch, **gone)


def _bright(images, strength, rng):
    return images + 0.15 * strength


def _dark(images, strength, rng):
    levels = images * (0.6, 0.4, 0.2)[strength - 1]
    noise = torch.from_numpy(rng.normal(0, 0.02 * strength, images.shape).astype(np.float32))
    return levels + noise.to(images.device)


def _fog(images, strength, rng):
    """A veil that thins downwards, where the ground is near, with drifts in it."""
    rows, columns = images.shape[-2:]
    coarse = torch.from_numpy(rng.uniform(0.7, 1.0, (len(images), 1, 4, 7)).astype(np.float32)).to(images.device)
    drifts = F.interpolate(coarse, (rows, columns), mode="bicubic", align_corners=False)
    depth = torch.linspace(1.0, 0.55, rows, device=images.device)[:, None]
    share = (0.35, 0.55, 0.75)[strength - 1] * depth * drifts
    return images * (1 - share) + 0.8 * share


def _snow(images, strength, rng):
    """Bright flakes, smeared along their fall."""
    flakes = torch.from_numpy(
        (rng.random((len(images), 1, *images.shape[-2:])) > 1 - 0.004 * strength).astype(np.float32)
    )
    length = 5
    kernel = torch.eye(length)[None, None] / 1.5
    streaks = F.conv2d(flakes, kernel, padding=length // 2).clamp(0, 1).to(images.device)
    washed = images * (1 - 0.08 * strength) + 0.08 * strength
    return washed * (1 - streaks) + streaks


def _motion_blur(images, strength, rng):
    length = (5, 9, 15)[strength - 1]
    kernel = torch.full((3, 1, 1, length), 1 / length, device=images.device)
    padded = F.pad(images, (length // 2, length // 2, 0, 0), mode="replicate")
    return F.conv2d(padded, kernel, groups=3)


def _quantised(images, strength, rng):
    levels = 2 ** (5, 4, 3)[strength - 1] - 1
    return (images * levels).round() / levels


def _crash(images, strength, rng):
    """Whole cameras are gone: one, two or four of them."""
    lost = rng.choice(len(images), min(len(images), (1, 2, 4)[strength - 1]), replace=False)
    out = images.clone()
    out[torch.from_numpy(lost).to(images.device)] = 0.0
    return out


def _frame_lost(images, strength, rng):
    """Each camera's frame is lost with a probability of 1/6, 1/3 or 2/3."""
    lost = torch.from_numpy(rng.random(len(images)) < (1 / 6, 1 / 3, 2 / 3)[strength - 1]).to(images.device)
    return torch.where(lost[:, None, None, None], 0.0, images)


CORRUPTIONS = {
    "bright": _bright,
    "dark": _dark,
    "fog": _fog,
    "snow": _snow,
    "motion blur": _motion_blur,
    "colour quantisation": _quantised,
    "camera crash": _crash,
    "frame lost": _frame_lost,
}


def corrupted(batch, name, strength, seed=0):
    """The batch with its images corrupted. name: of CORRUPTIONS. strength: 1, 2 or 3. Raises ValueError for others."""
    if name not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(
            f"corruption {name!r} of strength {strength}; there are {', '.join(CORRUPTIONS)}, of 1, 2 and 3"
        )
    imgs = torch.empty_like(batch.imgs)
    for b, sample in enumerate(batch.indices):
        rng = sample_rng(seed, strength, sample, STREAM)
        for t, images in enumerate(batch.imgs[b]):
            imgs[b, t] = CORRUPTIONS[name](images, strength, rng).clamp(0, 1)
    return dataclasses.replace(batch, imgs=imgs)


def resilience(clean_iou, corrupted_ious):
    """Mean resilience rate (RoboBEV): for each corruption its mean IoU over the strengths, over the clean IoU, in percent.

    corrupted_ious: name -> IoUs of the three strengths.
    """
    rates = {name: 100 * float(np.mean(values)) / clean_iou for name, values in corrupted_ious.items()}
    return rates, float(np.mean(list(rates.values())))


def corruption_error(corrupted_ious, baseline_ious):
    """Mean corruption error (RoboBEV): missed IoU of each corruption over the baseline's, in percent. Both: name -> IoUs."""
    errors = {
        name: 100 * sum(1 - v for v in values) / sum(1 - v for v in baseline_ious[name])
        for name, values in corrupted_ious.items()
    }
    return errors, float(np.mean(list(errors.values())))


def damages(batch_cameras, sensors, seed=0):
    """Name -> Batch -> Batch of every damage but the corruptions; sensors: of "lidar" and "radar" those that are used."""
    out = {}
    for camera in batch_cameras:
        out[f"without {camera}"] = lambda batch, c=camera: without_camera(batch, c)
    for camera in batch_cameras:
        out[f"black {camera}"] = lambda batch, c=camera: with_black_camera(batch, c)
    for degrees, metres in ((0.5, 0.02), (1.0, 0.05), (2.0, 0.10), (5.0, 0.20)):
        name = f"calibration off by {degrees:g} degrees, {100 * metres:g} cm"
        out[name] = lambda batch, d=degrees, m=metres: with_moved_cameras(batch, d, m, seed)
    for sensor in sensors:
        out[f"without {sensor}"] = lambda batch, s=sensor: without_points(batch, s)
    return out


def robustness(again, baseline, clean, cameras, sensors, seed=0):
    """The table of an evaluation under every damage.

    Args:
        again: (name, change) -> Evaluation of a pass over changed batches; None on other ranks than 0.
        baseline: eval.json object whose corruptions mCE is relative to, or None. clean: Evaluation; None on other ranks.
        cameras, sensors: that the batches hold.
    Returns:
        dict of rows (name, iou, change, intersection, union), mRR in percent, and mCE where there is a baseline; None on
        other ranks. IoU is that of the first label.
    Raises:
        ValueError: the baseline was not evaluated with robustness.
    """
    if baseline is not None and "robustness" not in baseline:
        raise ValueError("--baseline: it was evaluated without --robustness, so there are no corruptions in it")
    changes = damages(cameras, sensors, seed)
    for name in CORRUPTIONS:
        for strength in STRENGTHS:
            changes[f"{name}, strength {strength}"] = lambda batch, n=name, s=strength: corrupted(batch, n, s, seed)
    evaluations = {name: again(name, change) for name, change in changes.items()}
    if clean is None:
        return None
    reference = _iou(clean)[2]
    rows = []
    for name, found in evaluations.items():
        both, either, value = _iou(found)
        rows.append({"name": name, "iou": value, "change": value - reference, "intersection": both, "union": either})
    out = {"seed": seed, "clean_iou": reference, "rows": rows}
    by_name = {
        name: [row["iou"] for row in rows if row["name"].startswith(f"{name}, strength")] for name in CORRUPTIONS
    }
    if reference:
        out["resilience"], out["mRR"] = resilience(reference, by_name)
    if baseline is not None:
        theirs = {row["name"]: row["iou"] for row in baseline["robustness"]["rows"]}
        other = {name: [theirs[f"{name}, strength {s}"] for s in STRENGTHS] for name in CORRUPTIONS}
        out["corruption_error"], out["mCE"] = corruption_error(by_name, other)
    return out


def _iou(evaluation):
    label = next(iter(evaluation.rows[0].counts))
    both, predicted, truth = sum(row.counts[label].sum(0) for row in evaluation.rows).tolist()
    either = predicted + truth - both
    return both, either, both / either if either else 0.0
