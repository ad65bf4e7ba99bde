"""Lift-Splat-Shoot (Philion and Fidler, ECCV 2020): images lifted along a depth per pixel, splatted into the grid's columns."""

from train.model.lift_splat.network import LiftSplat, build
from train.model.lift_splat.shoot import LiftSplatShoot

__all__ = ["LiftSplat", "LiftSplatShoot", "build"]
