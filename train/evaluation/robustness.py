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
from train.evaluation.bins import both_predicted_true
from train.evaluation.figures import bounds, keys_of, labels_of, ratios, scene_draws

STREAM = 7  # of random numbers; order, augmentation and flips have theirs
STRENGTHS = (1, 2, 3)
FAR_PIXELS = -1e6
OFF = ((0.5, 0.02), (1.0, 0.05), (2.0, 0.10), (5.0, 0.20))  # degrees and metres of a calibration error


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

    clean_iou: number, or array of draws. corrupted_ious: name -> IoUs of the three strengths, of the same kind.
    """
    rates = {name: 100 * np.mean(values, 0) / clean_iou for name, values in corrupted_ious.items()}
    return rates, np.mean(list(rates.values()), 0)


def corruption_error(corrupted_ious, baseline_ious):
    """Mean corruption error (RoboBEV): missed IoU of each corruption over the baseline's, in percent.

    Both: name -> IoUs of the three strengths, numbers or arrays of draws.
    """
    errors = {
        name: 100 * sum(1 - v for v in values) / sum(1 - v for v in baseline_ious[name])
        for name, values in corrupted_ious.items()
    }
    return errors, np.mean(list(errors.values()), 0)


def offsets(degrees, centimetres):
    """((degrees, metres), …) of two comma lists, pair by pair. Raises ValueError."""
    try:
        pairs = list(zip(*([float(v) for v in text.split(",")] for text in (degrees, centimetres)), strict=True))
    except ValueError as error:
        raise ValueError(
            f"--off_degrees {degrees}, --off_cm {centimetres}: two lists of as many numbers, such as 1,2 and 5,10 ({error})"
        ) from None
    return tuple((turn, move / 100) for turn, move in pairs)


def damages(cameras, sensors, seed=0, off=OFF):
    """Name -> Batch -> Batch of every damage.

    cameras: that the batches hold. sensors: of "lidar" and "radar" those that are used. off: (degrees, metres) of every
    calibration error.
    """
    out = {}
    for camera in cameras:
        out[f"without {camera}"] = lambda batch, c=camera: without_camera(batch, c)
    for camera in cameras:
        out[f"black {camera}"] = lambda batch, c=camera: with_black_camera(batch, c)
    for degrees, metres in off:
        name = f"calibration off by {degrees:g} degrees, {100 * metres:g} cm"
        out[name] = lambda batch, d=degrees, m=metres: with_moved_cameras(batch, d, m, seed)
    for sensor in sensors:
        out[f"without {sensor}"] = lambda batch, s=sensor: without_points(batch, s)
    for name in CORRUPTIONS:
        for strength in STRENGTHS:
            out[_corruption(name, strength)] = lambda batch, n=name, s=strength: corrupted(batch, n, s, seed)
    return out


def _corruption(name, strength):
    return f"{name}, strength {strength}"


def robustness(again, baseline, clean, changes, seed=0):
    """The table of an evaluation under every damage. IoU is that of the first label; intervals are paired over scenes.

    Args:
        again: change -> Evaluation of a pass over changed batches; None on other ranks than 0.
        baseline: eval.json object whose corruptions mCE is relative to, or None. clean: Evaluation; None on other ranks.
        changes: of `damages`.
    Returns:
        dict of rows, mRR in percent, and mCE where there is a baseline, each with its interval; None on other ranks. mCE has
        one where the baseline is of the same scenes.
    Raises:
        ValueError: the baseline was not evaluated with robustness, or misses nothing that errors could be relative to.
    """
    if baseline is not None:
        other = _ious_of(baseline)
    sums = {}
    for name, change in changes.items():
        if (evaluation := again(change)) is not None:
            sums[name] = _sums(evaluation)
    if clean is None:
        return None
    draws = scene_draws(len(clean.scenes), seed)
    reference, reference_drawn = _iou(_sums(clean), draws)
    ious = {name: _iou(found, draws) for name, found in sums.items()}
    rows = []
    for name, (value, drawn) in ious.items():
        spans = _span(drawn), _span(drawn - reference_drawn, "change_")
        counts = {"intersection": int(sums[name][0].sum()), "union": int(sums[name][1].sum())}
        counts |= {"numerators": sums[name][0].tolist(), "denominators": sums[name][1].tolist()}
        rows.append({"name": name, "iou": value, "change": value - reference} | spans[0] | spans[1] | counts)
    out = {"seed": seed, "clean_iou": reference, "rows": rows}
    value, drawn = _by_corruption(ious)
    if reference:
        out["resilience"], out["mRR"] = _plain(resilience(reference, value))
        out |= _span(resilience(np.where(reference_drawn > 0, reference_drawn, np.nan), drawn)[1], "mRR_")
    if baseline is not None:
        out["corruption_error"], out["mCE"] = _plain(corruption_error(value, other))
        theirs = {row["name"]: row for row in baseline["robustness"]["rows"]}
        if baseline.get("scenes") == list(clean.scenes):
            pairs = {name: (row["numerators"], row["denominators"]) for name, row in theirs.items()}
            other = _by_corruption({name: _iou(np.array(pair), draws) for name, pair in pairs.items()})[1]
            out |= _span(corruption_error(drawn, other)[1], "mCE_")
    return out


def _ious_of(baseline):
    """Name -> IoUs of the three strengths of every corruption, of an eval.json object. Raises ValueError."""
    if "robustness" not in baseline:
        raise ValueError("--baseline: it was evaluated without --robustness, so there are no corruptions in it")
    found = {row["name"]: row["iou"] for row in baseline["robustness"]["rows"]}
    for name in (_corruption(name, s) for name in CORRUPTIONS for s in STRENGTHS):
        if name not in found:
            raise ValueError(f"--baseline: it has no {name}; evaluate it again with --robustness")
    ious = {name: [found[_corruption(name, s)] for s in STRENGTHS] for name in CORRUPTIONS}
    for name, values in ious.items():
        if min(values) >= 1:
            raise ValueError(f"--baseline: its IoU is 1 under {name}, so no error is relative to it; give another")
    return ious


def _by_corruption(ious):
    """(name -> values of the strengths, name -> draws of the strengths) of (value, draws) of every damage."""
    found = {name: [ious[_corruption(name, s)] for s in STRENGTHS] for name in CORRUPTIONS}
    return tuple({name: [one[part] for one in three] for name, three in found.items()} for part in (0, 1))


def _plain(rates_and_mean):
    rates, mean = rates_and_mean
    return {name: float(rate) for name, rate in rates.items()}, float(mean)


def _span(drawn, prefix=""):
    """{"low", "high"}, the names after a prefix: ends of the interval, None where there is none."""
    return {
        f"{prefix}{name}": None if math.isnan(v) else v for name, v in zip(("low", "high"), bounds(drawn), strict=True)
    }


def _sums(evaluation):
    """(2, scenes) int64 intersections and unions of the first label; of several classes (2, scenes, K)."""
    keys = keys_of(evaluation.rows, labels_of(evaluation.rows)[0])
    counts = [[both_predicted_true(sums.histograms[key]).sum(0) for key in keys] for sums in evaluation.scenes.values()]
    both, predicted, truth = np.array(counts).transpose(2, 0, 1)
    found = np.stack([both, predicted + truth - both])
    return found[..., 0] if len(keys) == 1 else found


def _iou(sums, draws):
    """(IoU of all scenes, 0 where nothing was predicted or true; IoU of every draw, NaN where there are too few scenes)."""
    value = float(np.nan_to_num(ratios(*sums, np.ones((1, sums.shape[1]), int))[0]))
    scenes = np.count_nonzero(sums[1].reshape(sums.shape[1], -1).any(1))
    drawn = ratios(*sums, draws) if scenes > 1 else np.full(len(draws), np.nan)
    return value, drawn
