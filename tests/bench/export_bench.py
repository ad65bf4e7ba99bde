"""python -m tests.bench.export_bench: the exported camera mean on onnxruntime over the fused one, one thread, in pairs.

Of the benchmark's network: features of 448x800 images, 128 channels, 200x8x200 voxels, six cameras about as nuScenes has them,
with the compressor's convolution behind. With --export also the seconds that an export of res101 at that size takes.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import torch

from common.vox import VoxUtil
from tests.bench.measure import Row
from tests.bench.step_bench import BENCHMARK_IMAGE, CAMERAS, GRID, YAWS
from train.exporting.graph import exported_graph, reference_graph
from train.exporting.measure import Alone
from train.exporting.runtime import open_file
from train.exporting.view import BAKED, Sampled
from train.exporting.writing import export_program, write_onnx
from train.jobs.exporting import LIMIT_S
from train.model.camera_mean import convolved_mean
from train.model.points import pixels_of_ref
from train.model.simple_bev import SimpleBev

STRIDE, CHANNELS = 8, 128
GOALS = {"Sampled": "<= 3", "Tall": "<= 1.5, the faster of both", "Gathered": ""}


def grid():
    return VoxUtil(*GRID, scene_centroid=[[0.0, 1.0, 0.0]], bounds=(-50, 50, -5, 5, -50, 50))


def cameras():
    """pix_T_cams and ref_T_cams (1,S,4,4) of the benchmark's images."""
    height, width = BENCHMARK_IMAGE
    yaw = torch.deg2rad(torch.tensor(YAWS, dtype=torch.float32))
    ref_T_cams, pix_T_cams = torch.eye(4).repeat(1, CAMERAS, 1, 1), torch.eye(4).repeat(1, CAMERAS, 1, 1)
    ref_T_cams[:, :, 0, 0] = ref_T_cams[:, :, 2, 2] = yaw.cos()
    ref_T_cams[:, :, 0, 2], ref_T_cams[:, :, 2, 0] = yaw.sin(), -yaw.sin()
    ref_T_cams[:, :, 0, 3], ref_T_cams[:, :, 2, 3] = yaw.sin(), yaw.cos() - 1
    pix_T_cams[..., 0, 0] = pix_T_cams[..., 1, 1] = width * 1266 / 1600
    pix_T_cams[..., 0, 2], pix_T_cams[..., 1, 2] = width / 2, height / 2
    return pix_T_cams, ref_T_cams


def rows(repeats=3):
    """A Row for each form of the view: its CPU time over the fused one's."""
    rng, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(1)
    *where, _ = pixels_of_ref(*cameras(), STRIDE)
    feats = torch.randn(1, CAMERAS, CHANNELS, *(n // STRIDE for n in BENCHMARK_IMAGE), generator=rng)
    kernels = torch.randn(GRID[1], CHANNELS, CHANNELS, 3, 3, generator=rng) / (CHANNELS * GRID[1]) ** 0.5
    tensors = {"feats": feats, "pix_T_refs": where[0], "cams_T_ref": where[1]}
    try:
        with torch.no_grad():
            for make in (Sampled, *BAKED):  # one at a time: each holds several volumes of 164 MB
                view = make() if make is Sampled else make(feats.shape[-2:], *where, grid())
                ratio = _ratio(Alone(view, grid(), kernels), tensors, repeats)
                yield Row(f"exported view, {make.__name__}, over the fused one", ratio, "x", goal=GOALS[make.__name__])
    finally:
        torch.set_num_threads(threads)


def _ratio(alone, tensors, repeats):
    """Median over pairs of the CPU time of an Alone on onnxruntime over that of the fused mean and its convolution."""
    arrays, ratios = {name: tensors[name].numpy() for name in alone.inputs}, []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "view.onnx")
        write_onnx(export_program(alone, tensors), alone, path)
        run = open_file(path, threads=1)
    for _ in range(repeats):
        one = _cpu_s(lambda: convolved_mean(*tensors.values(), grid(), alone.kernels))
        ratios.append(_cpu_s(lambda: run(arrays)) / one)
    return statistics.median(ratios)


def _cpu_s(action):
    began = time.process_time()
    action()
    return time.process_time() - began


def export_row():
    """CPU time of writing the benchmark's network, calibration as an input, and of a sample in PyTorch and in the file.

    A command's whole work is one writing, what is compared within its limit, and a batch of two and one of three.
    """
    began = time.process_time()
    torch.manual_seed(0)
    network = SimpleBev(*GRID, grid()).eval()
    pix_T_cams, ref_T_cams = cameras()
    tensors = {
        "images": torch.rand(1, CAMERAS, 3, *BENCHMARK_IMAGE),
        "pix_T_cams": pix_T_cams,
        "ref_T_cams": ref_T_cams,
    }
    reference = reference_graph(network, [], tensors, {})
    graph, *_ = exported_graph(reference, tensors, grid(), None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(export_program(graph, tensors), graph, path)
        wrote, run = time.process_time(), open_file(path, threads=torch.get_num_threads())
        want = reference.run(tensors)
        in_torch = time.process_time()
        got = run({name: value.numpy() for name, value in tensors.items()})
        in_file = time.process_time()
        apart = max(float((want[name] - torch.from_numpy(got[name])).abs().max()) for name in want)
        size = path.stat().st_size / 1e6
    parts = wrote - began, in_torch - wrote, in_file - in_torch
    for name, seconds in zip(
        ("written", "a sample in PyTorch, opening in it", "a sample in the file"), parts, strict=True
    ):
        yield Row(f"export of res101 at 448x800: {name}", seconds, "CPU s")
    whole = parts[0] / 2 + LIMIT_S + (parts[1] + 6 * parts[2]) / 2
    yield Row("all of it, on two idle cores", whole, "s", goal="<= 180")
    yield Row("its file", size, "MB")
    yield Row("its largest difference from PyTorch, times 1e6", apart * 1e6, "")


@click.command()
@click.option("--export", is_flag=True, help="also export res101 at 448x800")
def main(export):
    """Print the rows."""
    for row in rows():
        click.echo(row)
    for row in export_row() if export else ():
        click.echo(row)


if __name__ == "__main__":
    main()
