"""Sheets: title, cameras, the scene from above, maps and a legend that is always whole."""

import datetime

import cv2
import numpy as np

from train.pictures import palette
from train.pictures.bev import HATCH_PX, Ground, from_above, hatch
from train.pictures.cameras import mosaic
from train.pictures.maps import draw_errors, draw_prediction, draw_truth, mean_iou, reach_of
from train.pictures.palette import FAINT_INK, INK, KINDS, PAGE, class_colours
from train.pictures.text import fitting, lines_of, text_width, write

DEFAULT_REACH_M = 52.5  # a sheet without maps shows as much as the benchmark's grid
GAP = 8
POINT_RADIUS = {"lidar": 0, "radar": 3}  # pixels, of points in cameras: there are few of radar's
_ROW = 26  # of the legend
_TITLE = 50  # of one line of facts


def page(height, width):
    """An empty (height, width, 3) uint8 page."""
    return np.full((height, width, 3), PAGE, np.uint8)


def stacked(pictures, gap=GAP):
    """Pictures (H, W, 3) of one width below one another."""
    space = page(gap, pictures[0].shape[1])
    parts = [part for picture in pictures for part in (space, picture)][1:]
    return np.concatenate(parts)


def captioned(picture, caption):
    """The picture under a line that says what it is."""
    head = page(22, picture.shape[1])
    write(head, fitting(caption, picture.shape[1] - 4, 8), (2, 15), 8, INK)
    return np.concatenate([head, picture])


def beside(pictures, width, gap=GAP):
    """Pictures of one height side by side, on a page `width` wide."""
    out = page(pictures[0].shape[0], width)
    left = 0
    for picture in pictures:
        out[:, left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return out


def time_of(timestamp_us):
    """A microsecond timestamp as date and time, UTC."""
    moment = datetime.datetime.fromtimestamp(timestamp_us / 1e6, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 100_000} UTC"


def title(view, width, note=""):
    """Key and token; then time, place and what the description says of weather and light, in as many lines as that takes."""
    facts = [time_of(view.timestamp_us) if view.timestamp_us else "", view.place, view.description]
    lines = lines_of("   |   ".join(fact for fact in facts if fact), width - 4, 9) or [""]
    out = page(_TITLE + 20 * (len(lines) - 1), width)
    write(out, view.key, (2, 18), 12, INK, bold=True)
    beside_key = width - 24 - text_width(view.key, 12, bold=True)
    write(out, fitting(note or view.token, beside_key, 9), (width - 4, 18), 9, FAINT_INK, "right")
    for n, line in enumerate(lines):
        write(out, line, (2, 40 + 20 * n), 9, FAINT_INK)
    return out


def _box_mark(colour):
    def draw(field):
        cv2.rectangle(field, (1, 4), (19, 15), tuple(colour), 2)

    return draw


def _area_mark(colour):
    def draw(field):
        field[4:16, 1:20] = colour

    return draw


def _hatch_mark(field):
    mask = np.zeros(field.shape[:2], bool)
    mask[2 : 2 + 2 * HATCH_PX, :20] = True
    hatch(field, mask)


def _ramp_mark(table):
    def draw(field):
        field[4:16] = table[np.linspace(0, 255, field.shape[1]).astype(int)]

    return draw


def _radar_mark(field):
    cv2.circle(field, (4, 10), 2, palette.RADAR, -1, cv2.LINE_AA)
    cv2.arrowedLine(field, (4, 10), (19, 10), palette.RADAR, 1, cv2.LINE_AA, 0, 0.3)


def _entries(parts, classes):
    """(mark, width of the mark, text) of each entry of the legend."""
    each = [(_area_mark(c), 21, name) for c, name in zip(class_colours(len(classes)), classes, strict=True)]
    one = [(_area_mark(palette.TRUTH), 21, "truth")]
    of_classes = [(_ramp_mark(palette.GREYS), 48, "prediction, 0 to 1, in the classes' colours")]
    low, high = palette.LOW_HEIGHT_M, palette.HIGH_HEIGHT_M
    of = {
        "boxes": [(_box_mark(kind.colour), 21, kind.name) for kind in KINDS]
        + [(_box_mark(palette.dimmed(KINDS[0].colour)), 21, "dim: visibility 0-40 %")],
        "lidar": [(_ramp_mark(palette.HEIGHT_RAMP), 48, f"lidar, height {low:g} to {high:g} m")],
        "points": [(_ramp_mark(palette.DEPTH_RAMP), 48, f"points in cameras, depth 0 to {palette.FAR_M:g} m")],
        "radar": [(_radar_mark, 21, "radar; arrows reach 1 s ahead")],
        "truth": [*(each or one), (_hatch_mark, 21, "masked: not counted")],
        "prediction": of_classes if each else [(_ramp_mark(palette.PROBABILITY_RAMP), 48, "prediction, 0 to 1")],
        "errors": [
            (_area_mark(colour), 21, name)
            for name, colour in (("hit", palette.HIT), ("false", palette.FALSE), ("missed", palette.MISSED))
        ],
    }
    return [entry for part in parts for entry in of[part]]


def legend(width, parts, classes=()):
    """(H, width, 3) uint8: every mark that a sheet uses, in as many lines as it takes.

    parts: those of boxes, points, lidar, radar, truth, prediction and errors that it shows. classes: names of several classes.
    """
    lines, left = [page(_ROW, width)], 2
    for mark, span, text in _entries(parts, classes):
        needed = span + 6 + text_width(text, 8)
        if left + needed > width and left > 2:
            lines.append(page(_ROW, width))
            left = 2
        mark(lines[-1][2:22, left : left + span])
        write(lines[-1], text, (left + span + 6, 17), 8, INK)
        left += needed + 18
    return np.concatenate(lines)


def parts_of(view):
    """The parts of the legend that a sheet of this View needs."""
    maps = view.maps
    true, predicted = (maps is not None and m is not None for m in (maps and maps.truth, maps and maps.prediction))
    there = {"truth": true, "prediction": predicted, "errors": true and predicted}
    return ["boxes", "lidar", "radar", *(part for part, on in there.items() if on)]


def panels(view, width, gap=GAP):
    """The row from above: sensors and boxes, then what maps there are, side by side over `width` columns."""
    maps = view.maps
    reach = reach_of(maps) if maps else DEFAULT_REACH_M
    drawn = []
    if maps is None or maps.prediction is None:
        drawn += [("lidar and boxes", lambda g: from_above(view, g, radar=False))]
        drawn += [("radar and boxes", lambda g: from_above(view, g, lidar=False))]
    else:
        drawn += [("lidar, radar and boxes", lambda g: from_above(view, g))]
    if maps is not None and maps.truth is not None:
        drawn += [("truth", lambda g: draw_truth(maps, g))]
    if maps is not None and maps.prediction is not None:
        drawn += [("prediction", lambda g: draw_prediction(maps, g))]
        if maps.truth is not None:
            drawn += [(f"errors, IoU {mean_iou(maps):.3f}", lambda g: draw_errors(maps, g))]
    size = (width - gap * (len(drawn) - 1)) // len(drawn)
    return beside([captioned(draw(Ground(size, reach)), caption) for caption, draw in drawn], width, gap)


def sheet(view, width=1600, note="", points=()):
    """(H, width, 3) uint8: everything there is to see of one sample, on one page.

    note: on the right of the title instead of the token. points: of "lidar" and "radar" those to draw into the cameras.
    """
    inner = width - 2 * GAP
    clouds = [(getattr(view, name)[:3], POINT_RADIUS[name]) for name in points]
    legends = parts_of(view) if not points else ["points", *parts_of(view)]
    parts = [
        title(view, inner, note),
        mosaic(view.cameras, view.boxes, inner, names=view.camera_names, clouds=clouds),
        panels(view, inner),
        legend(inner, legends, view.maps.class_names if view.maps else ()),
    ]
    return framed(stacked(parts))


def framed(picture):
    """The picture with a margin on all sides."""
    return np.pad(picture, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=0) + _margin(picture)


def _margin(picture):
    """The page's colour where `framed` adds its margin, zero elsewhere."""
    out = page(picture.shape[0] + 2 * GAP, picture.shape[1] + 2 * GAP)
    out[GAP:-GAP, GAP:-GAP] = 0
    return out


def encode(picture, suffix=".png", quality=76):
    """Bytes of an (H, W, 3) uint8 RGB picture as .png or .jpg."""
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix != ".png" else [cv2.IMWRITE_PNG_COMPRESSION, 6]
    return cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), flags)[1].tobytes()
