"""python -m preprocess.maps: nuScenes' map expansion, or Argoverse 2's maps -> layer `map` beside finished shards."""

import functools
from collections import Counter
from pathlib import Path

import click
import numpy as np

from common.interrupts import Interruptible
from common.keys import scene_key
from common.map_shapes import DEFAULT_EXTENT_M, MAP_LAYER, encode_shapes
from common.progress import progress
from common.shard_set import find_shards
from common.spelling import EITHER, spelled
from common.stores import parse_options
from preprocess.command import fail_in_one_line, layer_work, shards_option
from preprocess.datasets import DEFAULT
from preprocess.errors import SourceError
from preprocess.layer import write_layer
from preprocess.layer_part import samples_of

ARGOVERSE = "argoverse2"  # the data set whose maps are of a form of their own
SOURCES = {DEFAULT: "nuScenes map expansion 1.3", ARGOVERSE: "Argoverse 2 vector maps"}
CHECKED = 400  # keyframes whose ego is looked for on the drivable area
ON_ROAD = 0.9  # of them, where the map is the right one: nuScenes' cars leave it for car parks and driveways


@click.command(cls=Interruptible, context_settings={**EITHER, "show_default": True, "max_content_width": 100})
@shards_option
@click.option(
    "--dataroot",
    default="data/nuscenes",
    type=click.Path(path_type=Path),
    help="nuScenes folder with maps/, or that of Argoverse 2",
)
@click.option(
    "--extent", default=DEFAULT_EXTENT_M, type=click.FloatRange(1, 1000), help="metres from the car, each way"
)
@layer_work
def main(**values):
    """Add layer map to finished shards: the polygons and lines of nuScenes' map expansion around each keyframe.

    The shards keep their bytes. The same command continues an interrupted run.
    """
    fail_in_one_line(lambda: _run(**values), f"layer {MAP_LAYER}")


def _run(patterns, dataroot, extent, workers, scheduler, overwrite, store_options):
    store_options = parse_options(store_options)
    shards = find_shards(patterns, options=store_options)
    locations = check_maps(shards, dataroot, store_options)
    make = functools.partial(make_shapes, dataroot=str(dataroot), extent_m=extent)
    first, _ = next(iter(samples_of(shards, 1, store_options)))
    options = {"extent_m": extent, "source": SOURCES[_which(first)[0]]}
    more = {"scheduler": scheduler, "overwrite": overwrite, "store_options": store_options}
    count = write_layer(shards, MAP_LAYER, make, workers, options=options, **more)
    click.echo(f"layer {MAP_LAYER}: {count} keyframes at {_few(locations)}, {extent:g} m around the car")
    click.echo(
        f"train on it: {spelled('train.run')} --classes 'vehicle=vehicle; drivable=map:drivable_area' --shards …"
    )


def _few(places):
    """Names of the places; of many, as logs are, the first ones."""
    return ", ".join(places[:6]) + f" and {len(places) - 6} more" * (len(places) > 6)


def make_shapes(sample, dataroot, extent_m):
    """The members of one keyframe's map; see preprocess.layer.write_layer. Raises SourceError without the map's file."""
    xy, yaw = place_of(sample)
    return encode_shapes(_map_of(dataroot, *_which(sample)).around(xy, yaw, extent_m))


def _which(sample):
    """(data set, place) that tell a keyframe's map: nuScenes has one of each location, Argoverse 2 one of each log."""
    adapter, log = sample.facts["facts"].get("adapter", DEFAULT), sample.facts["log"]
    return adapter, log["logfile"] if adapter == ARGOVERSE else log["location"]


def place_of(sample):
    """(x, y) of the ego in metres of the map, and its yaw in radians."""
    global_T_ego = np.asarray(sample.facts["global_T_ego"], np.float64)
    return global_T_ego[:2, 3], float(np.arctan2(global_T_ego[1, 0], global_T_ego[0, 0]))


@functools.lru_cache(maxsize=8)
def _map_of(dataroot, adapter, place):
    """The map of a location or log, read once in each process."""
    if not place or scene_key(place) != place:  # a file's name is made of it
        raise SourceError(
            f"{place!r:.60}: no map has such a name; the layer is made of shards of nuScenes or Argoverse 2"
        )
    try:
        from preprocess.layers.argoverse_maps import LogMap
        from preprocess.layers.maps import VectorMap
    except ImportError:
        raise SourceError("reading maps needs Shapely: pip install 'shapely>=2'") from None
    if adapter == ARGOVERSE:
        return LogMap(dataroot, place)
    return VectorMap(Path(dataroot) / "maps" / "expansion" / f"{place}.json")


def check_maps(shards, dataroot, store_options=None):
    """Locations of the shards, after a look whether their maps are the right ones.

    A location where fewer than nine of ten egos lie on the drivable area is said: its map is another, or turned or shifted
    against the poses. Raises SourceError where a map's file is missing.
    """
    seen, on_road = Counter(), Counter()
    samples = samples_of(shards, CHECKED, store_options)
    for sample, _ in progress(list(samples), "keyframes", "looking at maps"):
        location = _which(sample)[1]
        seen[location] += 1
        on_road[location] += bool(_map_of(str(dataroot), *_which(sample)).is_drivable(place_of(sample)[0]).all())
    for location, count in seen.items():
        if on_road[location] < ON_ROAD * count:
            click.echo(
                f"note: {location}: {on_road[location]} of {count} egos lie on the drivable area; is {dataroot} of the same "
                "release as the shards?",
                err=True,
            )
    return sorted(seen)


if __name__ == "__main__":
    main(prog_name=spelled("preprocess.maps"))
