"""The Simple-BEV network."""

from train.model.segnet import Flips, Segnet

__all__ = ["Flips", "Segnet"]
