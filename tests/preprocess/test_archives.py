"""Shards from archives: the same bytes as from a folder, whatever the archives' kinds and order, and what befalls a run."""

import io
import json
import shutil
import signal
import tarfile
import time
import zipfile

import pytest

from common.stores import open_store
from preprocess.archives.needed import files_of, holder
from preprocess.archives.packing import archives_of
from preprocess.archives.reading import members, told
from preprocess.errors import SourceError
from preprocess.plan import Options, Planner
from tests.conftest import split_file
from tests.faulty_server import FaultyServer
from tests.preprocessing import contents, run_here, says_no
from tests.processes.client import Process

VERSION = "v1.0-mini"


def pack(path, world, names, prefix=""):
    """An archive of these files of the world; its kind by its name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(world / name, prefix + name)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name in names:
            archive.add(world / name, prefix + name)


def files(world, test=lambda name: True):
    return [n for p in sorted(world.rglob("*")) if p.is_file() and test(n := str(p.relative_to(world)))]


@pytest.fixture(scope="session")
def archives(small_world, made_once):
    """Folder of archives of the small world: tables, keyframes, sweeps of lidar and radar, of two parts, in three formats."""

    def make(out):
        names = files(small_world)
        meta = [n for n in names if n.startswith(f"{VERSION}/")]
        keyframes = [n for n in names if n.startswith("samples/")]
        sweeps = {
            kind: [n for n in names if n.startswith("sweeps/") and kind in n] for kind in ("LIDAR", "RADAR", "CAM")
        }
        pack(out / "v1.0-mini_meta.tgz", small_world, meta)
        pack(out / "v1.0-mini01_keyframes.tar", small_world, keyframes[::2], "./")
        pack(out / "v1.0-mini02_keyframes.zip", small_world, keyframes[1::2], "nuscenes/")
        pack(out / "v1.0-mini01_blobs_lidar.tgz", small_world, [*sweeps["LIDAR"], *keyframes[:5]])  # some a second time
        pack(out / "v1.0-mini01_blobs_radar.tgz", small_world, [*sweeps["RADAR"], *sweeps["CAM"]])

    return made_once("archives", make)


@pytest.fixture(scope="session")
def splits(small_world, made_once):
    return "--split-file", made_once("archive-splits", lambda out: split_file(out, small_world)) / "splits.json"


@pytest.fixture(scope="session")
def from_folder(small_world, splits, made_once):
    def make(out):
        assert run_here(small_world, out, *splits, "--train-shards", 1).exit_code == 0

    return made_once("from-folder", make)


def made(out, given, splits, *more):
    given = given if isinstance(given, str) else ",".join(map(str, given))
    return run_here("/nowhere", out, *splits, "--train-shards", 1, "--archives", given, *more)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_bytes_as_from_a_folder_and_nothing_stays_behind(archives, from_folder, splits, tmp_path, workers):
    result = made(tmp_path, f"{archives}/v1.0-mini*", splits, *(["--workers", 2] if workers == 2 else []))
    assert result.exit_code == 0, result.output
    assert contents(tmp_path) == contents(from_folder)


def test_archives_of_a_bucket_and_of_a_web_server(archives, from_folder, splits, tmp_path, s3):
    store = open_store(f"s3://{s3.bucket}/archives")
    for path in archives.iterdir():
        store.write(path.name, path.read_bytes())
    addresses = [f"s3://{s3.bucket}/archives/{path.name}" for path in sorted(archives.glob("*.tgz"))]
    server = FaultyServer(archives)
    try:
        server.query, server.faults = "Signature=secret", []
        signed = [f"{server.address}/{path.name}?Signature=secret" for path in sorted(archives.glob("v*0[12]_key*"))]
        server.faults = ["half", "reset"]  # dropped connections go on at their bytes
        result = made(tmp_path / "out", [*addresses, *signed], splits)
        assert result.exit_code == 0, result.output
        assert contents(tmp_path / "out") == contents(from_folder) and not server.faults
        server.query = "Signature=later"  # the address has expired
        said = says_no("/nowhere", tmp_path / "x", *splits, "--archives", ",".join([*addresses, *signed]))
        assert "v1.0-mini01_keyframes.tar" in said and "give the whole of it again" in said and "secret" not in said
    finally:
        server.close()


def test_what_is_missing_is_named_with_the_archive_that_holds_it(archives, splits, tmp_path, from_folder):
    given = sorted(path for path in archives.iterdir() if "radar" not in path.name)
    said = says_no("/nowhere", tmp_path, *splits, "--train-shards", 1, "--archives", ",".join(map(str, given)))
    assert "sweeps/RADAR" in said and "is in none of the archives" in said
    assert "_blobs_radar.tgz or v1.0-mini0" in said and "_blobs.tgz" in said
    taken = {path.relative_to(tmp_path) for path in (tmp_path / ".archives").rglob("*.jpg")}
    assert taken  # parked, since their scenes are not whole
    result = made(tmp_path, [archives / "v1.0-mini01_blobs_radar.tgz"], splits)  # the rest, later and alone
    assert result.exit_code == 0, result.output
    assert contents(tmp_path) == contents(from_folder)


def test_skipping_what_is_missing_equals_a_folder_that_lacks_it(archives, small_world, splits, tmp_path):
    given = sorted(path for path in archives.iterdir() if "mini02" not in path.name)
    copy = shutil.copytree(small_world, tmp_path / "copy")
    for name in [n for n in files(small_world) if n.startswith("samples/")][1::2]:
        (copy / name).unlink()
    for name in [n for n in files(small_world) if n.startswith("samples/")][:5]:
        shutil.copyfile(small_world / name, copy / name)  # these lie in another archive too
    (tmp_path / "only.txt").write_text("scene-0061\n")
    wanted = "--on-error", "skip", "--scenes", tmp_path / "only.txt", "--sensors", "camera"
    run_here(copy, tmp_path / "a", *splits, *wanted)
    made(tmp_path / "b", given, splits, *wanted)
    parts = ("train-000.tar", "train-000.idx.json")
    found = [{name: data for name, data in contents(tmp_path / out).items() if name in parts} for out in "ab"]
    assert found[0] == found[1] and len(found[0]) == 2
    [skipped] = json.loads((tmp_path / "b" / "train-000.skipped.json").read_text())["skipped"]
    assert skipped["why"].startswith("samples/CAM_FRONT_LEFT/") and "sensor file is missing" in skipped["why"]


def test_a_killed_run_keeps_what_it_packed(archives, small_world, from_folder, splits, tmp_path):
    """Killed while an archive is read: scenes that were packed stay, and the run that goes on ends with the same bytes."""
    names = [n for n in files(small_world) if n.startswith(("samples/", "sweeps/"))]
    planner = Planner(small_world, VERSION, Options(2))
    scene = next(s for s in planner.scenes if s["name"] == "scene-0061")
    first = {name for frame in planner.scene_keyframes(scene) for name in files_of(frame)}
    names.sort(key=lambda name: name not in first)
    pack(tmp_path / "slow.tar", small_world, names)
    whole = (tmp_path / "slow.tar").read_bytes()
    pipe, out = tmp_path / "pipe.tar", tmp_path / "out"
    pipe.write_bytes(whole[: int(len(whole) * 0.6) // 512 * 512])  # cut: what a run sees that is killed there
    given = f"{archives}/v1.0-mini_meta.tgz,{pipe}"
    said = says_no("/nowhere", out, *splits, "--train-shards", 1, "--archives", given)
    assert "pipe.tar: cut short at byte" in said and "what was packed stays" in said
    packed = list((out / ".archives" / "scenes").iterdir())
    assert any(path.name.startswith("scene-0061") for path in packed)
    stamps = {path: path.stat().st_mtime_ns for path in packed}
    pipe.write_bytes(whole)
    arguments = "--version", VERSION, "--sweeps", 2, "--dataroot", "/nowhere", "--out", out, *splits
    arguments = *map(str, arguments), "--train-shards", "1", "--workers", "1", "--archives", given
    process = Process("-m", "preprocess.run", *arguments)
    deadline = time.monotonic() + 60
    while process.poll() is None and not (out / "val-000.tar").exists() and time.monotonic() < deadline:
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items() if path.exists())
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert made(out, given, splits).exit_code == 0
    assert contents(out) == contents(from_folder)


def test_a_dry_run_says_the_peak_and_a_plan_what_to_download(archives, splits, tmp_path):
    result = made(tmp_path / "out", f"{archives}/*", splits, "--dry-run")
    assert result.exit_code == 0 and "peak of the disk about 0.0" in result.stdout
    assert "in 1 of 3 parts at once" in result.stdout and "2 shards of 2, 12 keyframes" in result.stdout
    plan = tmp_path / "plan.txt"
    wish = "--scenes", 2, "--sensors", "camera", "--plan", plan
    result = made(tmp_path / "out", f"{archives}/*", splits, *wish)
    names = plan.read_text().split()
    assert len(names) == 36 and all(name.startswith("samples/CAM") for name in names)
    assert "36 files of 2 scenes, about 0.01 GB" in result.stdout and "v1.0-*_keyframes.tgz suffice" in result.stdout
    arguments = *splits, "--archives", f"{archives}/*", "--scenes", 9
    assert "--scenes 9: the splits have 4 scenes" in says_no("/nowhere", tmp_path / "o", *arguments)


def read_all(store, name):
    with told(store, name):
        return list(members(store, name))


def entry(name, kind=tarfile.REGTYPE, data=b"x", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, data


@pytest.mark.parametrize(
    "hostile, why",
    [
        (entry("/etc/passwd"), "leads out of the folder"),
        (entry("samples/../../x"), "leads out of the folder"),
        (entry("..\\x"), "leads out of the folder"),
        (entry("samples/a.jpg", tarfile.SYMTYPE, link="/etc/passwd"), "is a link or no plain file"),
        (entry("samples/a.jpg", tarfile.LNKTYPE, link="b"), "is a link or no plain file"),
        (entry("samples/a", tarfile.CHRTYPE), "is a link or no plain file"),
    ],
)
@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_hostile_members_are_refused(tmp_path, hostile, why, kind):
    with tarfile.open(tmp_path / "a.tar", kind) as archive:
        archive.addfile(*[entry("ok")[0], io.BytesIO(b"x")])
        archive.addfile(hostile[0], io.BytesIO(hostile[1]))
    with pytest.raises(SourceError, match=f"a.tar: .*{why}"):
        read_all(open_store(tmp_path), "a.tar")


def test_hostile_zips_and_damage_of_every_kind_is_named_with_its_place(tmp_path):
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        archive.writestr("../x", b"x")
    link = zipfile.ZipInfo("samples/a")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, b"/etc/passwd")
    for kind, name in (("w", "a.tar"), ("w:gz", "a.tgz")):
        with tarfile.open(tmp_path / name, kind) as archive:
            for n in range(4):
                info = tarfile.TarInfo(f"{'long/' * 60}{n}")  # a header of its own for its name
                info.size = 3000
                archive.addfile(info, io.BytesIO(bytes(range(250)) * 12))
    store = open_store(tmp_path)
    for name in ("a.tar", "a.tgz"):
        found = [(member.name, member.read(3000)) for member in members(store, name)]
        assert [n for n, _ in found] == [f"{'long/' * 60}{n}" for n in range(4)]
        assert all(data == bytes(range(250)) * 12 for _, data in found)
        assert [member.size for member in members(store, name)] == [3000] * 4  # nobody takes them
        whole = (tmp_path / name).read_bytes()
        for cut in (100, len(whole) // 2, len(whole) - (4 if name == "a.tgz" else 10240)):
            (tmp_path / f"cut-{name}").write_bytes(whole[:cut])
            with pytest.raises(SourceError, match=f"cut-{name}: cut short at byte {cut}"):
                read_all(store, f"cut-{name}")
        broken = bytearray(whole)
        broken[len(whole) // 2 // 512 * 512 : len(whole) // 2 // 512 * 512 + 40] = b"\xff" * 40
        (tmp_path / f"bad-{name}").write_bytes(broken)
        if name == "a.tgz":
            with pytest.raises(SourceError, match="bad-a.tgz: (damaged|cut short) at about byte|bad-a.tgz: cut"):
                read_all(store, f"bad-{name}")
    for name, why in (("up.zip", "leads out"), ("link.zip", "is a link")):
        with pytest.raises(SourceError, match=f"{name}: .*{why}"):
            read_all(store, name)
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(SourceError, match="no.zip: damaged, or no zip"):
        read_all(store, "no.zip")


def test_other_bytes_of_one_name_are_refused(archives, small_world, splits, tmp_path):
    name = next(n for n in files(small_world) if n.startswith("samples/CAM_FRONT/"))
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    given = ",".join(
        map(str, [*sorted(archives.glob("*[!p]"))[:1], tmp_path / "other.tar", *sorted(archives.iterdir())])
    )
    said = says_no("/nowhere", tmp_path / "out", *splits, "--train-shards", 1, "--archives", given)
    assert "has other bytes than in" in said and name in said


def test_which_archive_holds_a_file():
    found = holder("sweeps/LIDAR_TOP/a.pcd.bin", {"v1.0-trainval03_keyframes.tgz"})
    assert "give v1.0-trainval03_blobs_lidar.tgz or v1.0-trainval03_blobs.tgz" in found
    assert "no file of its scene was in them" in holder("samples/CAM_BACK/b.jpg", set())


def test_patterns_that_meet_nothing(tmp_path):
    with pytest.raises(SourceError, match="no such archive"):
        archives_of([f"{tmp_path}/*.tgz"])
