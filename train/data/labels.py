"""Label polygons: boxes -> maps of box numbers and masks of invisible boxes, drawn in the loader's threads."""

from dataclasses import dataclass

import cv2
import numpy as np

# Corners of a box in Simple-BEV's order, as signs of half the lengths along x, y, z.
_SIGNS = np.array(
    [
        [1, 1, 1],
        [1, 1, -1],
        [-1, 1, -1],
        [-1, 1, 1],
        [1, -1, 1],
        [1, -1, -1],
        [-1, -1, -1],
        [-1, -1, 1],
    ],
    np.float32,
)


@dataclass
class LabelMaps:
    """The maps of one LabelSpec. numbers (Z,X) int16: number + 1, among the boxes drawn, of the box on top; 0 where none is.

    seg, valid: (K,Z,X) uint8; valid is 0 where an invisible box of the class lies.
    """

    numbers: np.ndarray
    seg: np.ndarray
    valid: np.ndarray


def label_maps(polygons, boxes, categories, spec, grid_zx, masks=None):
    """The LabelMaps of a LabelSpec.

    polygons: footprints of all boxes, rows of BOX_DTYPE. categories: their names. masks: (K,Z,X) uint8 of the classes' map
    layers, None where there are none; what the map shows is visible.
    """

    def drawn(keep):
        return draw_maps(polygons[keep], ~masked_boxes(boxes[keep], spec), grid_zx)

    keep = chosen_boxes(boxes, categories, spec)
    numbers, valid = drawn(keep)
    if len(spec.classes) == 1:
        seg, valid = (numbers > 0).astype(np.uint8)[None], valid[None]
    else:
        each = [drawn([i for i in keep if categories[i].startswith(one.boxes)]) for one in spec.classes]
        seg, valid = np.stack([own > 0 for own, _ in each]).astype(np.uint8), np.stack([own for _, own in each])
    return LabelMaps(numbers, seg if masks is None else seg | masks, valid)


def classes_of(categories, spec):
    """(n,) int64: the first of a LabelSpec's classes that each category is of; -1 where it is of none."""
    found = (next((k for k, one in enumerate(spec.classes) if name.startswith(one.boxes)), -1) for name in categories)
    return np.fromiter(found, np.int64, len(categories))


def chosen_boxes(boxes, categories, spec):
    """Numbers of the boxes that a LabelSpec draws. boxes: rows of BOX_DTYPE. categories: their names."""
    keep = [i for i, name in enumerate(categories) if name.startswith(spec.categories)]
    if spec.protocol == "min_visibility":
        seen = boxes["visibility"]
        keep = [i for i in keep if seen[i] >= spec.min_visibility or seen[i] == 0]  # 0: not annotated
    return keep


def masked_boxes(boxes, spec):
    """(n,) bool: which of the drawn boxes hide their cells from loss and IoU."""
    return (boxes["visibility"] == 1) & (spec.protocol == "simple_bev")


def footprints(lrt_ref, mem_T_ref):
    """Upper faces of boxes as polygons in BEV cells.

    The four corners of least Y (ref's Y points down) are taken and truncated toward zero, as the benchmark has it.

    Args:
        lrt_ref: (n, 19) float32 boxes in ref, metres. mem_T_ref: (4, 4) float32, ref to voxel coordinates.
    Returns:
        (n, 4, 2) int32 x, z cells, in order around the polygon.
    """
    corners = _SIGNS * (lrt_ref[:, None, :3] / 2)
    ref_T_box = lrt_ref[:, 3:].reshape(-1, 4, 4)
    corners = corners @ ref_T_box[:, :3, :3].transpose(0, 2, 1) + ref_T_box[:, None, :3, 3]
    top = np.argsort(corners[:, :, 1], axis=1, kind="stable")[:, :4]
    scale, shift = mem_T_ref[[0, 2], [0, 2]], mem_T_ref[[0, 2], 3]
    mem = corners[..., [0, 2]] * scale + shift
    four = np.take_along_axis(mem, top[:, :, None], axis=1)
    return np.ascontiguousarray(_ring(four).clip(-(1 << 20), 1 << 20), dtype=np.int32)


def _ring(four):
    """Put four points, sorted by height, in order around their quadrilateral.

    On a tilted box lowest and highest are opposite, and 0, 1, 3, 2 goes around. On a level one heights tie, and the
    partner opposite to point 0 has to be found: its diagonal crosses the other one.
    """
    ring = four[:, [0, 1, 3, 2]]
    # For a parallelogram the two diagonals share their middle.
    candidates = np.stack([four[:, [0, 1, 3, 2]], four[:, [0, 1, 2, 3]], four[:, [0, 2, 1, 3]]], 1)
    error = np.abs(candidates[:, :, 0] + candidates[:, :, 2] - candidates[:, :, 1] - candidates[:, :, 3]).max(-1)
    best = error.argmin(1)
    crossed = error[:, 0] > error[np.arange(len(four)), best] + 0.01
    ring[crossed] = candidates[np.arange(len(four)), best][crossed]
    return ring


def draw_maps(polygons, visible, grid_zx):
    """Augmentation boxes over one another, later ones on top.

    Args:
        polygons: (n, 4, 2) int32 x, z. visible: (n,) bool. grid_zx: rows and columns of the map.
    Returns:
        numbers (Z, X) int16, box number + 1 or 0; valid (Z, X) uint8, 0 where an invisible box lies.
    """
    numbers = np.zeros(grid_zx, np.int16)
    valid = np.ones(grid_zx, np.uint8)
    for n, polygon in enumerate(polygons):
        cv2.fillPoly(numbers, [polygon], n + 1)
        if not visible[n]:
            cv2.fillPoly(valid, [polygon], 0)
    return numbers, valid
