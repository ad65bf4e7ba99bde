"""A moving average of a network's weights, which often does better than the last of them (as in EfficientNet's training)."""

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Averages of all that a network's state holds in floating point, batch norm's statistics too; on the network's device.

    The decay of update n is the smaller of `decay` and (1 + n) / (10 + n): at first the average follows, and what it holds is a
    function of the weights so far.

    Args:
        network: whose weights are averaged; they begin the average. decay: below 1. state: of state_dict, to go on from.
    """

    def __init__(self, network, decay, state=None):
        self.decay = decay
        self.averages = {name: value.clone() for name, value in _floats(network).items()}
        for name, value in (state or {}).items():
            self.averages[name].copy_(value)

    @torch.no_grad()
    def update(self, network, step):
        """Take in the weights after update `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.averages.values()), list(_floats(network).values()), None)

    def state_dict(self):
        """Name -> average: with what is not averaged of the network's own, a state_dict of the network."""
        return dict(self.averages)


def _floats(network):
    state = network.state_dict().items()
    return {name: value for name, value in state if isinstance(value, torch.Tensor) and value.is_floating_point()}
