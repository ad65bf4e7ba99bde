"""python -m preprocess.verify: read everything again and name what is wrong."""

import itertools
import json
import multiprocessing
import os
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from common.cameras import CAMERAS, LIDAR_FIELDS, RADAR_FIELDS, RADARS
from common.keys import keyframe_key
from common.record import (
    BOXES_MEMBER,
    CAMERAS_MEMBER,
    SAMPLE,
    RecordError,
    decode_boxes,
    decode_cameras,
    decode_points,
    image_member,
    lidar_member,
    member_order,
    parse_sample,
    radar_member,
)
from common.shard_index import ShardError, build_index, dump_index, load_index
from preprocess.errors import SourceError
from preprocess.images import check_image
from preprocess.keyframe import build_record
from preprocess.manifest import read_skipped
from preprocess.options import Options
from preprocess.plan import Planner
from preprocess.plausible import check_boxes, check_camera, check_rigid
from preprocess.pointclouds import lidar_problem, radar_problem
from preprocess.steps import check_keyframe_step, check_offset, check_sweep_step
from preprocess.store import LocalStore

SAMPLE_FIELDS = frozenset(
    "boxes cameras facts global_T_ego index lidar log next prev radar scene schema timestamp_us token".split()
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="compare every byte with this nuScenes folder")
@click.option("--workers", default=os.cpu_count(), type=click.IntRange(1), help="processes", show_default=True)
def main(folder, against, workers):
    """Check the shards of FOLDER: indexes, checksums, every member, scenes, manifests. Exit code 1 if anything is wrong."""
    try:
        problems, keyframes, shards = verify(folder, against, workers)
    except (SourceError, ShardError, OSError, BrokenProcessPool) as error:
        problems, keyframes, shards = [" ".join(str(error).split())], 0, 0
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    click.echo(f"{shards} shards, {keyframes} keyframes: {f'{len(problems)} problems' if problems else 'all is well'}")
    sys.exit(bool(problems))


def verify(folder, against=None, workers=1):
    """(problems, keyframes, shards): problems is a list of lines, empty if all is well.

    Raises SourceError where there is nothing to check, or for a folder to compare with that cannot be read.
    """
    folder = Path(folder)
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise SourceError(f"{folder}: no shards there")
    problems, sound = [], {}
    sources = _sources(against, tars) if against else {}
    arguments = [(tar, against, sources.get(tar.name)) for tar in tars]
    if workers > 1 and len(tars) > 1:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            results = list(tqdm(pool.map(_check_shard, arguments), total=len(tars), unit="shard", desc="verify"))
    else:
        results = [_check_shard(a) for a in tqdm(arguments, unit="shard", desc="verify")]
    for tar, (wrong, index) in zip(tars, results, strict=True):
        problems += wrong
        if index is not None:
            sound[tar.name] = index
    for path in folder.glob("*.idx.json"):
        tar = path.with_name(path.name.removesuffix(".idx.json") + ".tar")
        if not tar.exists():
            problems.append(f"{tar}: is missing, its index is there")
    problems += _check_manifests(folder, sound, {t.name for t in tars})
    problems += _check_scenes(sound)
    return problems, sum(len(i.keys) for i in sound.values()), len(tars)


def _check_shard(arguments):
    """(problems, index or None) of one shard."""
    tar, against, source = arguments
    try:
        index = load_index(tar, verify=True)
        rebuilt = build_index(tar)
    except (ShardError, RecordError) as error:
        return [str(error)], None
    if rebuilt.tar_sha256 != index.tar_sha256:
        return [f"{tar}: its SHA-256 is not the index's; make it anew"], index
    if dump_index(rebuilt) != dump_index(index):
        return [f"{tar}: its index does not describe it; rebuild it with preprocess.index"], index
    problems, scenes = [], {}
    with tarfile.open(tar) as archive:
        for key, members in _samples(archive):
            try:
                sample = _check_sample(key, members)
                scene = sample["scene"]
                seen = scenes.setdefault(scene["name"], _Scene(scene["nbr_samples"], index.schema))
                seen.add(key, sample)
                if source is not None:
                    _compare(key, members, source, against)
            except (RecordError, SourceError, KeyError, TypeError) as error:
                problems.append(f"{tar}: {key}: {error}")
    problems += _whole(tar, scenes)
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
    if key != keyframe_key(sample["scene"]["name"], sample["index"], sample["schema"]):
        raise RecordError(f"{SAMPLE}: belongs to another key")
    cameras = [c["channel"] for c in sample["cameras"]]
    expected = member_order([c for c in CAMERAS if c in cameras], len(sample["lidar"]), len(sample["radar"]))
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
    for k in range(len(sample["lidar"])):
        name = lidar_member(k)
        _no_problem(name, lidar_problem(decode_points(members[name], name, len(LIDAR_FIELDS))))
    for k in range(len(sample["radar"])):
        name = radar_member(k)
        points = decode_points(members[name], name, len(RADAR_FIELDS) + 2)
        _no_problem(name, radar_problem(points) or _radar_number_problem(points[-1], sample["radar"][k]))
    for sweeps in [sample["lidar"], *_by_channel(sample["radar"])]:
        for newer, older in itertools.pairwise(sweeps):
            check_sweep_step(older["timestamp_us"], newer["timestamp_us"], f"{SAMPLE}: sweep {older['token']}")
    return sample


def _no_problem(name, problem):
    if problem is not None:
        raise RecordError(f"{name}: {problem}")


def _radar_number_problem(numbers, files):
    there = {RADARS.index(f["channel"]) for f in files if f["channel"] in RADARS}
    strange = set(np.unique(numbers).tolist()) - there
    return f"a point is of radar {min(strange):g}, which {SAMPLE} does not list" if strange else None


def _by_channel(radar):
    """Sweeps of each radar, newest first."""
    channels = {}
    for file in itertools.chain.from_iterable(radar):
        channels.setdefault(file["channel"], []).append(file)
    return channels.values()


class _Scene:
    """What was met of a scene: keys in tar order; its samples must follow each other as a car's do."""

    def __init__(self, count, schema):
        self.count, self.schema, self.keys, self.last = count, schema, [], None

    def add(self, key, sample):
        self.keys.append(key)
        last, self.last = self.last, sample
        if last is not None and sample["index"] == last["index"] + 1:
            check_keyframe_step(last["timestamp_us"], sample["timestamp_us"], SAMPLE)


def _whole(tar, scenes):
    skipped = {s["key"] for s in read_skipped(LocalStore(tar.parent), tar.name.removesuffix(".tar"))}
    for name, scene in scenes.items():
        want = [key for i in range(scene.count) if (key := keyframe_key(name, i, scene.schema)) not in skipped]
        if scene.keys != want:
            missing = [key for key in want if key not in scene.keys]
            yield f"{tar}: {name} is not whole: {missing[0] if missing else 'its order is wrong'}"


def _check_manifests(folder, sound, there):
    problems, listed = [], {}
    for path in sorted(folder.glob("*.manifest.json")):
        try:
            manifest = json.loads(path.read_bytes())
            entries = {s["name"]: s for s in manifest["shards"]}
            if manifest["keyframes"] != sum(s["keyframes"] for s in entries.values()):
                problems.append(f"{path}: its keyframes do not add up")
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{path}: damaged manifest ({error}); run preprocess.run again")
            continue
        listed |= entries
        for name, entry in entries.items():
            index = sound.get(name)
            if name not in there:
                problems.append(f"{folder / name}: listed in {path.name}, but missing; run preprocess.run again")
            elif index is not None and (
                (entry["sha256"], entry["bytes"], entry["keyframes"], entry["scenes"])
                != (index.tar_sha256, index.tar_bytes, len(index.keys), [s for s, _, _ in index.scenes])
            ):
                problems.append(f"{folder / name}: is not the shard that {path.name} lists; run preprocess.run again")
    problems += [f"{folder / name}: in no manifest" for name in sorted(there - set(listed))]
    return problems


def _check_scenes(sound):
    problems, owner = [], {}
    for name, index in sorted(sound.items()):
        for scene, _, _ in index.scenes:
            if scene in owner:
                problems.append(f"{index.tar}: {scene} is in {owner[scene]} too")
            owner[scene] = name
    facts = {
        json.dumps({k: v for k, v in i.facts.items() if k not in ("split", "recipe_sha256")}) for i in sound.values()
    }
    if len(facts) > 1:
        problems.append("the shards were made with different options")
    return problems


def _sources(against, tars):
    """shard name -> (facts, {key: KeyframeRecipe}) of the nuScenes folder."""
    out, planner = {}, None
    for tar in tars:
        try:
            index = load_index(tar)
        except ShardError:
            continue  # told by the check of the shard itself
        facts = index.facts
        if planner is None:
            planner = Planner(against, facts["version"], Options.from_facts(facts), "skip")
            scenes = {scene["name"]: scene for scene in planner.scenes}
        frames = {}
        for name, _, _ in index.scenes:
            if name not in scenes:
                raise SourceError(f"{tar}: {name} is not in {against}")
            for frame in planner.scene_keyframes(scenes[name]):
                frame.facts["schema"] = index.schema
                frames[frame.key] = frame
        out[tar.name] = (facts, frames)
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
    main()
