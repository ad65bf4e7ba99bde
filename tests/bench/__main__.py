"""python -m tests.bench: the table of the README. Every time is also given in decodes (see decode_unit)."""

import os
import sys
import tempfile
from pathlib import Path

import click
import simplejpeg
import torch

from preprocess.nuscenes import CAMERAS
from tests.bench import (
    archives_bench,
    device_bench,
    export_bench,
    loader_bench,
    maps_bench,
    shards_bench,
    source_bench,
    step_bench,
    train_bench,
)
from tests.bench.measure import HEADER, Row, best_ms
from tests.bench.step_bench import RESULTS, machine
from tests.conftest import SHARED, run_module


def decoder(dataroot):
    """A function that decodes one keyframe's six source JPEGs with simplejpeg on one core: the unit of all ratios."""
    images = [sorted(Path(dataroot).glob(f"samples/{c}/*.jpg"))[0].read_bytes() for c in CAMERAS]
    buffers = [simplejpeg.decode_jpeg(image, "RGB") for image in images]

    def decode():
        for image, buffer in zip(images, buffers, strict=True):
            simplejpeg.decode_jpeg(image, "RGB", buffer=buffer)

    return decode


@click.command()
@click.option("--scenes", default=10, help="of the generated world, 20 keyframes each")
@click.option("--keep", help="also write the table to results/NAME.txt")
def main(scenes, keep):
    """Print the benchmarks' table of a CPU; python -m tests.bench.gpu is a GPU's."""
    torch.set_num_threads(1)
    said = [machine()]
    click.echo(said[0])

    def show(rows):
        for row in map(str, rows):
            click.echo(row)
            said.append(row.rstrip())
        sys.stdout.flush()

    _measure(scenes, show)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{keep}.txt").write_text("\n".join(said) + "\n")


def _measure(scenes, show):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        world, version = folder / "world", "v1.0-trainval"
        run_module(
            *["preprocess.synth", "--out", world, "--version", version, "--scenes", scenes, "--samples", 20],
            *["--sweeps", 2],
            timeout=3600,
        )
        decode = decoder(world)
        unit = best_ms(decode, 20)
        show([HEADER, Row("decode: six source JPEGs, generated world", unit, decodes=1.0)])
        common = ["--version", version, "--dataroot", world, "--sweeps", 3, "--train-shards", 4, "--val-shards", 1]
        run_module("preprocess.run", *common, "--out", folder / "full", timeout=3600)
        full = sorted(map(str, (folder / "full").glob("train-*.tar")))
        run_module("preprocess.run", *common, "--out", folder / "small", "--image-size", "540x960", timeout=3600)
        small = sorted(map(str, (folder / "small").glob("train-*.tar")))
        show(shards_bench.rows(world, version, decode))
        show(shards_bench.scaling(world, version, folder / "scaling"))
        show(archives_bench.rows(world, version, folder / "archives"))
        show(loader_bench.rows(full, small, decode))
        show(source_bench.rows(full, folder, decode))
        show(maps_bench.rows(world))
        (folder / "large").mkdir()
        show(loader_bench.opening(full[0], folder / "large"))
        show(device_bench.rows(full[0], unit))
        torch.set_num_threads(os.cpu_count() or 1)
        show(train_bench.rows(full, folder / "run"))
        show(step_bench.rows())
        show(export_bench.rows())
    if (SHARED / "realframe").is_dir():
        decode = decoder(SHARED / "realframe")
        unit = best_ms(decode, 20)
        show([Row("decode: six source JPEGs, real keyframe", unit, decodes=1.0)])
        show(shards_bench.rows(SHARED / "realframe", "v1.0-mini", decode))


if __name__ == "__main__":
    main()
