"""Archives -> packed scenes -> shards. A scene is packed when its last file has come, a shard written when its last scene has.

Threads read archives, of which each waits for its disk or line and unpacks without the interpreter's lock; processes pack.
On the disk are at any time the wanted files of scenes that are not whole, packed scenes, and shards.
"""

import hashlib
import queue
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from common import addresses
from common.record import encode_json
from common.stores import find, open_store
from preprocess.archives.needed import files_of, holder, part_of
from preprocess.archives.parking import read_scene, write_scene
from preprocess.archives.reading import members, told
from preprocess.errors import SourceError, sample_error
from preprocess.recipe import ShardRecipe
from preprocess.shard_writer import Written, assemble, records_of
from preprocess.workers import Workers

MAX_EVENTS = 256  # files that are on the disk and not yet entered
MAX_FOLDERS = 4  # above a data set's own, in an archive's names


def archives_of(patterns, options=None):
    """[(store, name, what tells it)] of addresses and globs, each once, part by part.

    Raises SourceError for a pattern that meets none.
    """
    found = []
    for pattern in patterns:
        there = [pattern] if "?" in pattern and addresses.is_remote(pattern) else find(pattern, options)
        if not there:
            raise SourceError(f"{addresses.shown(pattern)}: no such archive")
        found += there
    out = []
    # The archives of one part hold the files of the same scenes: read one after another, they let these be packed early.
    for address in sorted(dict.fromkeys(found), key=lambda address: part_of(addresses.split(address)[1])):
        folder, name = addresses.split(address)
        store = open_store(folder or ".", options)
        stat = store.stat(name)
        out.append((store, name, f"{name} {stat.size} {stat.etag}"))
    return out


def plan_digest(digests):
    """What tells a plan: a digest of those of its shards' recipes."""
    return hashlib.sha256(encode_json(sorted(digests))).hexdigest()


@dataclass
class _Scene:
    """A scene that is to be packed. missing: files that have not come. sources: archives that others came from."""

    recipe: ShardRecipe
    key: str
    digest: str
    files: set
    missing: set = field(default_factory=set)
    sources: set = field(default_factory=set)
    parked: bool = False


class Packing:
    """Makes the shards of recipes out of archives.

    Args:
        todo: ShardRecipes, their digests among their facts. archives: what archives_of gives. parking: Parking. store: of the
            shards. writing: image_hw and jpeg_quality. skip: on_error and keep_sequences. workers: archives read at once, and
            processes that pack. say: called with lines of text. on_progress: called with the Written so far.
    """

    def __init__(self, todo, archives, parking, store, writing, skip, workers, say, on_progress):
        self.todo, self.archives, self.parking, self.store = todo, archives, parking, store
        self.writing, self.skip, self.workers, self.say, self.on_progress = writing, skip, workers, say, on_progress
        self.scenes = {recipe.name: self._scenes(recipe) for recipe in todo}
        self.scene_of = {name: scene for own in self.scenes.values() for scene in own for name in scene.files}
        self.pending = {name for own in self.scenes.values() for scene in own for name in scene.missing}
        self.done, self._events, self._stop = Written(), queue.Queue(MAX_EVENTS), threading.Event()
        self._left, self._busy = {recipe.name: recipe for recipe in todo}, {}

    def _scenes(self, recipe):
        out = []
        for frames in recipe.scenes():
            own = ShardRecipe(recipe.name, recipe.facts, frames)
            scene = _Scene(
                own, frames[0].key.rpartition("_")[0], own.digest(), {n for f in frames for n in files_of(f)}
            )
            scene.parked = self.parking.scene_path(scene.key, scene.digest).exists()
            if scene.parked:
                self.parking.remove_files(scene.files)  # of a run that was killed before it did
            else:
                scene.missing = {name for name in scene.files if not self.parking.has(name)}
                scene.sources = {self.parking.taken[n][2] for n in scene.files if n in self.parking.taken}
            out.append(scene)
        return out

    def run(self):
        """The Written of all shards. Raises SourceError: a faulty archive, or files that none of them holds."""
        pool = Workers(self.workers) if self.workers > 1 else None
        try:
            for scene in (scene for own in self.scenes.values() for scene in own):
                if not scene.parked and not scene.missing:
                    self._pack(pool, scene)
            for name in list(self._left):
                self._assemble_if_whole(pool, name)
            faults = self._read_all(pool)
            self._settle(pool, wait=True)
            if faults:
                raise faults[0]
            self._tell_missing(pool)
            return self.done
        finally:
            self._stop.set()
            if pool:
                pool.shutdown(cancel_futures=True)

    def _read_all(self, pool):
        """Read the archives that are to be read: what was wrong with some, which does not keep others from being read."""
        unread = [archive for archive in self.archives if archive[2] not in self.parking.read_before]
        if not self.pending:
            return []
        with ThreadPoolExecutor(max(1, min(self.workers, len(unread)))) as readers:
            running = [readers.submit(self._read, *archive) for archive in unread]
            try:
                while not all(future.done() for future in running) or not self._events.empty():
                    try:
                        self._enter(pool, *self._events.get(timeout=0.2))
                    except queue.Empty:
                        pass
                    self._settle(pool)
            except BaseException:
                self._stop.set()
                while not all(future.done() for future in running):  # a reader may wait for room
                    self._drain()
                raise
        return [error for future in running if (error := future.exception()) is not None]

    def _drain(self):
        try:
            self._events.get(timeout=0.1)
        except queue.Empty:
            pass

    def _read(self, store, name, identity):
        """Of one archive, in a thread: put what is wanted on the disk."""
        try:
            with told(store, name):
                for member in members(store, name):
                    if self._stop.is_set() or not self.pending:
                        return
                    self._take(member, name)
            if not self._stop.is_set():
                self._events.put((None, 0, 0, identity))
        except SourceError as error:
            self.say(f"note: {error}; the other archives are read on")
            raise

    def _take(self, member, archive):
        """Put a member that is wanted on the disk; of one that was there before, see that it is the same."""
        own = self._wanted_as(member.name)
        if own in self.pending:
            self._events.put((own, *self.parking.put(own, member), archive))
        elif own in self.parking.taken:
            self.parking.check_same(own, member)

    def _wanted_as(self, name):
        """The data set's name of a wanted member, which may lie in further folders; None of what nobody wants."""
        for _ in range(MAX_FOLDERS + 1):
            if name in self.scene_of:
                return name
            _, slash, name = name.partition("/")
            if not slash:
                return None
        return None

    def _enter(self, pool, name, crc, size, archive):
        """A file has come, or an archive was read to its end."""
        if name is None:
            return self.parking.note_read(archive)
        before = self.parking.taken.get(name)
        if before is not None and before[:2] != (crc, size):
            raise SourceError(
                f"{archive}: {name} in it has other bytes than in {before[2]}; give one of the two archives"
            )
        if name not in self.pending:
            return None  # of two archives that were read at once
        self.parking.note(name, crc, size, archive)
        self.pending.discard(name)
        scene = self.scene_of[name]
        scene.sources.add(archive)
        scene.missing.discard(name)
        if not scene.missing:
            self._pack(pool, scene)
        return None

    def _pack(self, pool, scene):
        path = self.parking.scene_path(scene.key, scene.digest)
        arguments = scene.recipe, str(self.parking.files), path, self.writing, self.skip
        self._begin(pool, ("scene", scene), _packed, arguments)

    def _begin(self, pool, what, work, arguments):
        future = pool.submit(work, *arguments) if pool else _here(work, arguments)
        self._busy[future] = what
        self._settle(pool)

    def _settle(self, pool, wait=False):
        """Take note of what processes have finished; with `wait` until nothing is under way."""
        while any(future.done() for future in self._busy) or (wait and self._busy):
            future = next((f for f in self._busy if f.done()), None) or next(iter(self._busy))
            kind, what = self._busy.pop(future)
            result = future.result()
            if kind == "scene":
                what.parked = True
                self.parking.remove_files(what.files)
                self._assemble_if_whole(pool, what.recipe.name)
            else:
                self._finished(what, result)

    def _assemble_if_whole(self, pool, name):
        if name in self._left and all(scene.parked for scene in self.scenes[name]):
            paths = [self.parking.scene_path(scene.key, scene.digest) for scene in self.scenes[name]]
            self._begin(pool, ("shard", name), _assembled, (self._left.pop(name), paths, self.store))

    def _finished(self, name, written):
        self.done.add(written.keyframes, {**written.read, **written.found}, written.written)
        self.done.skipped += written.skipped
        for scene in self.scenes[name]:
            self.parking.scene_path(scene.key, scene.digest).unlink(missing_ok=True)
        self.on_progress(self.done)

    def _tell_missing(self, pool):
        """What none of the archives held: an error, or left out with --on-error skip."""
        lacking = [scene for own in self.scenes.values() for scene in own if scene.missing and not scene.parked]
        if not lacking:
            return
        if self.skip["on_error"] == "stop":
            first = lacking[0]
            frame, name = next((f, n) for f in first.recipe.keyframes for n in files_of(f) if n in first.missing)
            count = sum(len(scene.missing) for scene in lacking)
            raise sample_error(
                f"{name} (sample {frame.key}) is in none of the archives, nor are {count - 1} more files of {len(lacking)} "
                f"scenes; {holder(name, first.sources)}"
            )
        for scene in lacking:
            self._pack(pool, scene)
        self._settle(pool, wait=True)


def _here(work, arguments):
    """A Future of work that is done now."""
    future = Future()
    future.set_result(work(*arguments))
    return future


def _packed(recipe, files, path, writing, skip):
    skipped = []
    records = list(records_of(recipe, files, skipped, **writing, **skip))
    skipped = [{**entry, "why": entry["why"].replace(f"{files}/", "")} for entry in skipped]
    write_scene(path, records, skipped)


def _assembled(recipe, paths, store):
    done = Written(skipped=list(recipe.skipped))
    frames = {frame.key: frame for frame in recipe.keyframes}

    def records():
        for path in paths:
            skipped, own = read_scene(path, frames)
            for frame, members_, read in own:
                yield frame, members_, Counter(read)
            done.skipped.extend(skipped)

    return assemble(recipe, records(), done, store)
