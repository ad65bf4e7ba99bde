"""A batch through a network: what training, evaluation and pictures share."""

import copy
from collections.abc import Mapping

import torch

from common.errors import InputError
from train.model.memory import begin
from train.model.points import lidar_places, radar_points


def run_network(network, batch, grid, flips=None, autocast=None):
    """The network's outputs, half-precision ones as float32.

    Points become voxels here, in float32 whatever the autocast: bfloat16 would move a point at 40 m by 13 cm.

    Args:
        network: see train/model/README.md. batch: Batch. grid: VoxUtil. flips: Flips, for a network that takes them.
        autocast: dtype of the network's arithmetic; None for float32.
    Returns:
        dict from name to tensor.
    Raises:
        ValueError: the network returned something else, or a seg that is no map of the grid for each of the labels' classes.
    """
    begin(network, batch)
    return run_on_voxels(network, with_voxels(batch, network.needs, grid), grid, flips, autocast)


def run_on_voxels(network, batch, grid, flips=None, autocast=None):
    """As run_network, of a batch that has its voxels: what depends on the number of points has been done."""
    with torch.autocast(batch.rots.device.type, dtype=autocast, enabled=autocast is not None):
        outputs = network(batch, grid) if flips is None else network(batch, grid, flips=flips)
    if not isinstance(outputs, Mapping):
        raise InputError(
            f"{type(network).__name__} returned a {type(outputs).__name__}; it is a mapping of names to tensors"
        )
    outputs = {name: value for name, value in outputs.items() if value is not None}
    if not isinstance(outputs.get("seg", batch.rots), torch.Tensor):
        raise InputError(
            f"{type(network).__name__} returned a seg that is a {type(outputs['seg']).__name__}, no tensor"
        )
    # Here, since losses and counts would stretch a map of another shape over the labels in silence.
    if "seg" in outputs and tuple(outputs["seg"].shape[1:]) != (batch.seg_bev.shape[2], grid.Z, grid.X):
        raise InputError(
            f"{type(network).__name__} returned a seg of {tuple(outputs['seg'].shape)}; "
            f"it is (B, {batch.seg_bev.shape[2]}, {grid.Z}, {grid.X}), logits of each class that labels have"
        )
    return {name: _widened(value) for name, value in outputs.items()}


def _widened(value):
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def with_voxels(batch, needs, grid):
    """The batch with radar_voxels (B,T,1 or 16,Z,Y,X) and lidar_voxels (B,T,1,Z,Y,X), float32; the rest is shared.

    T is that of needs: the present and its past, of which a network may take no points, and then the present alone. Each is
    None where `needs` takes other than voxels, or the batch holds none.
    """
    out = copy.copy(batch)
    out.radar_voxels = out.lidar_voxels = None
    times = range(min(1 + (needs.past or 0), batch.rots.shape[1]) if needs.past_points else 1)
    with torch.no_grad(), torch.autocast(batch.rots.device.type, enabled=False):
        if needs.radar in (None, "voxels", "metaradar") and getattr(batch, "radar_data", None) is not None:
            make = radar_features if needs.radar == "metaradar" else radar_occupancy
            out.radar_voxels = torch.stack([make(batch, t, grid) for t in times], 1)
        if needs.lidar in (None, "voxels") and getattr(batch, "lidar_data", None) is not None:
            out.lidar_voxels = torch.stack([lidar_occupancy(batch, t, grid) for t in times], 1)
    return out


def radar_occupancy(batch, t, grid):
    """(B,1,Z,Y,X) float32 in {0,1}: where keyframe t has radar points."""
    points = radar_points(batch, t)
    return grid.voxelize_xyz(points.xyz, points.valid)


def radar_features(batch, t, grid):
    """(B,16,Z,Y,X) float32: what the radars measured, all but the position; the last point of a voxel wins."""
    return grid.voxelize_xyz_and_feats(*radar_points(batch, t))


def lidar_occupancy(batch, t, grid):
    """(B,1,Z,Y,X) float32 in {0,1}: where keyframe t has lidar points."""
    return grid.voxelize_xyz(*lidar_places(batch, t))


def without_gradients(network, run, batches):
    """Yield (batch, run(batch)) of each batch, None left out; the network is put into evaluation mode and left in it."""
    network.eval()
    for batch in batches:
        if batch is None:
            continue
        with torch.no_grad():
            result = run(batch)
        yield batch, result
