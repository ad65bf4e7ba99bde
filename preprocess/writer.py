"""A writer of shards for one's own data: scenes are opened, keyframes are added, and what readers rely on is checked.

    with ShardWriter("shards/own", rig, split="train") as writer:
        for drive in drives:
            if drive.name in writer:  # a run before has finished it
                continue
            with writer.scene(drive.name, location="yard") as scene:
                for frame in drive:
                    scene.add(frame.stamp_us, frame.global_T_ego, images={…}, lidar=[{…}], boxes=[…])

preprocess/own_data.md is the page about it, with a whole program. The same scenes in the same order give the same bytes; a
program that was killed goes on at the first scene whose shard was not finished.
"""

from contextlib import ExitStack
from dataclasses import replace

from common.keys import scene_key
from common.manifest import Manifest, ManifestShard, dump_manifest, manifest_name
from common.record import SCHEMA_VERSION
from common.rig import Rig
from common.shard_index import dump_index, parse_index
from common.stores import open_store
from preprocess.datasets import OWN
from preprocess.errors import SourceError
from preprocess.given import Box, CameraImage, PointCloud
from preprocess.indexed_tar import IndexedTar
from preprocess.rectify import can_keep
from preprocess.splits import SPLITS
from preprocess.written_scene import Scene

__all__ = ["Box", "CameraImage", "PointCloud", "Scene", "ShardWriter"]

ARRAY_QUALITY = 95  # JPEG quality of images that are encoded here
SHARD_MB = 500.0  # a shard is closed by the first scene that makes it so large


class ShardWriter:
    """Writes one split of a set; a context, which writes the manifest when it ends well.

    Args:
        out: folder, or address of a store (s3://…). rig: common.rig.Rig. Images of cameras with a distortion are rectified,
            and are a pinhole's in the shards, unless keep_distortion, which needs networks that project by lenses.
        split: train, val or test. version: of the data, a text.
        categories: one's own name -> name of the shards, such as {"sedan": "vehicle.car"}; the rig's categories are then
            what it maps to. sweeps: most lidar and radar sweeps of a keyframe, its own included. min_distance_m: points with
            |x| and |y| under it in their sensor's frame are the car's own, and left out. jpeg_quality: of images that are
            encoded here. shard_mb: size at which a shard is closed. overwrite: begin anew. store_options: of the store.
    Raises:
        SourceError: finished shards that are there were made with another rig or other arguments.
    """

    def __init__(
        self,
        out,
        rig,
        split="train",
        *,
        version="own",
        categories=None,
        sweeps=1,
        min_distance_m=0.0,
        jpeg_quality=ARRAY_QUALITY,
        shard_mb=SHARD_MB,
        keep_distortion=False,
        overwrite=False,
        store_options=None,
    ):
        if not isinstance(rig, Rig):
            raise SourceError(f"rig is a {type(rig).__name__}; it is a common.rig.Rig")
        if split not in SPLITS or sweeps < 1 or not 1 <= jpeg_quality <= 100 or not min_distance_m >= 0:
            raise SourceError(
                f"split {split!r} is one of {', '.join(SPLITS)}, sweeps {sweeps} at least 1, jpeg_quality {jpeg_quality} 1 to "
                f"100, min_distance_m {min_distance_m} not negative"
            )
        if categories:
            rig = replace(rig, categories=tuple(dict.fromkeys(categories.values())))
        if keep_distortion and not all(can_keep(camera.distortion) for camera in rig.cameras):
            raise SourceError("keep_distortion: tilted lenses (14 coefficients) are not projected by; leave it out")
        self.lenses, self.keeps_distortion = rig.cameras, keep_distortion
        if not keep_distortion:
            rig = replace(rig, cameras=tuple(replace(camera, distortion=None) for camera in rig.cameras))
        self.rig, self.split, self.table, self.shard_bytes = rig, split, categories, shard_mb * 1e6
        sensors = ["camera"] + ["lidar"] * bool(rig.lidars) + ["radar"] * bool(rig.radars)
        written = {"image_size": None, "jpeg_quality": jpeg_quality, "adapter": OWN}
        self.options = {"sweeps": sweeps, "sensors": sensors, **written}
        own = {"version": version, "split": split, "min_distance_m": min_distance_m, "rig": rig.as_dict()}
        self.facts = {**own, **self.options}
        self.store, self._lock = open_store(out, store_options), None
        self._overwrite, self._scenes, self._shards, self._tar = overwrite, {}, [], None

    def __enter__(self):
        self._lock = self.store.locked()
        self._lock.__enter__()
        self._shards = [] if self._overwrite else self._finished()
        self._scenes = {scene_key(name): name for index in self._shards for name, _, _ in index.scenes}
        return self

    def __exit__(self, kind, *error):
        try:
            if kind is None:
                self._close_shard()
                self._write_manifest()
            elif self._tar is not None:
                self._shard.__exit__(kind, *error)  # the unfinished shard goes
        finally:
            self._lock.__exit__(kind, *error)

    def __contains__(self, scene):
        """Whether a scene of this name is in a finished shard, or was added."""
        return self._scenes.get(scene_key(scene)) == scene

    def scene(self, name, *, token=None, description="", location="", vehicle="", date_captured=""):
        """A context to which keyframes are added, in time order: see Scene.add. Raises SourceError for a name that is taken."""
        if scene_key(name) in self._scenes:
            raise SourceError(f"scene {name!r}: is there already; ask `name in writer` first, or give overwrite=True")
        log = {
            "token": token or name,
            "logfile": name,
            "vehicle": vehicle,
            "date_captured": date_captured,
            "location": location,
        }
        return Scene(self, {"name": name, "token": token or name, "description": description}, log)

    def _finished(self):
        """Indexes of the shards that a run before has finished, checked to be of one set with what is to come."""
        out = []
        while self.store.exists(f"{self._name(len(out))}.idx.json"):
            name = self._name(len(out))
            index = parse_index(self.store.read(f"{name}.idx.json"), self.store.path(f"{name}.tar"))
            differing = [key for key in self.facts if index.facts.get(key) != self.facts[key]]
            if index.schema != SCHEMA_VERSION or differing or not self.store.exists(f"{name}.tar"):
                what = ", ".join(differing) or "schema, or its tar is gone"
                raise SourceError(f"{index.tar}: differs in {what}; give overwrite=True, or another folder")
            out.append(index)
        return out

    def _name(self, number):
        return f"{self.split}-{number:03d}"

    def add_scene(self, name, records):
        """Append a whole scene's (key, token, members), when its Scene ends."""
        if self._tar is None:
            shard = self._name(len(self._shards))
            self.store.remove(f"{shard}.idx.json")
            self._shard = ExitStack()
            self._tar = self._shard.enter_context(
                IndexedTar(self._shard.enter_context(self.store.new_file(f"{shard}.tar")))
            )
        for key, token, members in records:
            self._tar.add(key, token, name, members)
        self._scenes[scene_key(name)] = name
        if self._tar.size >= self.shard_bytes:
            self._close_shard()

    def _close_shard(self):
        if self._tar is None:
            return
        name = self._name(len(self._shards))
        self._shard.close()
        index = self._tar.index(self.store.path(f"{name}.tar"), self.facts)
        self.store.write(f"{name}.idx.json", dump_index(index))
        self._shards.append(index)
        self._tar = None

    def _write_manifest(self):
        if not self._shards:
            raise SourceError("no scene was added, so that there is nothing to write a manifest of")
        shards = tuple(
            ManifestShard(f"{self._name(n)}.tar", len(i.keys), [s for s, _, _ in i.scenes], i.tar_bytes, i.tar_sha256)
            for n, i in enumerate(self._shards)
        )
        manifest = Manifest(self.split, self.facts["version"], shards, self.options, self.rig.licence, [], rig=self.rig)
        self.store.write(manifest_name(self.split), dump_manifest(manifest))
