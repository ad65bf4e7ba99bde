"""What has come out of archives and is in no shard yet, on the disk, so that a killed run finds it again.

files/…         source files of scenes that are not whole yet, under their names in the data set
taken.txt       a line per file that was ever taken: checksum, size, archive, name
scenes/…        whole scenes, packed: the records of their keyframes, ready to be put into a shard
read.txt        archives that were read to their end
tables/         tables of the data set
"""

import json
import os
import shutil
import zlib
from pathlib import Path

from common.files import new_file
from common.record import encode_json
from preprocess.errors import SourceError

MAX_SOURCE_BYTES = 256 << 20  # of a sensor file


class Parking:
    """A folder. plan: digest of what is to be made; archives that were read for another plan are read again."""

    def __init__(self, folder, plan):
        self.folder, self.plan = Path(folder), plan
        self.files = self.folder / "files"
        for sub in (self.files, self.folder / "scenes"):
            sub.mkdir(parents=True, exist_ok=True)
        self.taken = {
            name: (int(crc, 16), int(size), archive) for crc, size, archive, name in self._lines("taken.txt", 4)
        }
        self.read_before = {archive for plan, archive in self._lines("read.txt", 2) if plan == self.plan}
        self._journal = open(self.folder / "taken.txt", "a")

    def _lines(self, name, columns):
        """Whole lines of a journal; of a killed run's last one there may be half."""
        path = self.folder / name
        if not path.exists():
            return
        text = path.read_text(errors="replace")
        if text and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            path.write_text(text)
        yield from (parts for line in text.splitlines() if len(parts := line.split("\t", columns - 1)) == columns)

    def has(self, name):
        """Whether a source file is here, whole."""
        try:
            size = os.path.getsize(self.files / name)
        except OSError:
            return False
        return name in self.taken and self.taken[name][1] == size

    def put(self, name, member):
        """Write a source file, from any thread: (its checksum, size). Raises SourceError where it is too large."""
        data = member.read(MAX_SOURCE_BYTES)
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
        return zlib.crc32(data), len(data)

    def note(self, name, crc, size, archive):
        """Enter a file that was put."""
        self.taken[name] = crc, size, archive
        self._journal.write(f"{crc:08x}\t{size}\t{archive}\t{name}\n")
        self._journal.flush()

    def check_same(self, name, member):
        """Raise SourceError unless a member is, byte for byte, the file of this name that was taken before."""
        crc, size, before = self.taken[name]
        found = 0
        for chunk in member.chunks():
            found = zlib.crc32(chunk, found)
        if (found, member.size) != (crc, size):
            raise SourceError(f"{name} in it has other bytes than in {before}; give one of the two archives")

    def note_read(self, archive):
        """Enter an archive that was read to its end."""
        with open(self.folder / "read.txt", "a") as file:
            file.write(f"{self.plan}\t{archive}\n")
            file.flush()
            os.fsync(file.fileno())

    def scene_path(self, key, digest):
        """Where a packed scene is, or will be."""
        return self.folder / "scenes" / f"{key}.{digest[:16]}"

    def remove_files(self, names):
        """Remove source files whose scene was packed."""
        for name in names:
            (self.files / name).unlink(missing_ok=True)

    def close(self):
        self._journal.close()

    def clear(self):
        """Remove all of it, when every shard is written."""
        self.close()
        shutil.rmtree(self.folder)


def write_scene(path, records, skipped):
    """Write a packed scene: a line of JSON that says what follows, then the members of its records one after another."""
    rows = [
        [frame.key, [[name, len(data)] for name, data in members.items()], dict(read)]
        for frame, members, read in records
    ]
    with new_file(path) as file:
        file.write(encode_json({"records": rows, "skipped": skipped}))
        for _, members, _ in records:
            for data in members.values():
                file.write(data)


def read_scene(path, frames):
    """(what --on-error skip left out, iterator over (frame, members, read)) of a packed scene. frames: recipes by key."""
    with open(path, "rb") as file:
        head = json.loads(file.readline())
        start = file.tell()

    def records():
        with open(path, "rb") as file:
            file.seek(start)
            for key, sizes, read in head["records"]:
                yield frames[key], {name: file.read(size) for name, size in sizes}, read

    return head["skipped"], records()
