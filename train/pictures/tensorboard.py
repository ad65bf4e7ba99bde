"""The pictures that training and validation write to TensorBoard: small, and cheap beside an update."""

import numpy as np

from train.pictures.bev import Ground
from train.pictures.cameras import mosaic
from train.pictures.layout import beside, captioned, legend, stacked
from train.pictures.maps import draw_errors, draw_prediction, draw_truth, draw_values, laid_out, mean_iou, reach_of
from train.pictures.palette import HEIGHT_RAMP, diverging, ramp
from train.pictures.view import array_of, maps_of_batch, view_of_batch

MAP_PX = 256
MOSAIC_PX = 960
_GAP = 6
_OFFSET_CELLS = 12.0  # offsets from here on have the ramp's last colour


def pictures_of(batch, outputs, grid, sample=0):
    """Dict from tag to (H, W, 3) uint8 picture of one sample of a Batch, its first time step.

    Args:
        outputs: what the network gave for the batch, and of that what is drawn: "seg" (B,K,Z,X) logits, "center"
            (B,1,Z,X) in [0,1], "offset" (B,2,Z,X) cells. Each may be missing.
        grid: VoxUtil of the maps.
    """
    seg = outputs.get("seg")
    if seg is not None:
        seg = (seg[sample] if seg.shape[1] > 1 else seg[sample, 0]).float().sigmoid()
    maps = maps_of_batch(batch, sample, grid, seg)
    view = view_of_batch(batch, sample, maps)
    out = {"outputs/segmentation": _segmentation(maps)}
    if batch.imgs is not None:
        out["inputs/cameras"] = mosaic(
            view.cameras, view.boxes, MOSAIC_PX, _GAP, batch.cams[sample][0], view.camera_names
        )
    for name, points, count in (
        ("lidar", batch.lidar_data, batch.num_lidar),
        ("radar", batch.radar_data, batch.num_radar),
    ):
        if points is not None:
            xyz = array_of(points[sample, 0, :3, : int(count[sample, 0])])
            out[f"inputs/{name}"] = _occupancy(xyz, maps, grid, name)
    if outputs.get("center") is not None:
        pair = (batch.center_bev[sample, 0, 0], outputs["center"][sample, 0])
        out["outputs/center"] = _row(
            [
                (name, _values(array_of(m), maps))
                for name, m in zip(("true centre", "predicted centre"), pair, strict=True)
            ]
        )
    if outputs.get("offset") is not None:
        out["outputs/offset"] = _offsets(batch, outputs["offset"], maps, sample)
    return out


def _row(panels):
    """Captioned panels side by side."""
    width = sum(picture.shape[1] for _, picture in panels) + _GAP * (len(panels) - 1)
    return beside([captioned(picture, caption) for caption, picture in panels], width, _GAP)


def _segmentation(maps):
    ground = Ground(MAP_PX, reach_of(maps))
    panels, parts = [("truth", draw_truth(maps, ground))], ["truth"]
    if maps.prediction is not None:
        panels.append(("prediction", draw_prediction(maps, ground)))
        panels.append((f"errors, IoU {mean_iou(maps):.3f}", draw_errors(maps, ground)))
        parts.append("errors")
    row = _row(panels)
    return stacked([row, legend(row.shape[1], parts, maps.class_names)], _GAP)


def _values(values, maps):
    return draw_values(values, maps, Ground(MAP_PX, reach_of(maps)))


def _occupancy(xyz, maps, grid, name):
    """Points (3, V) in ego as what a network gets of them: the share of a cell's height that is occupied."""
    in_ref = (xyz.T - maps.ego_T_ref[:3, 3]) @ np.linalg.inv(maps.ego_T_ref[:3, :3]).T
    cells = np.array([grid.X, grid.Y, grid.Z])
    index = np.floor((in_ref - grid.low_m) / grid.voxel_m).astype(int)
    x, y, z = index[((index >= 0) & (index < cells)).all(1)].T
    occupied = np.zeros((grid.Z, grid.Y, grid.X), bool)
    occupied[z, y, x] = True
    count = occupied.sum(1)
    ground = Ground(MAP_PX, reach_of(maps))
    # From a third on: even one point must be seen.
    colours = ramp(HEIGHT_RAMP, count, -0.5 * grid.Y, grid.Y)
    return captioned(laid_out(colours, count > 0, maps, ground), f"{name}, occupied cells: {int((count > 0).sum())}")


def _offsets(batch, predicted, maps, sample):
    """Offsets along X and Z, true ones above predicted ones (B,2,Z,X), where there is a box."""
    ground = Ground(MAP_PX, reach_of(maps))
    there = array_of(batch.box_bev[sample, 0, 0]) > 0.5
    rows = []
    for what, offset in (("true", batch.offset_bev[sample, 0]), ("predicted", predicted[sample])):
        offset = array_of(offset)
        panels = []
        for axis, side in enumerate(("X", "Z")):
            colours = diverging(offset[axis], _OFFSET_CELLS)
            panels.append(
                (f"{what} offset along {side}, +-{_OFFSET_CELLS:g} cells", laid_out(colours, there, maps, ground))
            )
        rows.append(_row(panels))
    return stacked(rows, _GAP)
