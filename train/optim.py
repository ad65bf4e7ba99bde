"""Optimizer and learning-rate schedule of the benchmark (Simple-BEV)."""

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
