"""python -m preprocess.show: what a set of shards holds, as a table, as JSON and as a chart."""

import json
import statistics
from pathlib import Path

import click

from common.files import write_atomically
from common.interrupts import Interruptible
from common.plain import one_line, plain
from common.progress import counted, progress
from common.spelling import EITHER, spelled
from common.stores import parse_options
from preprocess.chart import draw_chart
from preprocess.command import fail_in_one_line, store_option
from preprocess.contents import count, shards_of

WIDTH = 80
_BAR = 22  # columns of the longest bar


@click.command(cls=Interruptible, context_settings=EITHER)
@click.argument("shards", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="print everything as one JSON object instead of the table")
@click.option("--chart", help="also write a chart, .png")
@store_option
def main(shards, as_json, chart, store_options):
    """Say what SHARDS (a folder, paths, globs or ranges; addresses too) hold. Reads a few kilobytes per keyframe."""
    contents = fail_in_one_line(lambda: _contents(shards, chart, store_options), ", ".join(shards), goes_on=False)
    if as_json:
        click.echo(json.dumps(contents.as_dict(), indent=1))
    else:
        click.echo(plain("\n".join(table(contents))))


def _contents(shards, chart, store_options):
    """preprocess.contents.Contents of the shards, whose chart is then drawn where one was asked for."""
    if chart and not chart.endswith(".png"):
        raise ValueError(f"--chart {chart}: a chart ends in .png")
    found = shards_of(shards, parse_options(store_options))
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    contents = count(found, lambda shards: progress(shards, "shards", "show"))
    if chart:
        write_atomically(Path(chart), draw_chart(contents))
    return contents


def table(contents):
    """Lines of at most WIDTH columns."""
    lines = [
        *_splits(contents),
        *_options(contents),
        *_scenes(contents),
        *_sensors(contents),
        *_members(contents),
        *_boxes(contents),
        *_rest(contents),
    ]
    return [line.rstrip() for line in lines]


def _heading(text):
    return ["", text]


def _bar(value, most, width=_BAR):
    return "#" * round(width * value / most) if most else ""


def _splits(contents):
    lines = [f"{'split':<10}{'shards':>10}{'scenes':>10}{'samples':>10}{'hours':>10}{'MB':>14}"]
    rows = dict(contents.splits)
    if len(rows) > 1:
        rows["together"] = {name: contents.total(name) for name in next(iter(contents.splits.values()))}
    for name, split in rows.items():
        lines.append(
            f"{name:<10}{split['shards']:>10}{split['scenes']:>10}{split['samples']:>10}"
            f"{split['seconds'] / 3600:>10.3f}{split['bytes'] / 1e6:>14.1f}"
        )
    return lines


def _options(contents):
    lines = _heading("made with")
    for rig in contents.rigs:
        lines.append(f"  {'data set':<20}{_cut(rig['dataset'], WIDTH - 22)}")
        counts = {kind: len(rig[f"{kind}s"]) for kind in ("camera", "lidar", "radar")}
        lines.append(f"  {'rig':<20}{', '.join(f'{n} {kind}{chr(115) * (n != 1)}' for kind, n in counts.items() if n)}")
        lines.append(f"  {'keyframes every':<20}{rig['keyframe_interval_s']:g} s")
        distorted = [camera["name"] for camera in rig["cameras"] if camera["distortion"]]
        if distorted:
            lines.append(f"  {'lens distortion':<20}{_cut(', '.join(distorted), WIDTH - 22)}")
    for name, values in contents.options.items():
        text = " and ".join(_option(value) for value in values)
        if name == "image_size" or values != [None]:
            lines.append(f"  {_cut(name.replace('_', ' '), 19):<20}{_cut(text, WIDTH - 22)}")
    return lines


def _option(value):
    if value is None:
        return "as in the source"
    if isinstance(value, list):
        return (", " if any(isinstance(item, str) for item in value) else " x ").join(map(str, value))
    return str(value)


def _scenes(contents):
    lengths = list(contents.keyframes_by_scene.values())
    low, middle, high = min(lengths), statistics.median(lengths), max(lengths)
    lines = _heading("scenes")
    lines.append(f"  {'keyframes per scene':<20}{low} to {high}, median {middle:g}")
    lines += [f"  {_cut(place, 56):<57}{number:>6} scenes" for place, number in contents.places.most_common()]
    lines += [f"  {name:<57}{number:>6} scenes" for name, number in sorted(contents.conditions.items())]
    return lines


def _sensors(contents):
    lines = ["", f"{'sensor':<22}{'samples':>10}{'sweeps':>10}{'per sample':>12}"]
    for name, sensor in contents.sensors.items():
        mean = sensor["sweeps"] / sensor["samples"]
        lines.append(f"  {name:<20}{sensor['samples']:>10}{sensor['sweeps']:>10}{mean:>12.2f}")
    return lines


def _members(contents):
    samples, most = contents.total("samples"), max(contents.bytes_by_kind.values())
    total = sum(contents.bytes_by_kind.values())
    lines = ["", f"{'members':<22}{'MB':>10}{'kB per sample':>14}{'share':>8}"]
    for kind, size in contents.bytes_by_kind.most_common():
        lines.append(
            f"  {kind:<20}{size / 1e6:>10.1f}{size / 1e3 / samples:>14.1f}{100 * size / total:>6.1f} %  {_bar(size, most)}"
        )
    return lines


def _boxes(contents):
    if not contents.boxes:
        return ["", "no boxes: these shards have no annotations"]
    heads = "".join(f"{head:>8}" for head in ("0-40 %", "-60 %", "-80 %", "-100 %"))
    lines = ["", f"{'boxes, by visibility':<34}{'all':>8}{heads}{'?':>6}"]
    rows = sorted(contents.boxes.items(), key=lambda item: -sum(item[1]))
    together = [sum(counts[v] for _, counts in rows) for v in range(5)]
    for name, counts in [*rows, ("together", together)]:
        unknown, *known = counts
        cells = "".join(f"{n:>8}" for n in known)
        lines.append(f"  {_cut(name, 31):<32}{sum(counts):>8}{cells}{unknown:>6}")
    return lines


def _rest(contents):
    lines = [""]
    for name, layer in contents.layers.items():
        lines.append(f"layer {_cut(name, 30):<30}{layer['shards']:>6} shards{layer['bytes'] / 1e6:>14.1f} MB")
    if not contents.layers:
        lines.append("no layers")
    if contents.skipped:
        left = counted(len(contents.skipped), "sample was", "samples were")
        lines.append(f"{left} left out when these were made; the first:")
        lines.append("  " + _cut(f"{contents.skipped[0]['key']}: {contents.skipped[0]['why']}", WIDTH - 2))
    else:
        lines.append("no samples were left out when these were made")
    return lines


def _cut(text, width):
    text = one_line(text)
    return text if len(text) <= width else text[: width - 3] + "..."


if __name__ == "__main__":
    main(prog_name=spelled("preprocess.show"))
