"""How much of an evaluation is left under damage: IoU of every change, resilience and corruption error as in RoboBEV."""

import math

import numpy as np
import torch

from common.errors import InputError
from common.progress import counted
from train.evaluation.bins import both_predicted_true
from train.evaluation.corruptions import CORRUPTIONS, STRENGTHS
from train.evaluation.figures import bounds, keys_of, labels_of, ratios, scene_draws
from train.model.finite import finite_outputs
from train.model.forward import run_network
from train.model.memory import apart
from train.processes.ranks import say


def evaluate_damaged(network, batches, grid, world, changes, autocast=None):
    """Name of a change -> scene -> (K, 3) int64 cells predicted and true, predicted, true; on rank 0, None on the others.

    Every batch is loaded once and looked at under all changes in turn; of each change a network with a memory has one of its
    own. Cells are those of the first label, that count.

    Args:
        network: see train/model/README.md; left in evaluation mode. batches: iterable of this rank's Batch objects, None where
            it has no share of one. grid: VoxUtil. world: distributed.World. changes: name -> Batch -> Batch, see
            train.evaluation.damage. autocast: as in train.evaluation.evaluator.evaluate.
    """
    network.eval()
    own, wrong = {name: {} for name in changes}, dict.fromkeys(changes, 0)
    memories = {name: {} for name in changes}
    for batch in (batch for batch in batches if batch is not None):
        for name, change in changes.items():
            with torch.no_grad(), apart(network, memories[name], world.device):
                outputs, not_finite = finite_outputs(run_network(network, change(batch), grid, autocast=autocast))
                found = _scene_counts(outputs["seg"], batch)
            _add(own[name], found)
            wrong[name] += 0 if not_finite is None else int(not_finite.sum())
    for name in changes:
        bad = sum(part[name] for part in world.gather(wrong))
        if bad:
            say(f"note: outputs that are not finite, and predict nothing, in {counted(bad, 'sample')} under {name}")
    whole = {name: {} for name in changes}
    for part in world.gather(own):
        for name, found in part.items():
            _add(whole[name], found)
    return {name: dict(sorted(found.items())) for name, found in whole.items()} if world.leads else None


def _add(sums, found):
    for scene, counts in found.items():
        sums[scene] = sums.get(scene, 0) + counts


def _scene_counts(logits, batch):
    """Scene -> (K, 3) int64 of one batch; logits (B,K,Z,X)."""
    valid = batch.valid_bev[:, 0] > 0
    predicted, truth = (logits.float().sigmoid() > 0.5) & valid, (batch.seg_bev[:, 0] > 0) & valid
    counts = torch.stack([each.flatten(2).sum(2) for each in (predicted & truth, predicted, truth)], -1).cpu().numpy()
    out = {}
    for scene, own in zip(batch.scenes, counts, strict=True):
        _add(out, {scene: own})
    return out


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


def _corruption(name, strength):
    return f"{name}, strength {strength}"


def robustness(damaged, baseline, clean, seed=0):
    """The table of an evaluation under every damage. IoU is that of the first label; intervals are paired over scenes.

    Args:
        damaged: of `evaluate_damaged`. baseline: eval.json object whose corruptions mCE is relative to, or None.
        clean: Evaluation.
    Returns:
        dict of rows, mRR in percent, and mCE where there is a baseline, each with its interval. mCE has one where the
        baseline is of the same scenes.
    Raises:
        ValueError: see `baseline_ious`.
    """
    sums = {name: _sums(found) for name, found in damaged.items()}
    draws = scene_draws(len(clean.scenes), seed)
    reference, reference_drawn = _iou(_sums(_clean_counts(clean)), draws)
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
        out["corruption_error"], out["mCE"] = _plain(corruption_error(value, baseline_ious(baseline)))
        theirs = {row["name"]: row for row in baseline["robustness"]["rows"]}
        if baseline.get("scenes") == list(clean.scenes):
            pairs = {name: (row["numerators"], row["denominators"]) for name, row in theirs.items()}
            other = _by_corruption({name: _iou(np.array(pair), draws) for name, pair in pairs.items()})[1]
            out |= _span(corruption_error(drawn, other)[1], "mCE_")
    return out


def baseline_ious(baseline):
    """Name -> IoUs of the three strengths of every corruption, of an eval.json object.

    Raises ValueError: it was evaluated without robustness, by a version with other corruptions, or it misses nothing that
    errors could be relative to.
    """
    if "robustness" not in baseline:
        raise InputError("--baseline: it was evaluated without --robustness, so there are no corruptions in it")
    found = {row["name"]: row["iou"] for row in baseline["robustness"]["rows"]}
    for name in (_corruption(name, s) for name in CORRUPTIONS for s in STRENGTHS):
        if name not in found:
            raise InputError(f"--baseline: it has no {name}; evaluate it again with --robustness")
    ious = {name: [found[_corruption(name, s)] for s in STRENGTHS] for name in CORRUPTIONS}
    for name, values in ious.items():
        if min(values) >= 1:
            raise InputError(f"--baseline: its IoU is 1 under {name}, so no error is relative to it; give another")
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


def _clean_counts(evaluation):
    """Scene -> (K, 3) cells of the first label, as `evaluate_damaged` gives them."""
    keys = keys_of(evaluation.rows, labels_of(evaluation.rows)[0])
    return {
        scene: np.array([both_predicted_true(sums.histograms[key]).sum(0) for key in keys])
        for scene, sums in evaluation.scenes.items()
    }


def _sums(counts):
    """(2, scenes) int64 intersections and unions of scene -> (K, 3) cells; of several classes (2, scenes, K)."""
    both, predicted, truth = np.array(list(counts.values())).transpose(2, 0, 1)
    found = np.stack([both, predicted + truth - both])
    return found[..., 0] if found.shape[-1] == 1 else found


def _iou(sums, draws):
    """(IoU of all scenes, 0 where nothing was predicted or true; IoU of every draw, NaN where there are too few scenes)."""
    value = float(np.nan_to_num(ratios(*sums, np.ones((1, sums.shape[1]), int))[0]))
    scenes = np.count_nonzero(sums[1].reshape(sums.shape[1], -1).any(1))
    drawn = ratios(*sums, draws) if scenes > 1 else np.full(len(draws), np.nan)
    return value, drawn
