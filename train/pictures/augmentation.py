"""What a network really gets of one sample: images after crop, mirroring and shuffling, with the boxes where they then lie."""

from dataclasses import dataclass, replace

import numpy as np

from train.pictures.bev import Ground
from train.pictures.cameras import draw_camera
from train.pictures.layout import GAP, beside, captioned, framed, legend, page, stacked, title
from train.pictures.maps import draw_truth, reach_of
from train.pictures.view import View


@dataclass(frozen=True)
class DrawnSample:
    """A View with its cameras in slot order, the reference camera first; mirrored: a bool a slot; note: what else was drawn."""

    view: View
    mirrored: tuple
    note: str


def mirror(camera):
    """The Camera with its image mirrored left to right, and the intrinsics that see it so."""
    flip = np.array([[-1.0, 0, camera.image.shape[1] - 1], [0, 1, 0], [0, 0, 1]])
    image = np.ascontiguousarray(camera.image[:, ::-1])
    return replace(camera, image=image, intrinsics=flip @ camera.intrinsics)


def augmentation_sheet(view, drawn, width=1920):
    """(H, width, 3) uint8: a row for each DrawnSample, its images in slot order and then its labels.

    view: of the record; gives the title.
    """
    inner = width - 2 * GAP
    slots = max(len(each.view.cameras) for each in drawn)
    rows, columns = drawn[0].view.cameras[0].image.shape[:2]
    cell = int((inner - slots * GAP) / (slots + rows / columns))  # the labels are as wide as images are high
    parts = [title(view, inner, f"{len(drawn)} draws of one training sample")]
    for number, each in enumerate(drawn, 1):
        parts.append(captioned(_row(each, cell, slots, inner), f"draw {number}: {each.note}"))
    classes = drawn[0].view.maps.class_names
    return framed(stacked([*parts, legend(inner, ("boxes", "truth"), classes)]))


def _row(each, cell, slots, width):
    cameras = [mirror(c) if m else c for c, m in zip(each.view.cameras, each.mirrored, strict=True)]
    notes = [" mirrored" if m else "" for m in each.mirrored]
    images = [draw_camera(c, each.view.boxes, cell, note=note) for c, note in zip(cameras, notes, strict=True)]
    height = max(image.shape[0] for image in images)
    images += [page(height, cell)] * (slots - len(images))
    maps = each.view.maps
    labels = draw_truth(maps, Ground(min(cell, height), reach_of(maps)))
    labels = np.concatenate([labels, page(height - labels.shape[0], labels.shape[1])])
    return beside([*images, labels], width)
