"""Results -> the table, as Markdown."""

import json
import statistics

COLUMNS = (
    *("network: sensors", "M parameters", "G operations per sample", "samples/s", "GB", "updates"),
    *("IoU of the seeds: mean (least to most)", "of hidden boxes"),
)


def read(path):
    """The rows of a file of results; none of one that is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(rows):
    """{(row, what, seed)} of the rows that hold a figure."""
    return {(row["row"], row["what"], row.get("seed")) for row in rows if row["what"] in ("cost", "trial")}


def table(rows, names):
    """Lines of Markdown, a row for each name of which there is a figure."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for name in names:
        own = [row for row in rows if row["row"] == name]
        cost = next((row for row in reversed(own) if row["what"] == "cost"), None)
        trials = {row["seed"]: row for row in own if row["what"] == "trial"}
        if cost or trials:
            yield f"| {name} | {_cost(cost)} | {_reached(list(trials.values()))} |"


def _cost(row):
    if row is None:
        return " | | |"
    millions, billions = row["parameters"] / 1e6, row["operations"] / 1e9
    return f"{millions:.1f} | {billions:.1f} | {row['samples_per_s']:.1f} | {row['memory_gb']:.2f}"


def _reached(trials):
    if not trials:
        return " | not measured | "
    few = "" if len(trials) > 2 else f", of {len(trials)} seed(s)"
    return f"{trials[0]['updates']} | {_spread(trials, 'iou')}{few} | {_spread(trials, 'hidden_iou')}"


def _spread(trials, name):
    values = sorted(row[name] for row in trials)
    return f"{statistics.mean(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})"
