"""Preprocessing: time of one core and bytes per keyframe."""

import subprocess
import sys
import time
from pathlib import Path

from common.record import decode_points
from preprocess.datasets.nuscenes import official_splits
from preprocess.images import check_image
from preprocess.keyframe import build_record
from preprocess.plan import Options, Planner
from tests.bench.measure import Row, paired_ms


def rows(dataroot, version, decode):
    """Rows of the keyframes of a nuScenes folder, at most 100 of them; decode() is the unit, run in turn with the rest."""
    planner = Planner(Path(dataroot), version, Options(sweeps=3))
    splits = official_splits(version)
    recipes = [r for split in splits for r in planner.shards(split, splits[split], 20)]
    frames = [(f, r.facts) for r in recipes for f in r.keyframes][:100]
    from_files, written, kept = 0, 0, 0
    for frame, facts in frames:
        members, read = build_record(dataroot, frame, facts)
        planes = {name: data for name, data in members.items() if "planes" in name}
        from_files += read["radar"] + read["lidar"]
        written += sum(map(len, planes.values()))
        kept += sum(decode_points(data, name).nbytes for name, data in planes.items())

    def passed_through():
        for frame, facts in frames:
            build_record(dataroot, frame, facts)

    few = frames[:20]
    images = [(Path(dataroot) / c.filename).read_bytes() for f, _ in few for c in f.cameras]

    def reencoded():
        for frame, facts in few:
            build_record(dataroot, frame, facts, (540, 960))

    def checked():
        for image in images:
            check_image(image, "")

    passed, passed_ratio = paired_ms(passed_through, decode, len(frames), 5)
    encoded, encoded_ratio = paired_ms(reencoded, decode, len(few), 3)
    check, check_ratio = paired_ms(checked, decode, len(few), 5)
    return [
        Row("preprocess: images passed through, all checked, CPU", passed, decodes=passed_ratio, goal="<= 1.4"),
        Row("preprocess: its decode of the images, CPU", check, decodes=check_ratio),
        Row("preprocess: images re-encoded to 540x960, CPU", encoded, decodes=encoded_ratio),
        Row("preprocess: keyframes/s of one core", 1e3 / passed, "1/s"),
        Row("preprocess: lidar and radar, MB in files", from_files / 1e6 / len(frames), "MB"),
        Row("preprocess: lidar and radar, MB written", written / 1e6 / len(frames), "MB"),
        Row("preprocess: lidar and radar, written / files", written / from_files, "", goal="about 0.40 (realframe)"),
        Row("preprocess: lidar and radar, written / bytes kept", written / kept, "", goal="<= 0.55 (realframe)"),
    ]


_MEASURED = """
import re, resource, runpy
try:
    runpy.run_module("preprocess.run", run_name="__main__")
except SystemExit as end:
    assert not end.code
own = re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # ru_maxrss would include who started it
print(int(own) / 1e3, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)
"""


def scaling(dataroot, version, out):
    """Wall seconds of preprocess.run with one worker over two, re-encoding, and their memory."""
    seconds = []
    for workers in (1, 2):
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-c", _MEASURED, "--version", version, "--dataroot", str(dataroot)]
            + ["--out", f"{out}/{workers}", "--sweeps", "3", "--workers", str(workers), "--image-size", "540x960"],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds.append(time.perf_counter() - start)
    parent, worker = map(float, result.stdout.split()[-2:])
    return [
        Row("preprocess.run: one worker over two, 540x960", seconds[0] / seconds[1], "x"),
        Row("preprocess.run: peak memory of the parent", parent, "MB"),
        Row("preprocess.run: peak memory of a worker", worker, "MB", goal="<= 1000"),
    ]
