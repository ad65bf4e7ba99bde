"""The annotations of every sample: boxes with category, attributes, visibility, point counts and velocity."""

import re

import numpy as np

from preprocess.errors import SourceError
from preprocess.plausible import check_count, check_sizes
from preprocess.tables import by_token, column, field_of, link_of, named, quaternions, read_table, refer

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

    samples: token -> row. faults: Faults. required: False where a version has no annotations. note: what is worth saying,
    or "". categories: names in the order of their table.
    Raises SourceError for tables that are damaged.
    """

    def __init__(self, folder, samples, faults, required=True):
        self.samples, self.note = samples, ""
        self.category = _names(read_table(folder, "category", not required), "category", faults)
        self.categories = tuple(dict.fromkeys(n for n in self.category.values() if isinstance(n, str)))
        self.attribute = _names(read_table(folder, "attribute", not required), "attribute", faults)
        self.instance = by_token(read_table(folder, "instance", not required), "instance", faults)
        self.levels = self._levels(folder, faults)
        rows = named(read_table(folder, "sample_annotation", not required), "sample_annotation", faults)
        bad = _bad_numbers(rows, faults)
        self.rows, self._by_sample = {}, {}
        for place, row in enumerate(rows):
            token = row["token"]
            try:
                if token in self.rows:
                    raise SourceError(f"sample_annotation: the token {token} occurs twice")
                self._join(row, f"sample_annotation {token}")
                joined = bad.get(place, row)
            except SourceError as error:
                joined = faults.met(error)
            self.rows[token] = joined
            sample = row.get("sample_token")
            if isinstance(sample, str):
                self._by_sample.setdefault(sample, []).append(joined)

    def _join(self, row, what):
        """Add to a row what other tables say of it. Raises SourceError."""
        for name in ("prev", "next"):
            row[name] = link_of(row, name, what)
        refer(self.samples, field_of(row, "sample_token", what), "sample", what)
        track = refer(self.instance, field_of(row, "instance_token", what), "instance", what)
        category = field_of(track, "category_token", f"instance {track['token']}")
        row["category_name"] = refer(self.category, category, "category", what)
        named_here = field_of(row, "attribute_tokens", what, list)
        row["attributes"] = [refer(self.attribute, token, "attribute", what) for token in named_here]
        seen = field_of(row, "visibility_token", what)
        row["visibility"] = refer(self.levels, seen, "visibility", what) if seen and self.levels is not None else 0
        for name in ("num_lidar_pts", "num_radar_pts"):
            row[name] = -1 if row.get(name) is None else row[name]
            check_count(row[name], what, name)

    def _levels(self, folder, faults):
        """Visibility token -> 0 to 4; None where there is no such table."""
        rows = read_table(folder, "visibility", optional=True)
        if not rows:
            self.note = "there is no visibility table: every box counts as one without visibility"
            return None
        rows = by_token(rows, "visibility", faults, lambda row: field_of(row, "level", "visibility"))
        return {t: r if isinstance(r, SourceError) else visibility_of(r["level"]) for t, r in rows.items()}

    def boxes(self, sample):
        """Boxes of a sample, plain dicts in the order of the table.

        Raises SourceError for one whose row has a fault, or whose track cannot be followed.
        """
        rows = self._by_sample.get(sample, [])
        for row in rows:
            if isinstance(row, SourceError):
                raise SourceError(str(row))
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
            for row in rows
        ]

    def _velocity(self, row, max_time_diff_s=1.5):
        """Metres per second in the global frame from the neighbouring annotations, or None (the devkit's box_velocity).

        It is None too beside a row with a fault, which --on-error skip leaves out with its sample.
        """
        if any(isinstance(self.rows.get(row[side]), SourceError) for side in ("prev", "next")):
            return None
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


def _names(rows, table, faults):
    """token -> name of a table's rows."""
    rows = by_token(rows, table, faults, lambda row: field_of(row, "name", f"{table} {row['token']}", str))
    return {token: row if isinstance(row, SourceError) else row["name"] for token, row in rows.items()}


def _bad_numbers(rows, faults):
    """{place: SourceError} of the annotations whose place, rotation or size cannot be."""
    table, bad = "sample_annotation", column(rows, "translation", 3, "sample_annotation", faults)[1]
    bad |= quaternions(rows, table, faults)[1]
    sizes, unsized = column(rows, "size", 3, table, faults)
    for place in np.flatnonzero((sizes < 0).any(1)).tolist():
        try:
            check_sizes(rows[place : place + 1], sizes[place : place + 1], table)
        except SourceError as error:
            unsized[place] = faults.met(error)
    return bad | unsized
