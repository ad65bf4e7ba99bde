"""python -m tests.bench.step_bench: a training step on the CPU by part, its peak memory, its share of the possible.

Four ways run in turn, each in a process of its own, so that a machine whose speed drifts slows all of them alike and each
peak is its own. `plain Simple-BEV-like` stands for Simple-BEV's own network, which is not part of this project: the same
network of torch's own layers and optimizer, all cameras' whole volumes sampled in one go, trilinearly from features one deep,
and kept for the backward pass, as its public code does. `plain` is our own, with unprojection="plain".
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from common.vox import VoxUtil
from tests.bench.measure import REPOSITORY, Row, best_ms
from train.loss import SimpleLoss, balanced_mse_loss
from train.model import Segnet, camera_mean
from train.model.norm import InstanceNorm
from train.optim import fetch_optimizer
from train.processes.precision import keep_freed_memory, peak_memory_gb

OUR_MEAN = camera_mean.camera_mean
RESULTS = Path(__file__).parent / "results"
GRID, IMAGE, CAMERAS = (200, 8, 200), (224, 400), 6
BENCHMARK_IMAGE = (448, 800)
YAWS = (-55, 0, 55, 110, 180, -110)  # degrees; six cameras about as nuScenes has them
PARTS = ("encoder", "unprojection, its convolution", "BEV network", "losses", "backward", "optimizer")
# name: (unprojection, autocast dtype, channels_last, which in fp32 slows the BEV network's convolutions on the CPU)
WAYS = {
    "plain Simple-BEV-like fp32": ("simple_bev", None, False),
    "plain fp32": ("plain", None, False),
    "fused fp32": ("fused", None, False),
    "fused bf16": ("fused", torch.bfloat16, True),
}
GOALS = {
    ("plain Simple-BEV-like fp32", "fused fp32"): (">= 1.9", "<= 0.6"),
    ("plain Simple-BEV-like fp32", "fused bf16"): (">= 3.3", "<= 0.5"),
    ("plain fp32", "fused fp32"): (">= 1.7", ""),
    ("plain fp32", "fused bf16"): (">= 3", ""),
}


def simple_bev_mean(feats, pix_T_refs, cams_T_ref, vox_util, flips, unprojection, lenses=None):
    """The camera mean with every camera's volume in memory at once, and kept; of pinhole cameras, without flips."""
    geometry = pix_T_refs.flatten(0, 1), cams_T_ref.flatten(0, 1), feats.shape[-2:]
    grid, valid = vox_util.sampling_grid(*geometry)
    points = F.pad(grid, (0, 1)).unflatten(1, (vox_util.Z, vox_util.Y))  # in the middle of the one layer there is
    values = F.grid_sample(feats.float().flatten(0, 1)[:, :, None], points, align_corners=False)
    values = (values * valid.float()).unflatten(0, feats.shape[:2])
    mask = (values.abs() > 0).float()
    return (values * mask).sum(1) / (mask.sum(1) + 1e-6)


def with_torch_norms(network):
    """Put torch's instance norms in the place of ours, which give the same and are faster on a CPU."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, InstanceNorm):
                norm = nn.InstanceNorm2d(child.num_features)
                setattr(parent, name, nn.Sequential(norm, nn.ReLU(inplace=True)) if child.relu else norm)


class Step:
    """One training step at a time of one of the WAYS, on inputs drawn once. zyx: cells of the grid."""

    def __init__(self, way, encoder="res101", image_hw=IMAGE, samples=1, device="cpu", zyx=GRID):
        unprojection, self.dtype, channels_last = WAYS[way]
        self.device, self.samples, self.zyx = torch.device(device), samples, zyx
        if unprojection == "fused":
            keep_freed_memory()  # as train.run does on the CPU
        camera_mean.camera_mean = simple_bev_mean if unprojection == "simple_bev" else OUR_MEAN
        torch.manual_seed(0)
        self.vox = VoxUtil(*zyx, scene_centroid=[[0.0, 1.0, 0.0]], bounds=(-50, 50, -5, 5, -50, 50))
        self.net = Segnet(*zyx, encoder_type=encoder, unprojection="fused" if unprojection == "fused" else "plain")
        self.net.decoder.gives_feat = unprojection == "simple_bev"
        self.net.decoder.feat_head.requires_grad_(False)
        if not torch._guards.detect_fake_mode():  # fake parameters cannot be exchanged
            order = torch.channels_last if channels_last or self.device.type == "cuda" else torch.preserve_format
            self.net.to(self.device, memory_format=order)
        self.optimizer, _ = fetch_optimizer(self.net.parameters(), 3e-4, 1e-7, 1000)
        if unprojection == "simple_bev":
            with_torch_norms(self.net)
            self.optimizer = torch.optim.AdamW(self.net.parameters(), 3e-4, weight_decay=1e-7)
        self.seg_loss = SimpleLoss(2.13).to(self.device)
        self.inputs, self.labels = ([t.to(self.device) for t in each] for each in self._draw(image_hw))
        self.marks = []
        self.net.encoder.register_forward_hook(lambda *_: self.mark())
        self.net.bev_compressor[1].register_forward_pre_hook(lambda *_: self.mark())

    def _draw(self, image_hw):
        yaw = torch.deg2rad(torch.tensor(YAWS, dtype=torch.float32))
        cam0_T_cams = torch.eye(4).repeat(self.samples, CAMERAS, 1, 1)
        cam0_T_cams[:, :, 0, 0] = cam0_T_cams[:, :, 2, 2] = yaw.cos()
        cam0_T_cams[:, :, 0, 2], cam0_T_cams[:, :, 2, 0] = yaw.sin(), -yaw.sin()
        pix_T_cams = torch.eye(4).repeat(self.samples, CAMERAS, 1, 1)
        pix_T_cams[..., 0, 0] = pix_T_cams[..., 1, 1] = image_hw[1] * 1266 / 1600
        pix_T_cams[..., 0, 2], pix_T_cams[..., 1, 2] = image_hw[1] / 2, image_hw[0] / 2
        plane = (self.samples, 1, self.zyx[0], self.zyx[2])
        labels = (torch.rand(plane) < 0.05).float(), torch.rand(plane), torch.randn(self.samples, 2, *plane[2:])
        return (torch.rand(self.samples, CAMERAS, 3, *image_hw) - 0.5, pix_T_cams, cam0_T_cams), labels

    def mark(self):
        self.marks.append(self.clock())

    def run(self, clock):
        """Seconds of each of PARTS."""
        self.clock, self.marks = clock, [clock()]
        with torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            outputs = [o.float() for o in self.net(*self.inputs, self.vox)[-3:]]
        self.mark()
        seg, center, offset = self.labels
        loss = 10 * self.seg_loss(outputs[0], seg, torch.ones_like(seg)) * torch.exp(-self.net.ce_weight)
        loss = loss + balanced_mse_loss(outputs[1], center) / (2 * torch.exp(self.net.center_weight))
        loss = loss + (outputs[2] - offset).abs().mean() / (2 * torch.exp(self.net.offset_weight))
        self.mark()
        loss.backward()
        self.mark()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.mark()
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


class Count(TorchDispatchMode):
    """(operations, bytes read and written) of everything that runs below, views aside."""

    def __init__(self):
        super().__init__()
        self.each = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        needed = moved(func, args, kwargs or {}, out)
        if needed is not None:
            self.each.append(needed)
        return out


def moved(func, args, kwargs, out):
    """(operations, bytes read and written) of one call of an operator; None of a view, which moves nothing."""
    if func.is_view or func.name().startswith("prim::"):
        return None
    counter = flop_registry.get(func._overloadpacket)
    tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
    flops = counter(*args, **kwargs, out_val=out) if counter else 0
    return flops, sum(t.numel() * t.element_size() for t in tensors)


def counts(way, encoder, image_hw=IMAGE):
    """[(operations, bytes)] of a step, of fake tensors: nothing is computed."""
    with FakeTensorMode(), Count() as count:
        step = Step(way, encoder, image_hw)
        count.each.clear()
        step.run(time.perf_counter)
    return count.each


def ceilings(clock="wall"):
    """Operations per second of a matrix product in fp32 and bf16, and bytes per second of a copy, as measured here and now."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(2048, 2048).to(dtype)
        found[name] = 2 * 2048**3 / best_ms(lambda a=a: a @ a, 5, clock=now) * 1e3
    a, b = torch.zeros(2**26), torch.zeros(2**26)
    found["copy"] = 2 * a.nbytes / best_ms(lambda: b.copy_(a), 5, clock=now) * 1e3
    return found


class Worker:
    """A process that runs the steps of one way when asked."""

    def __init__(self, way, encoder, threads, clock):
        # Threads that spin while they wait count as work where CPU time is measured, and those of the workers whose turn it
        # is not would take the processor from the one whose turn it is.
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        command = [
            sys.executable,
            "-m",
            "tests.bench.step_bench",
            "--worker",
            way,
            "--encoder",
            encoder,
            "--clock",
            clock,
        ]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.steps = []

    def step(self, count=True):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        seconds, self.peak_gb = json.loads(self.process.stdout.readline())
        if count:
            self.steps.append(seconds)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def work(way, encoder, clock):
    step = Step(way, encoder)
    for _ in sys.stdin:
        seconds = step.run(time.process_time if clock == "cpu" else time.perf_counter)
        print(json.dumps([seconds, peak_memory_gb(torch.device("cpu"))]), flush=True)


def rows(repeats=3, encoder="res101", threads=2, clock="wall"):
    """The step's part of the benchmarks' table."""
    before = ceilings(clock)
    workers = {way: Worker(way, encoder, threads, clock) for way in WAYS}
    for turn in range(repeats + 1):
        for worker in workers.values():
            worker.step(count=turn > 0)
    for worker in workers.values():
        worker.close()
    medians = {way: [statistics.median(part) for part in zip(*w.steps, strict=True)] for way, w in workers.items()}
    totals = {way: [sum(step) for step in w.steps] for way, w in workers.items()}
    out = []
    for way, parts in medians.items():
        out.append(Row(f"step: {way}, {encoder}", statistics.median(totals[way]) * 1e3))
        out += [Row(f"step: {way}: {name}", s * 1e3) for name, s in zip(PARTS, parts, strict=True)]
        out.append(Row(f"step: {way}: peak memory", workers[way].peak_gb, "GB"))
    for (other, ours), (faster, smaller) in GOALS.items():
        ratio = statistics.median(a / b for a, b in zip(totals[other], totals[ours], strict=True))
        out.append(Row(f"step: {ours}, times as fast as {other}", ratio, "x", goal=faster))
        memory = workers[ours].peak_gb / workers[other].peak_gb
        out.append(Row(f"step: {ours}, peak over that of {other}", memory, "", goal=smaller))
    out += unprojection(repeats, clock)
    limit = {name: max(found, before[name]) for name, found in ceilings(clock).items()}
    return out + roofline({way: statistics.median(t) for way, t in totals.items()}, encoder, limit)


def unprojection(repeats=3, clock="wall"):
    """The camera mean alone, forward and backward, against the plain one: pairs of runs in turn."""
    step = Step("fused fp32", "res50")
    _, pix_T_cams, cam0_T_cams = step.inputs
    cams_T_cam0 = torch.linalg.inv(cam0_T_cams)
    pix_T_cam0 = torch.diag(torch.tensor([1 / 8, 1 / 8, 1, 1])) @ pix_T_cams @ cams_T_cam0
    feats = torch.randn(1, CAMERAS, 128, IMAGE[0] // 8, IMAGE[1] // 8, requires_grad=True)
    now, times = time.process_time if clock == "cpu" else time.perf_counter, {"fused": [], "plain": []}
    for _ in range(repeats + 1):
        for way, own in times.items():
            begin = now()
            volume = camera_mean.camera_mean(feats, pix_T_cam0, cams_T_cam0, step.vox, None, way)
            middle = now()
            volume.backward(volume.detach())
            own.append((middle - begin, now() - begin))
    out = []
    for part, name in enumerate(("forward", "forward and backward")):
        fused, plain = ([each[part] for each in own[1:]] for own in times.values())
        ratio = statistics.median(b / a for a, b in zip(fused, plain, strict=True))
        out += [Row(f"unprojection: fused, {name}", statistics.median(fused) * 1e3)]
        out += [Row("unprojection: times as fast as plain", ratio, "x", goal=">= 8" if part else "")]
    return out


def roofline(seconds, encoder, limit):
    """What the machine's ceilings `limit` allow a step, operation by operation the slower of its arithmetic and its traffic."""
    out = [Row(f"ceiling: matrix product, {name}", limit[name] / 1e9, "GFLOP/s") for name in ("fp32", "bf16")]
    out.append(Row("ceiling: copy", limit["copy"] / 1e9, "GB/s"))
    for way in ("fused fp32", "fused bf16"):
        each = counts(way, encoder)
        best = sum(max(flops / limit[way[-4:]], size / limit["copy"]) for flops, size in each)
        out.append(Row(f"roofline: {way}: operations", sum(f for f, _ in each) / 1e9, "GFLOP"))
        out.append(Row(f"roofline: {way}: bytes moved", sum(b for _, b in each) / 1e9, "GB"))
        out.append(Row(f"roofline: {way}: the ceilings allow", best * 1e3))
        out.append(Row(f"roofline: {way}: share reached", 100 * best / seconds[way], "%"))
    each = counts("fused bf16", encoder, BENCHMARK_IMAGE)
    name = "x".join(map(str, BENCHMARK_IMAGE))
    out.append(Row(f"counted: a sample at {name}: operations", sum(f for f, _ in each) / 1e12, "TFLOP"))
    out.append(Row(f"counted: a sample at {name}: bytes moved, bf16", sum(b for _, b in each) / 1e9, "GB"))
    return out


def machine():
    """The processor and what of it counts here, without anything that names the machine itself."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.processor() or platform.machine())
    family = f"family {facts['cpu family']} model {facts['model']}, " if "cpu family" in facts else ""
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in facts.get("flags", "").split()]
    bf16 = " and ".join(units) or "no unit for bfloat16"
    day, load = time.strftime("%Y-%m-%d", time.gmtime()), os.getloadavg()[1]
    return f"{name}, {family}{os.cpu_count()} cores, {bf16}, torch {torch.__version__}, {day}, load {load:.1f} at first"


@click.command()
@click.option("--repeats", default=3, help="steps of each way, after one that is not counted")
@click.option("--encoder", default="res101")
@click.option("--threads", default=2)
@click.option(
    "--clock", default="wall", type=click.Choice(["wall", "cpu"]), help="cpu: of all threads, for a busy machine"
)
@click.option("--keep", help="also write the table to results/NAME.txt")
@click.option("--worker", hidden=True, type=click.Choice(list(WAYS)))
def main(repeats, encoder, threads, clock, keep, worker):
    """Print the table of the training step."""
    if worker:
        return work(worker, encoder, clock)
    torch.set_num_threads(threads)
    lines = [f"{machine()}; {threads} threads, {clock} clock, median of {repeats}; {IMAGE[0]}x{IMAGE[1]}, batch 1"]
    lines += map(str, rows(repeats, encoder, threads, clock))
    click.echo("\n".join(lines))
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{keep}.txt").write_text("\n".join(line.rstrip() for line in lines) + "\n")


if __name__ == "__main__":
    main()
