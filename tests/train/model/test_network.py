"""A network in a file outside the checkout: trained, resumed, evaluated; and what the interface refuses."""

import dataclasses
import os
import re
import shutil
import tomllib
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import yaml
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.record import lidar_member
from common.vox import VoxUtil
from tests.conftest import REPOSITORY, call_module
from tests.processes.client import run
from train import checkpoint, show
from train.jobs import showing
from train.jobs.evaluation_options import read_options
from train.jobs.training import from_run
from train.loop import Trainer, is_better
from train.loss import Normaliser, default_loss
from train.model import Needs, find_network
from train.model.arguments import described, model_arguments
from train.model.forward import run_network
from train.model.interface import build_network, check_network, complete, name_of
from train.model.simple_bev import SimpleBev
from train.optim import fetch_optimizer, load_moments, parameter_groups
from train.options import Options
from train.processes.gradients import reached
from train.run import train as train_run
from train.samples import Samples, network_of
from train.setup import check_same_network, make_loaders, make_network
from train.step import LossStep

PAGE = (REPOSITORY / "train" / "model" / "README.md").read_text()
EXAMPLE, NOTEBOOK = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
UNUSED = """

class Spare(SmallNet):
    def __init__(self, grid, width):
        super().__init__(grid, width)
        self.spare = nn.Linear(3, 3)  # no loss reaches it


def spare(options, grid):
    return Spare(grid, **options.model_args)
"""
SMALL = (
    "--no_pretrained --nworkers 0 --nworkers_val 0 --batch_size 2 --grad_acc 2 --res_scale 0.25 --nsweeps 1 --device cpu "
    "--deterministic --Z 24 --Y 2 --X 24 --bounds -25,25,-5,5,-25,25 --val_freq 2"
).split()
GRID = VoxUtil(24, 2, 24, torch.tensor([[0.0, 1.0, 0.0]]), (-25, 25, -5, 5, -25, 25))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder outside the checkout with the page's network in a file."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "mynet.py").write_text(EXAMPLE + UNUSED)
    return folder


def run_outside(folder, *words, check=True):
    return run("-m", *words, cwd=folder, env={**os.environ, "PYTHONPATH": REPOSITORY}, check=check)


def test_a_network_outside_the_checkout(synth_shards, outside, monkeypatch):
    """One process, two, resumed, evaluated, shown: by --model alone."""
    model = ["--model", "mynet:spare", "--model_args", '{"width": 8}']
    shards = ["--shards", f"{synth_shards}/train-*.tar"]
    train = ["train.run", *shards, *model, *SMALL, "--log_dir", outside / "logs"]
    options = ["--save_freq", 2, "--keep_latest", 9, "--keep_best", "total_loss", "--val_batches", "all"]
    result = run_outside(outside, *train, *options, "--max_iters", 4, "--ckpt_dir", outside / "one")
    assert "trains without them" in result.stderr and result.stdout.count("; IoU 0.") == 4
    [one] = (outside / "one").iterdir()
    best = checkpoint.read(one / "model-best.pth")
    validated = dict(dict(curves_of(outside / "logs" / one.name, "v"))["stats/total_loss"])
    assert sorted(validated) == [1, 2, 4] and best["step"] == min(validated, key=validated.get)
    assert best["best_by"] == {"figure": "total_loss", "higher_is_better": False}
    assert best["best"] == pytest.approx(validated[best["step"]], rel=1e-6)

    interrupted = shutil.copytree(one, outside / "interrupted" / one.name)
    (interrupted / "model-000000004.pth").unlink()
    (interrupted / "model-best.pth").unlink()
    second = interrupted / "model-000000002.pth"
    torch.save(checkpoint.read(second) | {"best": 0.0}, second)
    run_outside(outside, "train.run", "--resume", interrupted)
    whole, resumed = checkpoint.read(one), checkpoint.read(interrupted)
    assert resumed["step"] == 4 and resumed["options"]["model"] == "mynet:spare"
    assert resumed["best"] == 0.0 and not (interrupted / "model-best.pth").exists()
    for name, value in whole["model_state_dict"].items():
        assert torch.equal(value, resumed["model_state_dict"][name]), name

    run_outside(outside, *train, "--max_iters", 2, "--ckpt_dir", outside / "two", "--device_ids", "0,1")
    [two] = (outside / "two").iterdir()
    single, double = (dict(curves_of(outside / "logs" / folder.name)) for folder in (one, two))
    for curve in ("stats/total_loss", "stats/iou", "_/grad_norm"):
        assert double[curve] == [(step, pytest.approx(value, rel=1e-4)) for step, value in single[curve][:2]], curve

    evaluate = ["train.evaluate", "--init_dir", one, "--shards", f"{synth_shards}/val-*.tar", "--device", "cpu"]
    monkeypatch.syspath_prepend(outside)
    assert re.search(r"step 4; 4 samples; IoU 0\.\d{4}", call_module(*evaluate).stdout)
    words = [synth_shards, 0, "--run", one, "--out", outside / "shown.png", "--device", "cpu"]
    drawn = CliRunner().invoke(show.main, list(map(str, words)))
    assert drawn.exit_code == 0 and (outside / "shown.png").is_file(), drawn.output
    with pytest.raises(ValueError, match="checkpoint of the network mynet:spare, not of simple_bev"):
        check_same_network(one, whole, Options())


def test_the_page_s_ten_lines(synth_shards, outside, tmp_path, monkeypatch):
    """As they stand there; then once more, one validation per step, with the host running ahead as on CUDA: the same curves."""
    for name in ("train-000", "val-000"):
        for ending in ("tar", "idx.json"):
            (tmp_path / "shards").mkdir(exist_ok=True)
            (tmp_path / "shards" / f"{name}.{ending}").symlink_to(synth_shards / f"{name}.{ending}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(outside)
    small = (
        'max_iters=3, nworkers=0, nworkers_val=0, res_scale=0.25, nsweeps=1, Z=24, Y=2, X=24, val_freq=2, device="cpu")'
    )
    lines = NOTEBOOK.replace("import bevshards\n", "").replace('max_iters=100, device="cpu")', small)
    scope = {}
    exec(lines, scope)
    assert scope["path"].name == "model-000000003.pth" and scope["path"].is_file()
    assert read_options({"init_dir": str(scope["path"])}).model == "mynet:build"  # what evaluation goes by
    assert (tmp_path / "logs_nuscenes" / "first" / "t").is_dir()
    first, options = scope["network"].state_dict(), scope["options"]
    network, options = make_network(options, scope["build"])
    trainer = Trainer(options, network, make_loaders(options, "cpu"), name="ahead")
    trainer.runs_ahead = True
    trainer.run()
    assert all(torch.equal(value, first[name]) for name, value in network.state_dict().items())
    shown = [curves_of(tmp_path / "logs_nuscenes" / name) for name in ("first", "ahead")]
    assert shown[0] == shown[1] and set(dict(shown[0])) >= {"_/grad_norm", "stats/iou", "stats/center_loss"}
    assert "stats/offset_loss" not in dict(shown[0])
    tags = EventAccumulator(str(tmp_path / "logs_nuscenes" / "first" / "t")).Reload().Tags()
    assert {"_/memory_gb", "_/current_lr", "_/data_wait_percent", "_/samples_per_s"} <= set(tags["scalars"])
    assert "configuration/text_summary" in tags["tensors"]
    # Pictures of training at the first and the last update; of validation too, which falls on neither.
    for part, steps in (("t", [1, 3]), ("v", [1, 2])):
        events = EventAccumulator(str(tmp_path / "logs_nuscenes" / "first" / part)).Reload()
        assert {"outputs/segmentation", "outputs/center"} <= set(events.Tags()["images"])
        assert [event.step for event in events.Images("outputs/segmentation")] == steps


def curves_of(run, part="t"):
    """((tag, [(step, value)]), …) of the curves that measure neither time nor memory."""
    events = EventAccumulator(str(run / part))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not re.search("time|wait|_per_s|memory", tag)]
    return [(tag, [(e.step, e.value) for e in events.Scalars(tag)]) for tag in tags]


def test_what_is_better_is_said_by_the_metric():
    assert is_better(0.3, 0.2, True) and not is_better(0.2, 0.3, True) and not is_better(0.2, 0.2, True)
    assert is_better(0.2, 0.3, False) and not is_better(0.3, 0.2, False) and not is_better(0.2, 0.2, False)
    step = LossStep(Plain("seg", "center"), GRID)
    step(labels())
    assert step.higher_is_better("iou") and not any(map(step.higher_is_better, step.names(training=True)))


def test_needs_meet_options():
    def of(needs, **options):
        needs, options = complete(needs, Options(**options))
        return needs.lidar, needs.radar, options.use_lidar, options.use_radar, options.use_metaradar, options.nsweeps

    assert of(Needs()) == (False, False, False, False, False, 3)
    assert of(Needs(), use_lidar=True, use_radar=True) == ("voxels", "voxels", True, True, False, 3)
    assert of(Needs(), use_radar=True, use_metaradar=True)[1:5] == ("metaradar", False, True, True)
    assert of(Needs(lidar="points", radar="metaradar", sweeps=1)) == ("points", "metaradar", True, True, True, 1)
    assert complete(Needs(past=2), Options())[1].past == 2 and complete(Needs(), Options(seqlen=4))[1].seqlen == 4
    needs, options = complete(Needs(past=None), Options(past=3))
    assert (needs.past, options.past) == (3, 3)
    for needs, options, told in (
        (Needs(lidar=False), dict(use_lidar=True), "--use_lidar: the network takes no lidar"),
        (Needs(radar="voxels"), dict(use_radar=True, use_metaradar=True), "--use_metaradar"),
        (Needs(sweeps=1), dict(nsweeps=5), "--nsweeps 5: the network needs 1"),
        (Needs(past=3), dict(past=2), "--past 2: the network needs 3"),
        (Needs(), dict(past=2), "--past 2: the network needs 0"),
    ):
        with pytest.raises(ValueError, match=told):
            complete(needs, Options(**options))
    for wrong in (dict(lidar=True), dict(radar="images"), dict(sweeps=0), dict(past=-1), dict(cameras="all"), dict(frames=2),
                  dict(train_only=("map",)), dict(train_only="lidar"), dict(track_ids=1)):  # fmt: skip
        with pytest.raises(ValueError, match="Needs: "):
            Needs(**wrong)


class Points(torch.nn.Module):
    """Lidar alone: how high its points lie, cell by cell."""

    def __init__(self, options, grid):
        super().__init__()
        self.needs = Needs(cameras=False, lidar="points", radar=False, sweeps=1)
        self.height = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch, grid):
        assert batch.imgs is None and batch.radar_data is None and batch.lidar_voxels is None
        level = batch.lidar_data[:, 0, 2].mean(1)
        return {"seg": self.height * level.view(-1, 1, 1, 1).expand(-1, 1, grid.Z, grid.X)}


def test_only_what_is_needed_is_read(synth_shards, tmp_path):
    options = Options(
        shards=(f"{synth_shards}/train-*.tar",), batch_size=2, grad_acc=1, max_iters=1, res_scale=0.25, nworkers=0, Z=24,
        Y=2, X=24, device="cpu", log_dir=str(tmp_path / "logs"), ckpt_dir=str(tmp_path), nworkers_val=0,
    )  # fmt: skip
    network, options = make_network(options, Points)
    loaders = make_loaders(options, "cpu", cameras=network.needs.cameras)
    read, source = set(), loaders[0].reader
    plain = source.read
    source.read = lambda number, members: read.update(members) or plain(number, members)
    assert Trainer(options, network, loaders).run().is_file()
    assert read == {"sample.json", "cameras.npy.zst", "boxes.npy.zst", lidar_member(0)}

    # The same by the call that makes a run's folder, and from what that records.
    path = train_run(dataclasses.replace(options, model="simple_bev", run_name="called", max_iters=2), build=Points)
    assert path == tmp_path / "called" / "model-000000002.pth"
    recorded = yaml.safe_load((path.parent / "config.yaml").read_text())
    assert recorded == checkpoint.read(path)["options"] and recorded["model"] == "tests.train.model.test_network:Points"
    assert train_run(Options(**from_run({"resume": str(path.parent), "max_iters": 3}))).name == "model-000000003.pth"
    # Points asserts that it gets no images: not for a picture either, whose images are the record's.
    shown = network_of(path.parent, torch.device("cpu"))
    assert showing.sheet_of(Samples([synth_shards]), 0, shown, 800).shape[1] == 800


class Plain(torch.nn.Module):
    """Maps that do not look at the batch; `extra` is never used."""

    def __init__(self, *names, needs=None):
        super().__init__()
        self.needs = needs or Needs()
        self.maps = torch.nn.ParameterDict({n: torch.zeros(1, 2 if n == "offset" else 1, 24, 24) for n in names})
        self.extra = torch.nn.Linear(2, 2)

    def forward(self, batch, grid):
        return {name: value.expand(len(batch.seg_bev), -1, -1, -1) for name, value in self.maps.items()}


def labels(batch=2):
    rng = torch.Generator().manual_seed(0)
    maps = {n: torch.rand((batch, 1, 1, 24, 24), generator=rng) for n in ("seg", "valid", "center", "offset")}
    maps = {f"{n}_bev": (v > 0.5).float() if n in ("seg", "valid") else v for n, v in maps.items()}
    maps["offset_bev"] = maps["offset_bev"].expand(-1, -1, 2, -1, -1)
    rots, trans = torch.eye(3).expand(batch, 1, 2, 3, 3), torch.zeros(batch, 1, 2, 3)
    return SimpleNamespace(**maps, rots=rots, trans=trans, indices=list(range(batch)), epoch=0)


def test_what_is_returned_decides_what_there_is():
    for names, told in (("seg",), {"ce_loss"}), (("center", "offset"), {"center_loss", "offset_loss"}):
        step = LossStep(Plain(*names), GRID)
        loss, figures, outputs = step(labels())
        values, counts = step.split(figures, training=True)
        assert set(values) == {"total_loss", *told} and set(outputs) == set(names)
        assert len(counts) == (2 if "seg" in names else 0)
        assert values["total_loss"] == pytest.approx(sum(values[name] for name in told)) == loss.item()
    with pytest.raises(ValueError, match="none of seg, center, offset"):
        LossStep(Plain("depth"), GRID)(labels())
    with pytest.raises(ValueError, match=r"seg is \(2, 2, 24, 24\), the labels are \(2, 1, 24, 24\)"):
        default_loss({"seg": torch.zeros(2, 2, 24, 24)}, labels(), Normaliser())
    network = Plain("seg")
    network.loss = lambda outputs, batch, normaliser: (outputs["seg"].square().mean(), {"size": 1.0})
    network.maps["seg"] = torch.zeros(1, 3, 24, 24)  # which its own loss would take
    with pytest.raises(ValueError, match=r"Plain returned a seg of \(2, 3, 24, 24\); it is \(B, 1, 24, 24\)"):
        LossStep(network, GRID)(labels())
    network.maps["seg"] = torch.zeros(1, 1, 24, 24)
    step = LossStep(network, GRID)
    assert step.split(step(labels())[1], training=True)[0] == {"total_loss": 0.0, "size": 1.0}
    network.loss = lambda outputs, batch, normaliser: (outputs["seg"].mean(), {"other": 1.0})
    step.loss = network.loss
    with pytest.raises(ValueError, match="they must stay"):
        step(labels())


def test_all_counts_of_a_batch_go_through_one_collective():
    calls = []
    world = SimpleNamespace(size=2, sum=lambda tensor: calls.append(len(tensor)) or 2 * tensor)
    step = LossStep(Plain("seg", "center", "offset"), GRID, world=world)
    shared = step(labels())[0]
    assert calls == [4]
    torch.testing.assert_close(shared, LossStep(Plain("seg", "center", "offset"), GRID)(labels())[0])


def test_losses_of_the_same_outputs_are_the_same_under_bf16():
    rng = torch.Generator().manual_seed(1)
    network = SimpleBev(24, 2, 24, latent_dim=8, encoder_type="effb0")
    outputs = {
        n: torch.rand((2, 2 if n == "offset" else 1, 24, 24), generator=rng) for n in ("seg", "center", "offset")
    }
    network.forward = lambda batch, grid: outputs
    plain, terms, _ = LossStep(network, GRID)(labels())
    with torch.autocast("cpu", torch.bfloat16):
        for autocast in (None, torch.bfloat16):
            again, others, _ = LossStep(network, GRID, autocast)(labels())
            assert torch.equal(plain, again) and torch.equal(terms, others)


def test_parameters_that_the_loss_does_not_reach_are_found():
    step = LossStep(Plain("seg", "other"), GRID)
    found = reached(step(labels())[0])
    assert [name for name, p in step.network.named_parameters() if id(p) in found] == ["maps.seg"]


class Halved(Plain):
    """A module that bears no half precision, and one that does."""

    def __init__(self):
        super().__init__("seg")
        self.exact, self.rough = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)
        self.float32_modules = ["exact"]
        self.seen = []

    def forward(self, batch, grid):
        rough = self.rough(batch.seg_bev[:, 0])
        exact = self.exact(rough)
        self.seen += [rough.dtype, exact.dtype]
        return {"seg": exact + rough}


def test_modules_that_bear_no_half_precision():
    network = Halved()
    step = LossStep(network, GRID, torch.bfloat16)
    _, _, outputs = step(labels())
    assert network.seen == [torch.bfloat16, torch.float32] and outputs["seg"].dtype == torch.float32
    network.float32_modules = ["inexact"]
    with pytest.raises(ValueError, match="has no module inexact"):
        LossStep(network, GRID, torch.bfloat16)


def test_networks_are_found_by_name_and_wrong_ones_told(tmp_path, monkeypatch):
    assert name_of(find_network("simple_bev")) == "simple_bev"
    (tmp_path / "nets.py").write_text("import missing_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, told in (
        ("segnet", "one of simple_bev, .*or package.module:factory"),
        ("absent.nets:build", "no module absent.nets; run in the folder that holds it"),
        ("train.model.simple_bev:absent", "has no function or class absent"),
    ):
        with pytest.raises(ValueError, match=told):
            find_network(name)
    with pytest.raises(ModuleNotFoundError, match="missing_thing"):
        find_network("nets:build")
    arguments = tmp_path / "arguments.json"
    arguments.write_text('{"width": 8}')
    assert model_arguments(str(arguments)) == model_arguments({"width": 8}) == {"width": 8}
    for wrong in ("[1]", "{width}", str(tmp_path / "absent.json")):
        with pytest.raises(ValueError, match="--model_args"):
            model_arguments(wrong)
    with pytest.raises(ValueError, match="no torch.nn.Module"):
        check_network(3)
    with pytest.raises(ValueError, match=r"Linear.forward takes \(input\)"):
        check_network(torch.nn.Linear(1, 1))
    network = Plain("seg")
    network.forward = lambda batch: {}
    with pytest.raises(ValueError, match="forward takes"):
        check_network(network)
    network.forward = lambda batch, grid: torch.zeros(1)
    with pytest.raises(ValueError, match="it is a mapping"):
        run_network(network, labels(), GRID)
    with pytest.raises(ValueError, match="options is a dict"):
        Trainer({}, Plain("seg"), (None, None, GRID))
    with pytest.raises(ValueError, match="loaders is"):
        Trainer(Options(), Plain("seg"), None)
    with pytest.raises(ValueError, match="needs a validation"):
        Trainer(Options(keep_best="iou"), Plain("seg"), (None, None, GRID))
    with pytest.raises(ValueError, match="options is a str"):
        train_run("options")
    with pytest.raises(
        ValueError, match="--model mynet:build, but build is tests.train.model.test_network:Points; leave one out"
    ):
        make_network(Options(model="mynet:build"), Points)
    with pytest.raises(ValueError, match="cannot be imported by new processes"):
        train_run(Options(device="cpu", device_ids=(0, 1)), lambda options, grid: Plain("seg"))


def test_a_loss_that_is_no_hook_is_refused_in_one_line():
    network = Plain("seg")
    for wrong, told in (
        (torch.nn.BCEWithLogitsLoss(), "it is a BCEWithLogitsLoss"),
        ("bce", "it is 'bce'"),
        (lambda outputs, batch: 0, "it takes other arguments"),
    ):
        network = Plain("seg")
        network.loss = wrong
        with pytest.raises(ValueError, match="Plain.loss is the hook .* such as self.criterion.*" + told):
            check_network(network)
    network = Plain("seg")
    network.loss = lambda outputs, batch, normaliser, grid: (outputs["seg"].sum(), {"cells": float(grid.Z)})
    check_network(network)
    step = LossStep(network, GRID)
    assert step.split(step(labels())[1], training=True)[0]["cells"] == 24
    network.loss = None
    check_network(network)


@dataclasses.dataclass
class Own:
    width: int = dataclasses.field(default=16, metadata={"help": "channels"})
    rate: float = 0.5
    mode: Literal["sum", "mean"] = "sum"
    steps: tuple[int, ...] = (1, 2)
    name: str | None = None

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width {self.width} must be positive")


def own(options, grid):
    network = Plain("seg")
    network.own = options.model_args
    return network


own.options_class = Own


def test_options_of_a_network_s_own_are_read_and_shown():
    def built(**values):
        return build_network(own, Options(model_args=values), GRID)

    network = built(width=8, rate=1, mode="mean", steps=[3])
    assert network.own == Own(8, 1.0, "mean", (3,)) and network.needs == Needs()
    assert build_network(own, Options(model_args='{"name": "a"}'), GRID).own == Own(name="a")
    assert model_arguments(Own(width=2))["width"] == 2
    for values, told in (
        (dict(widht=8), "widht: no option of this network; did you mean width"),
        (dict(width="8"), "width: '8' is not a whole number"),
        (dict(width=True), "width: True is not a whole number"),
        (dict(mode="max"), "mode: 'max' is not one of sum, mean"),
        (dict(steps=[1.5]), "steps: 1.5 is not a whole number"),
        (dict(name=3), "name: 3 is not a text or null"),
        (dict(width=0), "width 0 must be positive"),
    ):
        with pytest.raises(ValueError, match="--model_args.*" + told):
            built(**values)
    rows = dict(described(own))
    assert rows["width INT"] == "channels  [16]" and "mode sum|mean" in rows and "name TEXT" in rows
    with pytest.raises(ValueError, match="--model_args unprojecton: .* did you mean unprojection"):
        make_network(Options(model_args='{"unprojecton": "plain"}'))


def test_a_network_that_says_no_needs_takes_cameras_alone():
    network = torch.nn.Module()
    network.forward = lambda batch, grid: {}
    check_network(network)
    assert network.needs == Needs(cameras=True, lidar=False, radar=False)


def test_groups_of_parameters_have_their_own_rates_and_leave_none_out():
    network = Plain("seg")
    network.parameter_groups = lambda: [{"params": network.maps.parameters()}]
    with pytest.raises(ValueError, match="leaves out extra.weight, extra.bias"):
        parameter_groups(network)
    network.parameter_groups = lambda: [
        {"params": network.maps.parameters()},
        {"params": network.extra.parameters(), "lr": 1e-4},
    ]
    optimizer, _ = fetch_optimizer(parameter_groups(network), 1e-3, 0.0, 100)
    assert [group["max_lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]


def test_moments_fit_a_fused_optimizer_and_another_memory_order():
    """As where a run from the CPU, or from before, goes on on CUDA."""

    def optimizer(memory_format, **options):
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(4, 4, 3).to(memory_format=memory_format)
        return conv, torch.optim.AdamW(conv.parameters(), lr=1e-2, **options)

    results = []
    for kind in (dict(), dict(fused=True)):
        conv, first = optimizer(torch.contiguous_format)
        state = None
        for step in range(4):
            if step == 2:
                state, weights = first.state_dict(), conv.state_dict()
                conv, first = optimizer(torch.channels_last if kind else torch.contiguous_format, **kind)
                conv.load_state_dict(weights)
                load_moments(first, state)
            first.zero_grad()
            conv(torch.ones(1, 4, 5, 5)).square().sum().backward()
            first.step()
        assert first.state[conv.weight]["exp_avg"].stride() == conv.weight.stride()
        results.append(conv.weight.detach().contiguous())
    torch.testing.assert_close(*results)
    with pytest.raises(ValueError, match="2 groups of parameters, not 1"):
        load_moments(first, {**state, "param_groups": state["param_groups"] * 2})


def test_nothing_outside_names_a_network():
    """But for the options' default; the label protocol of the same name is theirs and data/'s."""
    folders = [REPOSITORY / "train" / name for name in (".", "evaluation", "jobs", "monitor", "pictures", "processes")]
    paths = {path for folder in folders for path in folder.glob("*.py")} - {REPOSITORY / "train" / "options.py"}
    names = {path.stem for path in paths}
    assert names >= {"loop", "checkpoint", "console", "writers", "command", "measure", "evaluator", "tensorboard"}
    for path in paths:
        text = path.read_text().lower()
        found = re.search(r"segnet|simple_bev|simplebev\b|res101|feat_head|_weight\b.*center", text)
        assert not found, (path, found)


def test_the_command_works_where_a_train_py_lies(tmp_path):
    """Under its name of its own, `bevshards`, as an installation maps it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "bevshards").symlink_to(REPOSITORY / "common" / "entry")
    for name in ("train", "common"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    (tmp_path / "mynet.py").write_text(EXAMPLE)
    code = "import bevshards, train.model, mynet; print(train.model.__file__)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(tmp_path / "site")])}
    shown = run("-c", code, cwd=tmp_path, env=environment)
    assert shown.stdout.strip() == str(REPOSITORY / "train" / "model" / "__init__.py"), shown.stderr
    (tmp_path / "shards").mkdir()
    for split in ("train", "val"):
        (tmp_path / "shards" / f"{split}-000.tar").touch()  # a path that is not there would be told first
    code = """
import sys, bevshards
for words in (["show_shards", "--help"], ["evaluate"], ["train", "--model", "absent:build"]):
    sys.argv = ["bevshards", *words]
    try:
        bevshards.main()
    except SystemExit as ended:
        print("exit", ended.code)
"""
    shown = run("-c", code, cwd=tmp_path, env=environment)
    assert shown.stdout.startswith("Usage: bevshards show-shards [OPTIONS]") and shown.returncode == 0, shown.stderr
    assert re.findall("exit .", shown.stdout) == ["exit 0", "exit 1", "exit 1"]
    assert (
        "or a checkpoint file: bevshards evaluate RUN" in shown.stderr and "there is no module absent" in shown.stderr
    )


def test_every_package_is_installed():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {name: settings["package-dir"].get(name, name.replace(".", "/")) for name in settings["packages"]}
    found = {
        str(path.parent.relative_to(REPOSITORY))
        for top in ("common", "preprocess", "train")
        for path in (REPOSITORY / top).rglob("__init__.py")
    }
    assert set(places.values()) == found, "pyproject.toml's packages and the folders differ"


def test_another_network_s_checkpoint_is_refused():
    """But Simple-BEV's own, which record nothing at all, may be of any."""
    for content in ({"options": {"model": "simple_bev"}}, {}):
        check_same_network("run", content, Options())
    check_same_network("run", {}, Options(model="mynet:build"))
    with pytest.raises(ValueError, match="of the network simple_bev, not of mynet:build"):
        check_same_network("run", {"options": {"model": "simple_bev"}}, Options(model="mynet:build"))
