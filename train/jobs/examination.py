"""What of a machine, of shards and of a run can be told without torch: the first part of train.doctor."""

import os
import platform
import resource
import shutil
import sys
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from common.addresses import is_pipe, is_remote, scheme_of, split
from common.errors import ShardError
from common.progress import counted
from common.shard_index import ABSENT
from common.shard_set import find_shards, load_indexes, open_stores
from common.spelling import spelled
from common.stores import OBJECT_SCHEMES
from common.versions import own_version, version_of
from train.options import Options
from train.paths import shard_sets

PYTHONS, TORCH = ((3, 11), (3, 13)), (2, 11)  # from, to but not with; from, as pyproject.toml has them
ENOUGH_DISK, ENOUGH_MEMORY = 2e9, 4e9  # bytes: checkpoints of the largest encoder; a training of the smallest
ENOUGH_FILES = 1024


@dataclass(frozen=True)
class Finding:
    """One line: of what it is, what was found, and what to do about it where something is to be done.

    stops: whether commands fail as it is.
    """

    name: str
    text: str
    remedy: str = ""
    stops: bool = False


def versions():
    """Findings of bevshards, Python, torch and obstore."""
    yield Finding("bevshards", own_version())
    low, high = PYTHONS
    fits = low <= sys.version_info[:2] < high
    yield Finding(
        "Python", platform.python_version(), "" if fits else "take 3.11 or 3.12: make setup PYTHON=…", not fits
    )
    torch = version_of("torch")
    fits = _numbers(torch) >= TORCH
    yield Finding("torch", torch, "" if fits else "bevshards needs 2.11 or newer: make setup", not fits)
    there = version_of("obstore") != "not installed"
    remedy = "" if there else "shards on s3, gs, az and http need it: pip install 'bevshards[stores]'"
    yield Finding("obstore", version_of("obstore"), remedy)


def _numbers(version):
    major, _, rest = version.partition(".")
    return (int(major), int(rest.partition(".")[0])) if major.isdigit() else (0, 0)


def places(options):
    """Findings of the disks that checkpoints, curves and the cache go to, of memory, and of file descriptors."""
    wanted = {"ckpt_dir": ENOUGH_DISK, "log_dir": 0, "cache_dir": options.cache_gb * 1e9}
    for name, enough in wanted.items():
        if folder := getattr(options, name):
            yield _disk(name, Path(folder), enough)
    free, total = memory_bytes()
    remedy = "end other programs" if free < ENOUGH_MEMORY else ""
    yield Finding("memory", f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB", remedy)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < ENOUGH_FILES
    more = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(4 * ENOUGH_FILES, hard)
    remedy = f"shards are opened anew all the time with so few: ulimit -n {more}" if few else ""
    yield Finding("files", "any number open" if soft == resource.RLIM_INFINITY else f"{soft} open at once", remedy)


def _disk(name, folder, enough):
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return Finding("disk", f"{folder}: nothing can be written to {there}", f"give another --{name}", True)
    free = shutil.disk_usage(there).free
    remedy = f"make room for {enough / 1e9:.0f} GB, or give another --{name}" if free < enough else ""
    return Finding("disk", f"{free / 1e9:.1f} GB free for --{name} {folder}", remedy)


def memory_bytes():
    """(free, total) bytes of memory that this process may still take: the machine's, or of its container where that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024  # with what the system would drop
    except (OSError, KeyError, ValueError):  # another system than Linux
        pass
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(kept["inactive_file"])
    except (OSError, KeyError, ValueError):  # no container, or "max"
        return free, total
    return min(free, limit - used), min(total, limit)


def own_bytes():
    """Bytes of memory that this process has; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def run_options(options, folder):
    """Findings of a run: its newest checkpoint, and its options but for those that are the defaults."""
    saved = sorted(folder.glob("model-*.pth"))
    yield Finding(
        "run", f"{folder}, {counted(len(saved), 'checkpoint')}" + (f", {saved[-1].name} the last" if saved else "")
    )
    default = asdict(Options())
    words = [f"--{n} {_typed(v)}" for n, v in asdict(options).items() if v != default[n] and n != "store_options"]
    yield Finding("options", " ".join(words) or "all as the defaults are")


def _typed(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def shards_of(options, named):
    """Findings of the shards that the options name: what they hold, and whether they can be read.

    named: the shards are all that is meant, of whatever splits, not those to train on.
    """
    try:
        found = [find_shards(options.shards, options=options.stores)] if named else shard_sets(options)
        for shards in filter(None, found):
            for one in getattr(shards, "shard_sets", [shards]):  # of --mix several
                yield from _contents(one)
    except (ValueError, OSError) as error:
        yield Finding("shards", str(error), stops=True)


def _contents(shards):
    """Findings of a ShardSet. Raises ShardError."""
    if any(map(is_pipe, shards)):
        yield Finding(
            "shards", f"{counted(len(shards), 'command')}, not run here", "train.run reads them front to back"
        )
        return
    if version_of("obstore") == "not installed" and any(
        scheme_of(tar) in OBJECT_SCHEMES for tar in shards if is_remote(tar)
    ):
        raise ShardError(f"{shards.shards[0]}: needs obstore: pip install 'bevshards[stores]'")
    stores = open_stores(shards)
    indexes = [index for index, _ in load_indexes(shards, stores)]
    for note in shards.notes:
        yield Finding("note", note)
    for name in dict.fromkeys(index.facts.get("split", "") for index in indexes):
        own = [(tar, i) for tar, i in zip(shards, indexes, strict=True) if i.facts.get("split", "") == name]
        yield Finding(name or "shards", _held([index for _, index in own]))
        read = sum(_first_keyframe(stores, *one) for one in (own[0], own[-1])[: len(own)])
        text = f"{read / 1e6:.1f} MB of {counted(min(2, len(own)), 'keyframe')} read, as they were written"
        yield Finding("readable", text, f"all bytes: {spelled('preprocess.verify')} {split(own[0][0])[0] or '.'}")


def _held(indexes):
    """What shards of one split hold, in words."""
    rig, facts = indexes[0].rig, indexes[0].facts
    samples, scenes = (sum(len(getattr(i, n)) for i in indexes) for n in ("keys", "scenes"))
    sensors = Counter(cameras=len(rig.cameras), lidars=len(rig.lidars), radars=len(rig.radars))
    parts = [
        f"{counted(samples, 'sample')} of {counted(scenes, 'scene')} in {counted(len(indexes), 'shard')}",
        f"{sum(i.tar_bytes for i in indexes) / 1e9:.2f} GB, {facts['version']}",
        ", ".join(counted(count, kind[:-1]) for kind, count in sensors.items() if count),
    ]
    return "; ".join(parts) + ("; no annotations" if facts.get("annotated") is False else "")


def _first_keyframe(stores, tar, index):
    """Bytes of a shard's first keyframe, all of which were read. Raises ShardError where they are not those of the index."""
    folder, name = split(tar)
    read = 0
    for member, start, size, crc in zip(index.members, index.offsets[0], index.sizes[0], index.crc32[0], strict=True):
        if size == ABSENT:
            continue
        data, _ = stores[folder].read_range(name, int(start), int(size))
        if zlib.crc32(data) != crc:
            raise ShardError(f"{index.tar}: {index.keys[0]}.{member} is not what was written; copy the shard anew")
        read += len(data)
    return read
