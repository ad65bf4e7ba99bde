"""The annotations of every sample: boxes with category, attributes, visibility, point counts and velocity."""

import re

import numpy as np

from preprocess.errors import SourceError
from preprocess.plausible import check_count, check_sizes
from preprocess.tables import by_token, check_quaternions, column, field_of, read_table, refer

# Upper ends in percent of nuScenes' levels v0-40, v40-60, v60-80, v80-100, which are 1 to 4; and words that others use.
_UPPER_ENDS = (40, 60, 80, 100)
_WORDS = {"none": 1, "partial": 2, "most": 3, "full": 4}


def visibility_of(level):
    """1 to 4 for a level of the visibility table: a range such as v40-60, or none, partial, most, full. 0 for any other."""
    word = level.strip().lower() if isinstance(level, str) else ""
    spread = re.fullmatch(r"v(\d{1,3})-(\d{1,3})", word)
    if spread and int(spread[2]) <= 100:
        return 1 + next(i for i, end in enumerate(_UPPER_ENDS) if int(spread[2]) <= end)
    return _WORDS.get(word, 0)


class Annotations:
    """The tables sample_annotation, instance, category, attribute and visibility, joined.

    samples: token -> row. required: False where a version has no annotations. note: what is worth saying, or "".
    categories: names in the order of their table.
    Raises SourceError for tables that are damaged or inconsistent.
    """

    def __init__(self, folder, samples, required=True):
        self.samples, self.note = samples, ""
        category = _names(read_table(folder, "category", optional=not required), "category")
        self.categories = tuple(dict.fromkeys(category.values()))
        attribute = _names(read_table(folder, "attribute", optional=not required), "attribute")
        instance = by_token(read_table(folder, "instance", optional=not required), "instance")
        levels = self._levels(folder)
        fields = ("prev", "next", "visibility_token")
        self.rows = by_token(read_table(folder, "sample_annotation", not required), "sample_annotation", fields)
        rows = list(self.rows.values())
        column(rows, "translation", 3, "sample_annotation")
        check_quaternions(rows, column(rows, "rotation", 4, "sample_annotation"), "sample_annotation")
        check_sizes(rows, column(rows, "size", 3, "sample_annotation"), "sample_annotation")
        self._by_sample = {}
        for token, row in self.rows.items():
            what = f"sample_annotation {token}"
            sample = field_of(row, "sample_token", what)
            refer(samples, sample, "sample", what)
            track = refer(instance, field_of(row, "instance_token", what), "instance", what)
            row["category_name"] = refer(
                category, field_of(track, "category_token", f"instance {track['token']}"), "category", what
            )
            row["attributes"] = [
                refer(attribute, t, "attribute", what) for t in field_of(row, "attribute_tokens", what, list)
            ]
            seen = row["visibility_token"]
            row["visibility"] = refer(levels, seen, "visibility", what) if seen and levels is not None else 0
            for name in ("num_lidar_pts", "num_radar_pts"):
                row[name] = -1 if row.get(name) is None else row[name]
                check_count(row[name], what, name)
            self._by_sample.setdefault(sample, []).append(row)

    def _levels(self, folder):
        """Visibility token -> 0 to 4; None where there is no such table."""
        rows = read_table(folder, "visibility", optional=True)
        if not rows:
            self.note = "there is no visibility table: every box counts as one without visibility"
            return None
        return {token: visibility_of(row["level"]) for token, row in by_token(rows, "visibility", ("level",)).items()}

    def boxes(self, sample):
        """Boxes of a sample, plain dicts in the order of the table. Raises SourceError for a track that cannot be followed."""
        return [
            {
                "token": row["token"],
                "instance": row["instance_token"],
                "category": row["category_name"],
                "attributes": row["attributes"],
                "visibility": row["visibility"],
                "num_lidar_pts": row["num_lidar_pts"],
                "num_radar_pts": row["num_radar_pts"],
                "translation": row["translation"],
                "size": row["size"],
                "rotation": row["rotation"],
                "velocity": self._velocity(row),
            }
            for row in self._by_sample.get(sample, [])
        ]

    def _velocity(self, row, max_time_diff_s=1.5):
        """Metres a second in the global frame from the neighbouring annotations, or None (the devkit's box_velocity)."""
        first = self._neighbour(row, "prev") or row
        last = self._neighbour(row, "next") or row
        if first is last:
            return None
        times = [self.samples[r["sample_token"]]["timestamp"] for r in (first, last)]
        seconds = 1e-6 * times[1] - 1e-6 * times[0]
        if first is not row and last is not row:
            max_time_diff_s *= 2
        if seconds > max_time_diff_s:
            return None
        return ((np.array(last["translation"]) - np.array(first["translation"])) / seconds).tolist()

    def _neighbour(self, row, side):
        """The annotation before ("prev") or after ("next") in the row's track, None at its end."""
        token = row[side]
        if not token:
            return None
        what = f"sample_annotation {row['token']}"
        other = refer(self.rows, token, "sample_annotation", what)
        if other["instance_token"] != row["instance_token"]:
            raise SourceError(f"{what}: its {side} {token} is of another instance")
        own, others = self.samples[row["sample_token"]], self.samples[other["sample_token"]]
        if own["scene_token"] != others["scene_token"]:
            raise SourceError(f"{what}: its {side} {token} is of another scene")
        step = others["timestamp"] - own["timestamp"]
        if step >= 0 if side == "prev" else step <= 0:
            raise SourceError(f"{what}: its {side} {token} is not {'earlier' if side == 'prev' else 'later'}")
        return other


def _names(rows, table):
    """token -> name of a table's rows."""
    return {token: field_of(row, "name", f"{table} {token}", str) for token, row in by_token(rows, table).items()}
