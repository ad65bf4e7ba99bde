"""What `preprocess.run --archives` does beside planning: tables, dry run, shards; and `--plan`, a list of files to download."""

from dataclasses import dataclass
from pathlib import Path

import click

from common.files import write_atomically
from common.progress import counted, say
from common.stores import parse_options
from preprocess.archives.needed import about_bytes, advice, files_of, kind_of, part_of
from preprocess.archives.packing import Packing, archives_of, plan_digest
from preprocess.archives.parking import Parking
from preprocess.archives.tables import fetch_tables
from preprocess.datasets import IN_ITS_LAYOUT
from preprocess.errors import SourceError

PACKED = 0.45  # what packing leaves of lidar and radar


@dataclass
class FromArchives:
    """archives: what archives_of gives. work: folder of what is under way. store: of the shards."""

    archives: list
    work: Path
    store: object
    parking: Parking | None = None

    @classmethod
    def of(cls, values, store, scheduler):
        """Of the command's options. Raises SourceError for what does not go together."""
        if values["dataset"] not in IN_ITS_LAYOUT:
            raise SourceError(
                f"--archives reads nuScenes' archives and those of its layout; unpack those of {values['dataset']}"
            )
        if scheduler:
            raise SourceError("--archives works on one machine, whose disk holds what has come; leave out --scheduler")
        if store.remote and values["work"] is None:
            raise SourceError("--archives with shards at an address needs --work, a folder for what is under way")
        patterns = [part.strip() for text in values["archives"] for part in text.split(",") if part.strip()]
        archives = archives_of(patterns, parse_options(values["store_options"]))
        return cls(archives, values["work"] or Path(store.path(".archives")), store)

    def tables(self, dataroot, version):
        """The folder that holds the tables: dataroot, where it does, or what comes out of the archives."""
        if not version:
            raise SourceError("--archives needs --version, such as v1.0-trainval")
        if (Path(dataroot) / version).is_dir():
            return dataroot
        folder = self.work / "tables"
        fetch_tables(self.archives, version, folder, say)
        return folder

    def dry_run(self, recipes, todo, workers):
        """Say what would be made, and the most that the disk would hold at once: from the tables, by mean sizes of files."""
        names = {name for recipe in todo for frame in recipe.keyframes for name in files_of(frame)}
        wanted, shards = about_bytes(names), _packed_bytes(names)
        # What is under way is of the parts that are read at the time, whose archives come one after another.
        parts = len({part_of(name) for _, name, _ in self.archives})
        at_once = min(parts, 1 + -(-(workers - 1) * parts // len(self.archives)))
        being_read = wanted * at_once / parts
        one = shards / max(len(todo), 1)
        frames = counted(sum(len(recipe.keyframes) for recipe in todo), "keyframe")
        click.echo(f"{counted(len(todo), 'shard')} of {len(recipes)}, {frames}, about {shards / 1e9:.2f} GB")
        together = (
            f"{being_read / 1e9:.2f} GB of {wanted / 1e9:.2f} GB wanted, in {at_once} of {counted(parts, 'part')}"
        )
        click.echo(
            f"peak of the disk about {(being_read + shards + one) / 1e9:.2f} GB: {together} at once, the shards, and one shard "
            "more; no shard was written"
        )

    def make(self, recipes, todo, writing, skip, workers, on_progress):
        """The Written of the shards that were to be made."""
        done = {recipe.name: recipe.facts.get("recipe_sha256") for recipe in todo}
        self.parking = Parking(self.work, plan_digest([done.get(r.name) or r.digest() for r in recipes]))
        packing = Packing(todo, self.archives, self.parking, self.store, writing, skip, workers, say, on_progress)
        try:
            return packing.run()
        finally:
            self.parking.close()

    def clear(self):
        """Remove what was under way, when the shards and their manifests are written."""
        self.parking.clear()


def _packed_bytes(names):
    """About how large shards of these files are."""
    images = about_bytes(name for name in names if kind_of(name) == "CAM")
    return images + PACKED * (about_bytes(names) - images)


def say_plan(recipes, path):
    """Write the names of the files that the recipes read, one a line, and say how large they are and where they come from."""
    names = sorted({name for recipe in recipes for frame in recipe.keyframes for name in files_of(frame)})
    write_atomically(path, "".join(f"{name}\n" for name in names).encode())
    scenes = {frame.facts["scene"]["name"] for recipe in recipes for frame in recipe.keyframes}
    size = f"about {about_bytes(names) / 1e9:.2f} GB"
    click.echo(f"{path}: {counted(len(names), 'file')} of {counted(len(scenes), 'scene')}, {size}")
    click.echo(
        f"of nuScenes' archives {advice(names)} suffice, of the parts that hold these scenes; --archives keeps no more"
    )
    click.echo(f"of an unpacked copy: rsync --files-from={path}; of an archive: tar -T {path} -xzf")
