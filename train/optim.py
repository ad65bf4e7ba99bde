"""Optimizer and learning-rate schedule of the benchmark (Simple-BEV)."""

import warnings

import torch

from common.errors import InputError

SCHEDULE_MARGIN = 100  # steps past max_iters, so that the rate never reaches zero


def fetch_optimizer(params, lr, weight_decay, max_iters, use_scheduler=True):
    """AdamW (eps 1e-8) with a linear OneCycle schedule, 5 % warm-up; without use_scheduler Adam and None.

    params: parameters, or groups of them as torch's optimizers take them; a group's own lr is its peak.

    Returns:
        (optimizer, scheduler or None); step the scheduler after each update.
    """
    groups = list(params)
    if groups and not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    groups = [{**group, "params": list(group["params"])} for group in groups]
    # One kernel for all parameters, where they lie on a device that has it.
    fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"])
    fused = {"fused": True} if fits else {}
    if not use_scheduler:
        return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, **fused), None
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, eps=1e-8, **fused)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group.get("lr", lr) for group in groups],
        max_iters + SCHEDULE_MARGIN,
        pct_start=0.05,
        cycle_momentum=False,
        anneal_strategy="linear",
    )
    return optimizer, scheduler


def parameter_groups(network):
    """What the optimizer gets: the network's own groups where it has parameter_groups(), else its parameters.

    Raises ValueError where these groups leave one out that takes a gradient.
    """
    if not hasattr(network, "parameter_groups"):
        return list(network.parameters())
    groups = [{**group, "params": list(group["params"])} for group in network.parameter_groups()]
    held = {id(p) for group in groups for p in group["params"]}
    missing = [name for name, p in network.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise InputError(f"{type(network).__name__}.parameter_groups() leaves out {', '.join(missing[:5])}")
    return groups


def stand_at(scheduler, step):
    """Put a fresh scheduler where `step` updates leave it: the rate is a function of the step alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no update came before this step() of the scheduler
        scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step - 1, "_step_count": step})
        scheduler.step()


def load_moments(optimizer, state):
    """An optimizer's state_dict without its rates and decays, which the optimizer's own options say.

    The moments take the memory order of their parameters, and their steps the place that a fused optimizer wants, so that
    a state from another device or kernel fits. Raises ValueError where its parameters are others.
    """
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    if len(own) != len(state["param_groups"]):
        raise InputError(
            f"the checkpoint's optimizer has {len(state['param_groups'])} groups of parameters, not {len(own)}"
        )
    groups = [{**theirs, **ours} for theirs, ours in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim() > 0:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
