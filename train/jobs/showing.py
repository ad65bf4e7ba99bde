"""Any sample of shards as a picture, a scene as a video or a recording: the work of train.show."""

import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import click
import numpy as np

from common import addresses
from common.errors import InputError
from common.files import new_file, write_atomically
from common.progress import counted, progress
from common.spelling import spelled
from train.classes import parse_classes
from train.data.config import Wanted
from train.pictures.augmentation import DrawnSample, augmentation_sheet
from train.pictures.formats import DRAWS, DRAWS_PX, SHEET_PX, check_picture
from train.pictures.layout import encode, sheet
from train.pictures.recording import write_recording
from train.pictures.video import write_video
from train.pictures.view import maps_of_batch, view_of_batch, view_of_record
from train.processes.distributed import own_device
from train.processes.ranks import say
from train.samples import Samples, batch_of, batches_of, flips_of, network_of, options_without_run, predict
from train.setup import wanted_of


def show(shards, what, run, device, wanted):
    """Write what is `wanted` of the options of train.show, by name.

    shards: ShardSet. what: a sample or scene of theirs, or None. run: whose network predicts; or "". Raises ValueError.
    """
    samples = Samples(shards)
    number = samples.find(what or "0")[0]
    scene = samples.find(samples.keys[number].rpartition("_")[0])
    network = network_of(run, own_device(device), wanted["weights"]) if run else None
    classes = parse_classes(wanted["classes"])
    if wanted["predictions"]:
        numbers = scene if what else range(len(samples))
        _write_predictions(wanted["predictions"], samples, numbers, network)
    elif wanted["mcap"]:
        _write_recording(wanted["mcap"], samples, scene, network, classes)
    elif wanted["video"]:
        _write_scene(
            wanted["video"],
            sheets(samples, scene, network, wanted["width"] or SHEET_PX, wanted["points"], classes),
            samples,
            scene,
        )
    elif wanted["augment"]:
        picture = _draws(samples, number, network, wanted["width"] or DRAWS_PX, classes)
        write_picture(wanted["out"] or f"{samples.keys[number]}.augment.png", picture)
    else:
        picture = sheet_of(samples, number, network, wanted["width"] or SHEET_PX, wanted["points"], classes)
        write_picture(wanted["out"] or f"{samples.keys[number]}.png", picture)
    for line in _next(shards, samples.keys[number], run, wanted):
        click.echo(line, err=True)


def _next(shards, key, run, wanted):
    """Lines that say what to type next."""
    folder = addresses.shown(addresses.split(shards.shards[0])[0]) or "."
    this = f"{spelled('train.show')} {shlex.quote(folder)} {key}"
    with_run = f" --run {shlex.quote(run)}" if run else ""
    if wanted["classes"]:
        with_run = f" --classes {shlex.quote(wanted['classes'])}"
    lines = []
    if not wanted["video"]:
        lines.append(f"{this}{with_run} --video {key.rpartition('_')[0]}.webm")
    if not wanted["augment"]:
        lines.append(f"{this}{with_run} --augment")
    lines.append(f"{spelled('train.evaluate')} {shlex.quote(run)}" if run else f"{this} --run RUN")
    yield from (f"{'next:' if n == 0 else '':<5} {line}" for n, line in enumerate(lines))


def maps_of(samples, numbers, network=None, classes=()):
    """Yield the Maps of each keyframe, in order, with the prediction where there is a Network.

    classes: ClassSpecs whose truth is drawn, where there is no Network, which has its own.
    """
    if network is None:  # the pictures' own images are the record's
        options, device, wanted = options_without_run(classes), "cpu", Wanted(cameras=False, frames=1)
    else:
        options, device, wanted = network.options, network.device, wanted_of(network.model.needs)
    for own, batch, grid in batches_of(samples, numbers, options, device, wanted):
        predicted = predict(network, batch, grid) if network else [None] * len(own)
        for place, number in enumerate(own):
            maps = maps_of_batch(batch, place, grid, predicted[place])
            annotated = samples.source_of(number)[0].facts.get("annotated") is not False
            yield maps if annotated else replace(maps, truth=None, valid=None)


def views(samples, numbers, network=None, width=None, classes=()):
    """Yield the View of each keyframe with its Maps; width: of an image, at least; None for its full size."""
    for number, maps in zip(numbers, maps_of(samples, numbers, network, classes), strict=True):
        if network and maps.prediction is None and number == numbers[0]:
            say(f"note: {type(network.model).__name__} gives no seg, so no map of it is drawn")
        members = samples.members(number)
        yield samples.decoded(number, partial(view_of_record, samples.keys[number], members, width)).with_maps(maps)


def sheets(samples, numbers, network=None, width=SHEET_PX, points=(), classes=()):
    """Yield (H, width, 3) uint8, the sheet of each keyframe of Samples, with what a Network says where one is given.

    points: of "lidar" and "radar" those that are drawn into the cameras. classes: as in maps_of. Raises ValueError where a
    keyframe has no such points, or its shards not the map of a class.
    """
    note = f"{network.options.exp_name}, step {network.step}" if network else ""
    for view in views(samples, numbers, network, width // 3, classes):
        for name in points:
            if getattr(view, name) is None:
                raise InputError(f"--points {name}: {view.key} has no {name}; leave it out")
        yield sheet(view, width, note, points)


def sheet_of(samples, number, network=None, width=SHEET_PX, points=(), classes=()):
    """The sheet of one keyframe, see `sheets`."""
    [picture] = sheets(samples, [number], network, width, points, classes)
    return picture


def _draws(samples, number, network, width, classes):
    """The sheet of DRAWS epochs' draws of one sample. Raises ValueError for a network that gets no images."""
    if network is not None and not network.model.needs.cameras:
        raise InputError("--augment draws a network's images, and the run's takes none; leave out --run")
    members = samples.members(number)
    view = samples.decoded(number, lambda: view_of_record(samples.keys[number], members, width // 6))
    options = network.options if network else options_without_run(classes)
    drawn = []
    for epoch in range(DRAWS):
        batch, chosen, grid = batch_of(samples, number, options, epoch=epoch)
        flips = flips_of(batch, options)
        mirrored = flips.image[0].tolist() if flips else [False] * len(chosen.cams)
        mine = view_of_batch(batch, 0, maps_of_batch(batch, 0, grid), view.boxes)
        drawn.append(DrawnSample(mine, tuple(mirrored), _note(chosen, flips, options)))
    return augmentation_sheet(view, drawn, width)


def _note(chosen, flips, options):
    scales = chosen.resize_wh[0, :, 0] / options.data_aug_conf()["final_dim"][1]
    parts = [f"reference {chosen.cams[0]}", "scales " + " ".join(f"{s:.2f}" for s in scales)]
    if flips is not None:
        axes = [axis for axis, on in (("x", flips.bev_x[0]), ("z", flips.bev_z[0])) if on]
        parts.append(f"BEV features mirrored in {' and '.join(axes)}" if axes else "BEV features not mirrored")
    return "; ".join(parts)


def write_picture(path, picture):
    """Write an (H, W, 3) uint8 picture and say so. Raises ValueError for a name that is not a picture's."""
    check_picture(path)
    path = Path(path)
    write_atomically(path, encode(picture, path.suffix.lower()))
    click.echo(f"{path}: {picture.shape[1]} x {picture.shape[0]} pixels")


def _write_scene(path, pictures, samples, numbers):
    pictures = progress(pictures, "keyframes", "video", len(numbers))
    per_s = 1 / samples.source_of(numbers[0])[0].rig.keyframe_interval_s  # so that a video runs in real time
    _say_scene(path, write_video(path, pictures, per_s))


def _write_recording(path, samples, numbers, network, classes):
    found = progress(views(samples, numbers, network, classes=classes), "keyframes", "recording", len(numbers))
    frames = ((samples.members(number), view) for number, view in zip(numbers, found, strict=True))
    _say_scene(path, write_recording(path, frames))


def _write_predictions(path, samples, numbers, network):
    """Probabilities (n, Z, X) float16 of keyframes, of several classes (n, K, Z, X); where each map lies; keys and tokens.

    The file is written sample by sample, as NumPy would write it whole: the maps of a data set need not fit into memory.
    """
    classes = [spec.name for spec in network.options.classes]
    shape = (network.options.Z, network.options.X)
    shape = (len(numbers), *((len(classes),) if len(classes) > 1 else ()), *shape)
    places = []
    with new_file(path) as file, ZipFile(file, "w", ZIP_DEFLATED) as arrays:
        with arrays.open("probability.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for maps in progress(maps_of(samples, numbers, network), "keyframes", "predictions", len(numbers)):
                if maps.prediction is None:
                    raise InputError(
                        f"--predictions: {type(network.model).__name__} gives no seg, so there is no map to write"
                    )
                member.write(maps.prediction.astype("<f2").tobytes())
                places.append(maps.ego_T_ref)
        small = {
            "keys": [samples.keys[number] for number in numbers],
            "tokens": [samples.tokens[number] for number in numbers],
            "low_xz_m": maps.low_xz_m,
            "high_xz_m": maps.high_xz_m,
            "ego_T_cam0" if network.options.frame == "cam0" else "ego_T_ref": places,
            **({"classes": classes} if len(classes) > 1 else {}),
        }
        for name, values in small.items():
            with arrays.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)
    _say_scene(path, len(numbers))


def _say_scene(path, count):
    click.echo(f"{path}: {counted(count, 'keyframe')}, {Path(path).stat().st_size / 1e6:.1f} MB")
