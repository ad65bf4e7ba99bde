"""Networks, and the interface that they have in common."""

from train.model.bev_flips import unflipped
from train.model.interface import Flips, Needs, find_network
from train.model.segnet import Segnet

__all__ = ["Flips", "Needs", "Segnet", "find_network", "unflipped"]
