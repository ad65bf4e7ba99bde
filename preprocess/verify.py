"""python -m preprocess.verify: read everything again and name what is wrong."""

import itertools
import json
import sys
import tarfile
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from common.addresses import split
from common.errors import CannotList, Missing
from common.interrupts import Interruptible
from common.keys import keyframe_key
from common.manifest import MAX_MANIFEST_BYTES, SUFFIX, manifest_name, parse_manifest
from common.plain import one_line
from common.progress import Progress, counted, progress, say
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    decode_points,
    image_member,
    lidar_files,
    lidar_member,
    member_order,
    parse_sample,
    radar_member,
)
from common.rig import rig_of
from common.shard_index import ShardError, build_index, dump_index, open_index
from common.shard_set import SPLITS, find_shards, is_folder
from common.spelling import EITHER, spelled
from common.stores import local_copy, open_store, parse_options
from preprocess.command import store_option, workers_option
from preprocess.errors import SourceError
from preprocess.images import check_image
from preprocess.keyframe import build_record
from preprocess.manifest import read_skipped
from preprocess.options import Options
from preprocess.plan import Planner
from preprocess.plausible import check_boxes, check_camera, check_rigid
from preprocess.pointclouds import lidar_problem, radar_problem
from preprocess.steps import check_keyframe_step, check_offset, check_sweep_step
from preprocess.verify_layers import check_layers
from preprocess.workers import Workers, go_on

MAX_LAG_ERROR_S = 1e-5  # seconds since 1970 as float64 are exact to a quarter of a microsecond
SAMPLE_FIELDS = frozenset(
    "boxes cameras facts global_T_ego index lidar log next prev radar scene schema timestamp_us token".split()
)


@click.command(cls=Interruptible, context_settings=EITHER)
@click.argument("shards", nargs=-1, required=True)
@click.option("--against", type=click.Path(path_type=Path), help="compare every byte with this nuScenes folder")
@workers_option
@store_option
def main(shards, against, workers, store_options):
    """Check SHARDS (a folder, tars, a pattern, a manifest; addresses too): indexes, checksums, every member, scenes, manifests.

    Exit code 1 if anything is wrong.
    """
    try:
        problems, keyframes, count = verify(shards, against, workers, parse_options(store_options))
    except (ValueError, OSError, BrokenProcessPool) as error:
        problems, keyframes, count = [str(error)], 0, 0
    for problem in problems:
        click.echo(f"error: {one_line(problem)}", err=True)
    found = counted(len(problems), "problem") if problems else "all is well"
    click.echo(f"{counted(count, 'shard')}, {counted(keyframes, 'keyframe')}: {found}")
    sys.exit(bool(problems))


def verify(patterns, against=None, workers=1, options=None):
    """(problems, keyframes, shards): problems is a list of lines, empty if all is well.

    Args:
        patterns: what common.shard_set.find_shards takes. Of a folder everything in it is checked, else what is named.
        against: nuScenes folder. options: of the stores.
    Raises SourceError where there is nothing to check, or for a folder to compare with that cannot be read.
    """
    folders = _folders(patterns, options)
    tars = [(folder.store, name) for folder in folders for name in folder.names]
    if not tars:
        raise SourceError(f"{folders[0].store.path('')}: no shards there")
    problems, sound = [problem for folder in folders for problem in folder.missing()], {}
    sources = _sources(against, tars) if against else {}
    arguments = [(store, name, against, sources.get((store.address, name))) for store, name in tars]
    if workers > 1 and len(tars) > 1:
        with Workers(workers) as pool:
            results = _counted(pool.map(_check_shard, arguments), len(tars))
    else:
        results = _counted(map(_check_shard, arguments), len(tars))
    for (store, name), (wrong, index) in zip(tars, results, strict=True):
        problems += wrong
        if index is not None:
            sound[store.address, name] = index
    for folder in folders:
        own = {name: i for (at, name), i in sound.items() if at == folder.store.address}
        problems += folder.check(own)
        problems += check_layers(folder.store, own, whole=folder.there is not None)
    problems += _check_scenes(list(sound.values()))
    return problems, sum(len(i.keys) for i in sound.values()), len(tars)


def _counted(results, total):
    with Progress(total, "shards", "verify") as bar:
        return list(bar.over(results))


def _folders(patterns, options):
    """The _Folder of each folder that patterns name, or name shards of."""
    patterns = [patterns] if isinstance(patterns, (str, Path)) else list(patterns)
    if len(patterns) == 1 and is_folder(patterns[0]):
        store = open_store(str(patterns[0]).rstrip("/") or "/", options)
        try:
            there = store.list()
        except CannotList:
            there = [split(tar)[1] for tar in find_shards(patterns, options=options)]
            there += [manifest_name(s) for s in SPLITS if store.exists(manifest_name(s))]
        return [_Folder(store, [n for n in there if n.endswith(".tar")], there)]
    names = {}
    try:
        tars = find_shards(patterns, options=options, strict=False)
    except ShardError as error:
        raise SourceError(str(error)) from None
    for note in tars.notes:
        say(f"note: {note}")
    for tar in (*tars, *tars.gone):
        folder, name = split(tar)
        names.setdefault(folder, ([], []))[tar in tars.gone].append(name)
    return [_Folder(open_store(folder or ".", options), own, None, gone) for folder, (own, gone) in names.items()]


@dataclass
class _Folder:
    """Shards of a folder that are to be checked, and every name in it where all of it is, or else those that are gone."""

    store: object
    names: list
    there: list | None
    gone: list = field(default_factory=list)

    def missing(self):
        """Problems of the shards that were named, are listed and are not there."""
        return [
            f"{self.store.path(n)}: its manifest lists it, but it is missing; run {spelled('preprocess.run')} again"
            for n in self.gone
        ]

    def check(self, sound):
        """Problems of its manifests and strays. sound: tar name -> ShardIndex of the shards that could be read."""
        problems = []
        for name in self.there or ():
            tar = name.removesuffix(".idx.json") + ".tar"
            if name.endswith(".idx.json") and tar not in self.names:
                problems.append(f"{self.store.path(tar)}: is missing, its index is there")
        return problems + list(_check_manifests(self, sound))


def _check_shard(arguments):
    """(problems, index or None) of one shard; of a remote one after fetching it."""
    store, name, against, source = arguments
    try:
        with local_copy(store, name) as tar:
            problems, index = _check_local(tar, store, name, against, source)
        return [problem.replace(str(tar), str(store.path(name))) for problem in problems], index
    except (ShardError, SourceError) as error:
        return [str(error)], None


def _check_local(tar, store, name, against, source):
    try:
        index, _ = open_index(store, name, verify=True)
        rebuilt = build_index(tar)
    except (ShardError, RecordError) as error:
        return [str(error)], None
    if rebuilt.tar_sha256 != index.tar_sha256:
        return [f"{tar}: its SHA-256 is not the index's; make it anew"], index
    if dump_index(rebuilt) != dump_index(index):
        return [f"{tar}: its index does not describe it; rebuild it with {spelled('preprocess.index')}"], index
    problems, scenes = [], {}
    with tarfile.open(tar) as archive:
        for key, members in _samples(archive):
            go_on()
            try:
                sample = _check_sample(key, members)
                scene = sample["scene"]
                seen = scenes.setdefault(scene["name"], _Scene(scene["nbr_samples"]))
                seen.add(key, sample)
                if source is not None:
                    _compare(key, members, source, against)
            except (RecordError, SourceError, KeyError, TypeError) as error:
                problems.append(f"{tar}: {key}: {error}")
    problems += _whole(tar, scenes, read_skipped(store, name.removesuffix(".tar")), index.facts.get("frames", {}))
    return problems, index


def _samples(archive):
    """(key, {member: bytes}) of each sample, in tar order."""
    key, members = None, {}
    for entry in archive:
        own, _, member = entry.name.partition(".")
        if own != key and members:
            yield key, members
            members = {}
        key, members[member] = own, archive.extractfile(entry).read()
    if members:
        yield key, members


def _check_sample(key, members):
    """Decode every member of a record and check it as preprocessing checks its source. Returns sample.json.

    Raises RecordError or SourceError.
    """
    sample = parse_sample(members[SAMPLE])
    if not set(sample) >= SAMPLE_FIELDS:
        raise RecordError(f"{SAMPLE}: lacks {min(SAMPLE_FIELDS - set(sample))}")
    if key != keyframe_key(sample["scene"]["name"], sample["index"]):
        raise RecordError(f"{SAMPLE}: belongs to another key")
    _check_neighbours(sample)
    rig = rig_of(sample["facts"], sample["schema"])
    cameras = [c["channel"] for c in sample["cameras"]]
    expected = member_order([c for c in rig.camera_names if c in cameras], len(sample["lidar"]), len(sample["radar"]))
    if list(members) != expected:
        odd = sorted(set(members) ^ set(expected)) or ["their order"]
        raise RecordError(f"its members are not those that {SAMPLE} lists: {', '.join(odd)}")
    rows = decode_cameras(members[CAMERAS_MEMBER], sample)
    for camera, row in zip(cameras, rows, strict=True):
        size = check_image(members[image_member(camera)], image_member(camera))
        if size != (row["height"], row["width"]):
            raise RecordError(f"{image_member(camera)}: its size is not that of {CAMERAS_MEMBER}")
        check_offset(sample["timestamp_us"], int(row["timestamp_us"]), image_member(camera))
        check_camera(row["intrinsics"], row["ego_T_cam"], f"{CAMERAS_MEMBER}: {camera}")
        check_rigid(row["global_T_ego"], f"{CAMERAS_MEMBER}: global_T_ego of {camera}")
    check_rigid(np.array(sample["global_T_ego"], np.float64), f"{SAMPLE}: global_T_ego")
    check_boxes(decode_boxes(members[BOXES_MEMBER], sample), BOXES_MEMBER)
    for k, files in enumerate(lidar_files(sample)):
        name = lidar_member(k)
        points = decode_points(members[name], name, rig.lidar_planes)
        _no_problem(name, lidar_problem(points) or _lidar_numbers_problem(points, files, rig))
    for k, files in enumerate(sample["radar"]):
        name = radar_member(k)
        points = decode_points(members[name], name, rig.radar_planes)
        _no_problem(
            name, radar_problem(points, rig.radar_fields) or _radar_rows_problem(points[-2:], files, rig.radar_names)
        )
    _check_times(sample, rig)
    return sample


def _check_neighbours(sample):
    """Raise RecordError unless prev and next are the keys of the scene's keyframes before and after."""
    scene, index = sample["scene"], sample["index"]
    for name, number in (("prev", index - 1), ("next", index + 1)):
        there = 0 <= number < scene["nbr_samples"]
        wanted = keyframe_key(scene["name"], number) if there else ""
        if sample[name] != wanted:
            raise RecordError(f"{SAMPLE}: {name} is {sample[name]!r}, not {wanted!r}")


def _check_times(sample, rig):
    """Raise unless lidars and radars fired at their sample, their sweeps before, and lags are what the timestamps say."""
    pairs = []
    for sweeps, clock in ((lidar_files(sample), rig.clock), (sample["radar"], rig.radar_clock)):
        keyframes = sweeps[0] if sweeps else []
        for file in keyframes:
            check_offset(sample["timestamp_us"], file["timestamp_us"], f"{SAMPLE}: {file['channel']}")
        for files in _by_channel(sweeps):
            for newer, older in itertools.pairwise(files):
                check_sweep_step(older["timestamp_us"], newer["timestamp_us"], f"{SAMPLE}: sweep {older['token']}")
        first = [file for file in keyframes if file["channel"] == clock] or keyframes
        pairs += [(first[0], file) for files in sweeps for file in files if first]
    for keyframe, file in pairs:
        lag = 1e-6 * (keyframe["timestamp_us"] - file["timestamp_us"])
        if abs(file["lag_s"] - lag) > MAX_LAG_ERROR_S:
            raise RecordError(f"{SAMPLE}: lag_s of {file['token']} is {file['lag_s']}, by its timestamp {lag:.6f}")


def _no_problem(name, problem):
    if problem is not None:
        raise RecordError(f"{name}: {problem}")


def _lidar_numbers_problem(points, files, rig):
    """What is wrong with the lidars that points name, where there are several, of a sweep of these files."""
    known = [rig.lidars.index(file["channel"]) for file in files]
    strange = np.setdiff1d(points[-1], known) if len(rig.lidars) > 1 else ()
    return f"a point is of lidar {strange[0]:g}, which {SAMPLE} does not list" if len(strange) else None


def _radar_rows_problem(rows, files, names):
    """What is wrong with the points' lags and radars, (2, n), of a sweep of these files; names: of the rig's radars."""
    lags = {names.index(f["channel"]): f["lag_s"] for f in files}
    for lag, number in np.unique(rows, axis=1).T:
        if number not in lags:
            return f"a point is of radar {number:g}, which {SAMPLE} does not list"
        if lag != np.float32(lags[number]):
            return f"a point of radar {number:g} has lag {lag:g}, in {SAMPLE} it is {lags[number]:g}"
    return None


def _by_channel(sweeps):
    """Files of each sensor, newest first."""
    channels = {}
    for file in itertools.chain.from_iterable(sweeps):
        channels.setdefault(file["channel"], []).append(file)
    return channels.values()


class _Scene:
    """What was met of a scene: keys in tar order; its samples must follow each other as a car's do."""

    def __init__(self, count):
        self.count, self.keys, self.last = count, [], None

    def add(self, key, sample):
        self.keys.append(key)
        last, self.last = self.last, sample
        if last is not None and sample["index"] == last["index"] + 1:
            check_keyframe_step(last["timestamp_us"], sample["timestamp_us"], SAMPLE)


def _whole(tar, scenes, skipped, parts):
    """Problems of scenes that lack a keyframe. parts: the scenes that are there in part; between its ends a part is whole."""
    skipped = {s["key"] for s in skipped}
    for name, scene in scenes.items():
        keys = [keyframe_key(name, i) for i in range(scene.count)]
        if name in parts:
            there = [i for i, key in enumerate(keys) if key in scene.keys]
            keys = keys[there[0] : there[-1] + 1]
        want = [key for key in keys if key not in skipped]
        if scene.keys != want:
            missing = [key for key in want if key not in scene.keys]
            yield f"{tar}: {name} is not whole: {missing[0] if missing else 'its order is wrong'}"


def _check_manifests(folder, sound):
    """Problems of a _Folder's manifests; those of the named shards only, where not the whole folder is checked."""
    listed, whole = set(), folder.there is not None
    splits = dict.fromkeys(name.rpartition("-")[0] for name in folder.names)
    names = [n for n in folder.there if n.endswith(SUFFIX)] if whole else [manifest_name(s) for s in splits if s]
    for name in names:
        path = folder.store.path(name)
        try:
            manifest = parse_manifest(folder.store.read(name, MAX_MANIFEST_BYTES), path)
        except Missing:
            continue
        except ShardError as error:
            yield str(error)
            continue
        listed |= set(manifest.by_name)
        for entry in manifest.shards:
            tar, index = folder.store.path(entry.name), sound.get(entry.name)
            if whole and entry.name not in folder.names:
                yield f"{tar}: listed in {name}, but missing; run {spelled('preprocess.run')} again"
            elif index is not None and (
                (entry.sha256, entry.bytes, entry.keyframes, entry.scenes)
                != (index.tar_sha256, index.tar_bytes, len(index.keys), [s for s, _, _ in index.scenes])
            ):
                yield f"{tar}: is not the shard that {name} lists; run {spelled('preprocess.run')} again"
    if whole:
        yield from (f"{folder.store.path(name)}: in no manifest" for name in folder.names if name not in listed)


def _check_scenes(indexes):
    problems, owner = [], {}
    for index in indexes:
        for scene, _, _ in index.scenes:
            if scene in owner and scene not in index.facts.get("frames", {}):
                problems.append(f"{index.tar}: {scene} is in {owner[scene]} too")
            owner[scene] = Path(index.tar).name
    facts = {
        json.dumps({k: v for k, v in i.facts.items() if k not in ("split", "frames", "recipe_sha256")}) for i in indexes
    }
    if len(facts) > 1:
        problems.append("the shards were made with different options")
    return problems


def _sources(against, tars):
    """(address of the folder, shard name) -> (facts, {key: KeyframeRecipe}) of the nuScenes folder."""
    out, planner = {}, None
    for store, tar in progress(tars, "shards", "planning"):
        try:
            index, _ = open_index(store, tar)
        except ShardError:
            continue  # told by the check of the shard itself
        facts = index.facts
        if planner is None:
            say(f"reading the tables of {against / facts['version']}")
            planner = Planner(against, facts["version"], Options.from_facts(facts), "skip", say=say)
            scenes = {scene["name"]: scene for scene in planner.scenes}
        frames = {}
        for name, _, _ in index.scenes:
            if name not in scenes:
                raise SourceError(f"{index.tar}: {name} is not in {against}")
            for frame in planner.scene_keyframes(scenes[name]):
                frame.facts["schema"] = index.schema
                if index.schema == 2:
                    del frame.facts["conditions"]
                frames[frame.key] = frame
        out[store.address, tar] = (facts, frames)
    return out


def _compare(key, members, source, dataroot):
    facts, frames = source
    if key not in frames:
        raise RecordError(f"is not in {dataroot}")
    hw = tuple(facts["image_size"]) if facts["image_size"] else None
    wanted, _ = build_record(dataroot, frames[key], facts, hw, facts["jpeg_quality"] or 90)
    for name, data in wanted.items():
        if members.get(name) != data:
            raise RecordError(f"{name} differs from {dataroot}")


if __name__ == "__main__":
    main(prog_name=spelled("preprocess.verify"))
