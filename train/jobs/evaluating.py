"""An evaluation of a checkpoint from its options to its files: the work of train.evaluate."""

import platform
import shlex
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import click
import torch

from common import addresses
from common.errors import InputError
from common.files import write_atomically
from common.progress import Progress, clock, counted, progress
from common.shard_set import find_beside, find_shards
from common.spelling import spelled
from common.stores import parse_options
from common.versions import own_version
from train import checkpoint
from train.agreement import check_same_run, check_same_shards
from train.command import commands_among, known_options
from train.data.label_spec import labels_side_by_side
from train.evaluation.damage import damages, offsets
from train.evaluation.evaluator import evaluate
from train.evaluation.figures import all_figures, headline_of, keys_of
from train.evaluation.files import THUMBNAILS, read_json, write_collected, write_csv, write_json, write_thumbnails
from train.evaluation.gallery import chosen_rows
from train.evaluation.robustness import baseline_ious, evaluate_damaged, robustness
from train.evaluation.table import lines_of, robustness_lines, scalars, score_lines
from train.jobs.launch import launch
from train.jobs.showing import sheets
from train.options import SHARDS, Options, as_dict
from train.pictures.layout import encode
from train.pictures.thumbnails import thumbnails_of
from train.processes.precision import on_device, set_precision
from train.processes.ranks import say
from train.samples import Network, Samples
from train.setup import check_same_network, make_loaders, make_network

# What the checkpoint's own options decide, unless the command line says otherwise: groups, and names of other groups.
_OF_MODEL = (
    "sensors",
    "model",
    "labels",
    "grid",
    "res_scale",
    "interpolation",
    "refcam_id",
    "refcam",
    "cams",
    "image_size",
    "crop",
    "order",
)

WORTH_SAYING_S = 20.0  # that an evaluation takes
GALLERY_PX = 1000  # columns of a picture


def shown(loader, what, progress=True):
    """The loader's batches; how far it is shows on stderr."""
    with Progress(len(loader), "batches", what, shown=progress) as bar:
        yield from bar.over(loader)


def evaluate_run(given, choices):
    """Evaluate the run that the given options name. choices: what only train.evaluate takes, by name. Raises ValueError."""
    choices = dict(choices)
    choices["off"] = offsets(choices.pop("off_degrees"), choices.pop("off_cm"))
    launch(Evaluation(choices), read_options(given))


def read_options(given):
    """Options of the command line over those that the checkpoint records. Raises ValueError."""
    content = checkpoint.peek(given["init_dir"], command=spelled("train.evaluate"))
    recorded = known_options(content.get("options") or {}, given["init_dir"], strict=False)
    own = [f.name for f in fields(Options) if {f.name, f.metadata["group"]} & set(_OF_MODEL)]
    own = {name: recorded[name] for name in own if name in recorded}
    own["interpolation"] = checkpoint.interpolation(content)
    # An empty precision was the default of whatever device the run had.
    trained = own | ({"precision": recorded["precision"]} if recorded.get("precision") else {})
    for name in sorted(trained.keys() & given.keys()):
        if trained[name] != given[name]:
            say(f"note: --{name} {given[name]}; the run was trained with {trained[name]}")
    _note_other_shards(given, recorded)
    if not any(name in given for name in SHARDS):
        own |= {name: recorded[name] for name in SHARDS if name in recorded}
        own |= _val_shards_of(given["init_dir"], own, parse_options(given.get("store_options")))
    own["exp_name"] = recorded.get("exp_name", Options.exp_name)
    own["log_dir"] = recorded.get("log_dir", Options.log_dir)
    options = Options(**{**own, **given, "do_val": True})
    # As in Simple-BEV; training's bf16 is for speed.
    return replace(options, precision=options.precision or "fp32")


def _note_other_shards(given, recorded):
    theirs = "val_shards" if recorded.get("val_shards") else "shards"
    own = _listed(recorded.get(theirs) or ())
    for name in SHARDS:
        if own and name in given and _listed(given[name]) != own:
            say(f"note: --{name} {_listed(given[name])}; the run recorded --{theirs} {own}")


def _listed(patterns):
    return ", ".join(map(addresses.shown, (patterns,) if isinstance(patterns, str) else patterns))


def _val_shards_of(run, recorded, access):
    """{"val_shards": those of the run}, or {} where it records none; access: options of the stores. Raises ValueError."""
    if commands := commands_among(recorded):
        raise InputError(
            f"{run}: a checkpoint may not say which commands to run; if {commands[0]!r} is meant, name it: --val_shards …"
        )
    if recorded.get("val_shards") or not recorded.get("shards"):
        return {"shards": ()}
    found = find_beside(find_shards(recorded["shards"], "train", access), "val")
    if not found:
        beside = ", ".join(map(addresses.shown, recorded["shards"]))
        raise InputError(f"{run}: no val shards beside {beside}; give --val_shards")
    return {"shards": (), "val_shards": found.shards}


@dataclass(frozen=True)
class Evaluation:
    """One process's part of the command: called with the options and its World.

    choices: out, pictures, robustness and baseline, as the command line has them; with robustness off, see `damages`.
    """

    choices: dict

    def __call__(self, options, world):
        parts = world.together(lambda: _prepare(options, world))
        world.together(lambda: check_same_run(parts.options, parts.step, world))
        world.together(lambda: check_same_shards((None, parts.loader), world))
        out = Path(self.choices["out"] or parts.folder / "eval")
        world.together(lambda: world.leads and _check_folders(out, _curves(parts)))
        if world.leads:
            say(_opening(parts, world))
        baseline = world.together(self._baseline)
        began = time.monotonic()
        draw = thumbnails_of if self.choices["pictures"] else None
        whole = evaluate(parts.network, parts.batches("evaluate", world), parts.grid, world, parts.autocast, draw)
        took, table = time.monotonic() - began, None
        if self.choices["robustness"]:
            world.together(lambda: world.leads and _check_counts(whole))
            changes = damages(*parts.held(), options.seed, self.choices["off"])
            # Batches are loaded once for all of them, so this is the most.
            say(f"robustness: the same under {counted(len(changes), 'change')}, at most {clock(len(changes) * took)}")
            batches = parts.batches("robustness", world)
            damaged = evaluate_damaged(parts.network, batches, parts.grid, world, changes, parts.autocast)
            table = robustness(damaged, baseline, whole, options.seed) if world.leads else None
        if world.leads:
            self._report(parts, whole, table, out)

    def _baseline(self):
        if not self.choices["baseline"]:
            return None
        if not self.choices["robustness"]:
            raise InputError("--baseline is what corruptions are compared with; give --robustness too")
        baseline = read_json(self.choices["baseline"])
        baseline_ious(baseline)
        return baseline

    def _report(self, parts, whole, damaged, out):
        whole.about = parts.about(whole)
        figures = all_figures(whole, parts.options.seed)
        headline = whole.about["headline"]
        start = f"step {parts.step}; {counted(len(whole.rows), 'sample')}"
        if headline:
            first, cells = headline_of(figures, "iou", headline), labelled_cells(whole, headline)
            click.echo(f"{start}; IoU {iou_of(first):.4f}; {cells} labelled cells")
            if not cells:
                raise InputError(
                    "no cell of these samples is labelled, so the IoU says nothing; see --target_categories, --bounds"
                )
        else:
            click.echo(f"{start}; the network gives no seg, so there is no IoU")
        lines = lines_of(whole, headline, figures) if headline else []
        for line in [*lines, *score_lines(whole.scores), *(robustness_lines(damaged) if damaged else ())]:
            click.echo(line)
        write_json(out / "eval.json", whole, figures, parts.options.seed, damaged)
        write_csv(out / "samples.csv", whole)
        own = write_collected(out, whole)
        _write_scalars(parts, scalars(figures) | {f"eval/{n}": s.value for n, s in whole.scores.items()})
        write_thumbnails(out / THUMBNAILS, whole.thumbnails)
        drawn = _write_gallery(out, whole, headline, parts, self.choices["pictures"]) if headline else 0
        names = ["eval.json", "samples.csv", *(path.name for path in own)]
        click.echo(f"written: {out}/{', '.join(names)}" + (f", {counted(drawn, 'picture')}" if drawn else ""))
        for line in self._next(parts, out):
            click.echo(line, err=True)

    def _next(self, parts, out):
        """Lines that say what to type next."""
        run = shlex.quote(str(parts.folder if out == parts.folder / "eval" else out))
        yield f"next: {spelled('train.report')} {run} --out page.html"
        if not self.choices["robustness"]:
            yield f"      {spelled('train.evaluate')} {shlex.quote(str(parts.folder))} --robustness"
        yield f"      {spelled('train.compare')} {run} ANOTHER_RUN"


def _write_gallery(out, whole, label, parts, count):
    """Write `count` sheets, a third each of the worst, the median and the best samples by IoU, as JPEGs; how many.

    out: folder; pictures of earlier evaluations in it are replaced. whole: Evaluation. label: whose IoU counts. Samples in
    which nothing was predicted or true are not among them.
    """
    for old in out.glob("[0-9][0-9]*_*_IoU_*_*.jpg"):
        old.unlink()
    chosen = chosen_rows(whole.rows, label, count)
    if not chosen or parts.loader.reader.is_stream:
        return 0
    samples = Samples(sources=[parts.loader.reader])
    network = Network(parts.options, parts.network.eval(), parts.step, parts.loader.stage.device)
    numbers = [samples.find(row.key)[0] for _, row, _ in chosen]
    pictures = progress(sheets(samples, numbers, network, GALLERY_PX), "pictures", "gallery", len(chosen))
    for number, ((kind, row, value), picture) in enumerate(zip(chosen, pictures, strict=True)):
        write_atomically(out / f"{number:02d}_{kind}_IoU_{value:.3f}_{row.key}.jpg", encode(picture, ".jpg"))
    return len(chosen)


def labelled_cells(evaluation, label):
    """True cells of a label, of all its classes, that count."""
    keys = keys_of(evaluation.rows, label)
    return sum(int(row.counts[key][:, 2].sum()) for row in evaluation.rows for key in keys)


def iou_of(figure):
    """A figure's value; 0 where nothing was predicted or true, as train.metrics has it."""
    return figure.value if figure.denominator else 0.0


@dataclass
class Parts:
    """What an evaluation works with: a checkpoint's network on this rank's device, and its share of the samples."""

    options: Options
    network: torch.nn.Module
    loader: object
    grid: object
    labels: tuple
    step: int
    path: Path
    autocast: torch.dtype | None

    @property
    def folder(self):
        """Folder of the run."""
        return self.path.parent

    def batches(self, what, world):
        """This rank's batches, None where it has no share of one; rank 0 shows how far it is.

        All ranks take them together, so that one waits for another no longer than for a batch, and hears of it if that fails.
        """
        own = iter(self.loader) if len(self.loader) else iter(())
        count = self.loader.num_global_batches
        with Progress(count, "batches", what, shown=world.leads) as bar:
            for number, batch in enumerate(bar.over(world.together(lambda: next(own, None)) for _ in range(count))):
                yield batch
                world.first_step_done()
                if number == 0:  # it also paid for what begins once
                    began = time.monotonic()
                elif number == 1 and (takes := (count - 2) * (time.monotonic() - began)) > WORTH_SAYING_S:
                    say(f"{what}: about {clock(takes)}")

    def held(self):
        """(cameras, sensors besides them) of the batches."""
        decode = self.loader.decode
        sensors = [name for name in ("lidar", "radar") if getattr(decode, f"use_{name}")]
        return self.loader.augment.cams if decode.use_cameras else (), sensors

    def about(self, whole):
        """What eval.json says of where its figures come from."""
        facts = self.loader.reader.facts
        return {
            "headline": self.labels[0].name if keys_of(whole.rows) else "",
            "split": facts.get("split", ""),
            "version": facts["version"],
            "samples": f"{len(whole.rows)} of {len(self.loader.windows)}",
            "samples_sha256": self.loader.reader.samples_sha256,
            "shards": {str(index.tar): index.tar_sha256 for index in self.loader.reader.indexes},
            "checkpoint": str(self.path),
            "step": self.step,
            "grid": f"{self.options.Z}x{self.options.Y}x{self.options.X} over {self.options.bounds}",
            "precision": self.options.precision,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "log_dir": self.options.log_dir,
            "options": as_dict(self.options),
            "versions": {
                "bevshards": own_version(),
                "python": platform.python_version(),
                "torch": str(torch.__version__),
            },
        }


def _prepare(options, world):
    set_precision(options, world.device)
    path = checkpoint.find(options.init_dir)
    content = checkpoint.read(path, command=spelled("train.evaluate"), check=world.leads)
    check_same_network(path, content, options)
    network, options = make_network(options)
    labels = labels_side_by_side(options)
    place = (world.device, False, world.rank, world.size)
    _, loader, grid = make_loaders(options, *place, labels=labels, needs=network.needs)
    autocast = options.autocast_on(world.device)
    step = checkpoint.load_weights(path, content, on_device(network, world.device, autocast), options.ignore_load)
    if options.compile:
        network.compile()
    return Parts(options, network, loader, grid, labels, step, Path(path), autocast)


def _opening(parts, world):
    """What is evaluated, on what."""
    options, reader = parts.options, parts.loader.reader
    split = reader.facts.get("split", "")
    samples, shards = counted(len(parts.loader.windows), "sample"), counted(len(reader.indexes), "shard")
    return (
        f"{parts.path}, step {parts.step}: {samples} of {reader.facts['version']} {split}, {shards}\n"
        f"protocol {parts.labels[0].name}; grid {options.Z}x{options.Y}x{options.X}; {options.precision} on "
        f"{world.size} x {world.device.type}"
    )


def _check_folders(out, curves):
    """Make the folders of the results. Raises ValueError where nothing can be written in one: before the work, not after."""
    for folder, option in ((out, "--out"), (curves, "--log_dir")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); give another {option}") from None


def _curves(parts):
    return Path(parts.options.log_dir, parts.folder.name, "eval")


def _check_counts(whole):
    """Raise ValueError where there is no IoU that damage could change."""
    if not keys_of(whole.rows):
        raise InputError("--robustness compares IoUs, and the network gives no seg; leave it out")


def _write_scalars(parts, values):
    from train.monitor.writers import Recorder

    recorder = Recorder(_curves(parts), "eval", replaces=f".step-{parts.step}")
    for tag, value in values.items():
        recorder.add_scalar(tag, value, parts.step)
    recorder.close()
    if recorder.lost:
        raise recorder.lost
