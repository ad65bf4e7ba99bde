"""Figures as they come: one JSON object per line, appended to one file by every process of a benchmark."""

import json
import operator
from pathlib import Path

_COMPARE = {">=": operator.ge, "<=": operator.le}


class Rows:
    """Appends the rows of one part to a file, each at once: what was measured stays, whatever happens next."""

    def __init__(self, path, part):
        self.path, self.part = Path(path), part

    def add(self, name, value, unit="", goal="", **more):
        """A figure. goal: "<= 1" or ">= 60", or "" where there is none; whether it is met is then in the row."""
        row = {"part": self.part, "name": name, "value": value, "unit": unit, **more}
        if goal:
            compare, limit = goal.split()
            row |= {"goal": goal, "met": bool(_COMPARE[compare](value, float(limit)))}
        self._append(row)

    def failed(self, why):
        """The part is over, and this is why."""
        self._append({"part": self.part, "name": "failed", "why": why})

    def _append(self, row):
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read(path):
    """The rows of a file, as dicts; none of one that is not there."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def shown(row):
    """A row as a line of text."""
    if row["name"] == "failed":
        return f"{row['part']:<10} failed: {row['why']}"
    value = f"{row['value']:>12,.6g}" if isinstance(row["value"], float) else f"{row['value']!s:>12}"
    missed = " MISSED" if row.get("met") is False else ""
    goal = f"  goal {row['goal']}{missed}" if "goal" in row else ""
    return f"{row['part']:<10} {row['name']:<72}{value} {row['unit']}{goal}".rstrip()
