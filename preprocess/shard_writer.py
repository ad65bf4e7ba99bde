"""A recipe -> a tar and its index, written so that a half-finished shard can never be taken for a whole one."""

import hashlib
import io
import os
import tarfile
import zlib
from pathlib import Path

from common.shard_index import dump_index, index_of, index_path, write_atomically
from preprocess.keyframe import build_record


class _HashingFile(io.RawIOBase):
    """Writes through to a file and keeps the SHA-256, so that the tar is not read again."""

    def __init__(self, file):
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def writable(self):
        return True

    def write(self, data):
        self.file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self):
        return self.size


def write_shard(recipe, dataroot, out, image_hw=None, jpeg_quality=90, on_keyframe=None):
    """Write one shard: tar to a temporary name, flush, rename; then the index, which is the commit mark.

    Args:
        recipe: ShardRecipe. dataroot: nuScenes folder. out: folder of the shards.
        on_keyframe: called with (bytes in by kind, bytes out by kind) after each keyframe.
    Returns:
        ShardIndex.
    Raises:
        SourceError: bad input; nothing of the shard stays behind. OSError: the disk.
    """
    tar = Path(out) / f"{recipe.name}.tar"
    index_path(tar).unlink(missing_ok=True)
    temporary = tar.with_name(f".{tar.name}.{os.getpid()}.tmp")
    facts = recipe.facts
    rows, tokens, scenes = {}, [], []
    try:
        with open(temporary, "wb", buffering=1 << 20) as file:
            stream = _HashingFile(file)
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for frame in recipe.keyframes:
                    members, read = build_record(dataroot, frame, facts, image_hw, jpeg_quality)
                    rows[frame.key] = _add(archive, frame.key, members)
                    tokens.append(frame.facts["token"])
                    name = frame.facts["scene"]["name"]
                    if not scenes or scenes[-1][0] != name:
                        scenes.append([name, len(tokens) - 1, 0])
                    scenes[-1][2] += 1
                    if on_keyframe:
                        on_keyframe(read, _bytes_by_kind(members))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, tar)
    finally:
        temporary.unlink(missing_ok=True)
    index = index_of(tar, rows, tokens, scenes, stream.size, stream.sha256.hexdigest(), facts)
    write_atomically(index_path(tar), dump_index(index))
    return index


def _add(archive, key, members):
    """Append one record; the (offset, size, crc32) of each member."""
    rows = {}
    for name, data in members.items():
        # A fixed header makes the bytes depend on nothing but the record.
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        rows[name] = (archive.offset + tarfile.BLOCKSIZE, len(data), zlib.crc32(data))
        archive.addfile(info, io.BytesIO(data))
    return rows


def _bytes_by_kind(members):
    kinds = {"images": 0, "radar": 0, "lidar": 0, "rest": 0}
    for name, data in members.items():
        kind = "images" if name.endswith(".jpg") else name.partition(".")[0]
        kinds[kind if kind in kinds else "rest"] += len(data)
    return kinds
