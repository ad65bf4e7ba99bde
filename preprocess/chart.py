"""The chart of preprocess.show: plain bars, boxes by category and visibility, bytes by kind of member, lengths of scenes."""

from collections import Counter

import cv2
import numpy as np

_INK, _FAINT, _PAPER, _BAR = (40, 40, 40), (120, 120, 120), (255, 255, 255), (178, 114, 0)  # BGR
# From hidden to seen: one hue, darker the more is seen; grey where nobody said.
_SEEN = {1: (240, 215, 180), 2: (225, 175, 105), 3: (195, 135, 40), 4: (130, 80, 0), 0: (170, 170, 170)}
_LABELS = {1: "visible 0-40 %", 2: "40-60 %", 3: "60-80 %", 4: "80-100 %", 0: "not annotated"}
_WIDTH, _ROW, _LEFT, _RIGHT = 1000, 26, 280, 110
_MOST_ROWS = 24
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_chart(contents):
    """PNG bytes of a chart of a preprocess.contents.Contents."""
    boxes = sorted(contents.boxes.items(), key=lambda item: -sum(item[1]))[:_MOST_ROWS]
    boxes = [(name, {v: counts[v] for v in _SEEN}) for name, counts in boxes]
    members = [(name, {None: size / 1e6}) for name, size in contents.bytes_by_kind.most_common()]
    lengths = Counter(contents.keyframes_by_scene.values())
    scenes = [(f"{length} keyframes", {None: number}) for length, number in sorted(lengths.items())]
    parts = [_title(f"{contents.total('samples')} samples of {contents.total('scenes')} scenes")]
    if boxes:
        parts += [_heading("boxes"), _key(), _bars(boxes, "{:.0f}")]
    parts += [_heading("MB by kind of member"), _bars(members, "{:.1f}")]
    parts += [_heading("scenes by length"), _bars(_grouped(scenes), "{:.0f}")]
    return cv2.imencode(".png", np.concatenate([*parts, _blank(16)]))[1].tobytes()


def _grouped(rows):
    """The rows, neighbours taken together where there are too many to read."""
    step = -(-len(rows) // _MOST_ROWS)
    groups = [rows[n : n + step] for n in range(0, len(rows), step)]
    out = []
    for group in groups:
        first, last = group[0][0], group[-1][0]
        name = first if len(group) == 1 else f"{first.split()[0]} to {last}"
        out.append((name, {None: sum(values[None] for _, values in group)}))
    return out


def _blank(height):
    return np.full((height, _WIDTH, 3), _PAPER, np.uint8)


def _write(image, text, at, scale=0.45, colour=_INK):
    cv2.putText(image, text.encode("ascii", "replace").decode(), at, _FONT, scale, colour, 1, cv2.LINE_AA)


def _title(text):
    image = _blank(46)
    _write(image, text, (14, 32), 0.7)
    return image


def _heading(text):
    image = _blank(38)
    _write(image, text, (14, 26), 0.55)
    return image


def _key():
    image, left = _blank(_ROW), _LEFT
    for value, label in _LABELS.items():
        image[8:20, left : left + 14] = _SEEN[value]
        _write(image, label, (left + 20, 19), 0.4, _FAINT)
        left += 36 + cv2.getTextSize(label, _FONT, 0.4, 1)[0][0]
    return image


def _bars(rows, shape):
    """One bar per row; each row is (name, {colour's key: value}), whose values are stacked."""
    image = _blank(_ROW * len(rows))
    most = max(sum(values.values()) for _, values in rows) or 1
    for number, (name, values) in enumerate(rows):
        top, left = number * _ROW, float(_LEFT)
        _write(image, name, (14, top + 18), 0.43)
        for key, value in values.items():
            right = left + value / most * (_WIDTH - _LEFT - _RIGHT)
            image[top + 5 : top + 21, round(left) : round(right)] = _SEEN.get(key, _BAR)
            left = right
        _write(image, shape.format(sum(values.values())), (round(left) + 8, top + 18), 0.43, _FAINT)
    return image
