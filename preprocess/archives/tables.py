"""The tables of nuScenes out of its archives: v1.0-*_meta.tgz, or whichever holds them."""

from common.files import new_file
from preprocess.archives.reading import members, told
from preprocess.errors import SourceError

MAX_TABLE_BYTES = 16 << 30
NEEDED = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "log")


def fetch_tables(archives, version, folder, say=lambda text: None):
    """Put the JSON tables of a version under `folder`/`version`, where they are not there.

    archives: what archives_of gives; those with "meta" in their names are asked first, the others only where they lack it.
    Raises SourceError where no archive has them.
    """
    there = folder / version
    if (there / ".whole").exists():
        return
    there.mkdir(parents=True, exist_ok=True)
    for store, name, _ in sorted(archives, key=lambda archive: "meta" not in archive[1].lower()):
        if "meta" not in name.lower():
            say(f"looking for tables in {store.path(name)}: no archive of them, v1.0-*_meta.tgz, has all")
        with told(store, name):
            for member in members(store, name):
                parts = member.name.split("/")
                if len(parts) > 1 and parts[-2] == version and parts[-1].endswith((".json", ".json.gz")):
                    _put(member, there / parts[-1])
        if all((there / f"{table}.json").exists() or (there / f"{table}.json.gz").exists() for table in NEEDED):
            (there / ".whole").touch()
            return
    raise SourceError(
        f"none of the archives holds the tables of {version}; give its meta archive, or --dataroot with its tables"
    )


def _put(member, path):
    if member.size > MAX_TABLE_BYTES:
        raise SourceError(f"{member.name}: a table of {member.size} bytes, more than {MAX_TABLE_BYTES}")
    with new_file(path) as file:
        for chunk in member.chunks():
            file.write(chunk)
