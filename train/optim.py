"""Optimizer and learning-rate schedule of the benchmark (Simple-BEV)."""

import warnings

import torch

SCHEDULE_MARGIN = 100  # steps past max_iters, so that the rate never reaches zero


def fetch_optimizer(params, lr, weight_decay, max_iters, use_scheduler=True):
    """AdamW (eps 1e-8) with a linear OneCycle schedule, 5 % warm-up; without use_scheduler Adam and None.

    Returns:
        (optimizer, scheduler or None); step the scheduler after each update.
    """
    if not use_scheduler:
        return torch.optim.Adam(params, lr=lr, weight_decay=weight_decay), None
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, eps=1e-8)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        lr,
        max_iters + SCHEDULE_MARGIN,
        pct_start=0.05,
        cycle_momentum=False,
        anneal_strategy="linear",
    )
    return optimizer, scheduler


def stand_at(scheduler, step):
    """Put a fresh scheduler where `step` updates leave it: the rate is a function of the step alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no update came before this step() of the scheduler
        scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step - 1, "_step_count": step})
        scheduler.step()


def load_moments(optimizer, state):
    """An optimizer's state_dict without its rates and decays, which the optimizer's own options say."""
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    # Before the state is loaded: a fused optimizer keeps its step counts beside the parameters.
    groups = [{**theirs, **ours} for theirs, ours in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
