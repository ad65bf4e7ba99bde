"""An evaluation of a checkpoint from its options to its files: the work of train.evaluate."""

import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

from common.errors import InputError
from common.files import write_atomically
from common.progress import clock, counted, progress
from common.spelling import spelled
from train.agreement import check_same_run, check_same_shards
from train.checkpoint import WEIGHTS
from train.evaluation.damage import damages, offsets
from train.evaluation.evaluator import evaluate
from train.evaluation.figures import all_figures, headline_of, keys_of
from train.evaluation.files import THUMBNAILS, read_json, write_collected, write_csv, write_json, write_thumbnails
from train.evaluation.gallery import chosen_rows
from train.evaluation.robustness import baseline_ious, evaluate_damaged, robustness
from train.evaluation.table import lines_of, robustness_lines, scalars, score_lines
from train.exporting.beside import Beside
from train.jobs.evaluation_options import read_options
from train.jobs.evaluation_parts import opening, prepare
from train.jobs.launch import launch
from train.jobs.showing import sheets
from train.pictures.layout import encode
from train.pictures.thumbnails import thumbnails_of
from train.processes.ranks import say
from train.samples import Network, Samples

GALLERY_PX = 1000  # columns of a picture


def evaluate_run(given, choices):
    """Evaluate the run that the given options name. choices: what only train.evaluate takes, by name. Raises ValueError."""
    choices = dict(choices)
    choices["off"] = offsets(choices.pop("off_degrees"), choices.pop("off_cm"))
    launch(Evaluation(choices), read_options(given))


@dataclass(frozen=True)
class Evaluation:
    """One process's part of the command: called with the options and its World.

    choices: out, pictures, robustness, baseline and exported, as the command line has them; with robustness off, see `damages`.
    """

    choices: dict

    def __call__(self, options, world):
        parts = world.together(lambda: prepare(options, world, self.choices.get("weights", WEIGHTS[0])))
        world.together(lambda: check_same_run(parts.options, parts.step, world))
        world.together(lambda: check_same_shards((None, parts.loader), world))
        if exported := self.choices.get("exported"):
            parts.network = Beside(exported, parts.network.eval(), parts.loader, parts.grid)
        out = Path(self.choices["out"] or (Path(exported).parent if exported else parts.folder) / "eval")
        world.together(lambda: world.leads and _check_folders(out, _curves(parts)))
        if world.leads:
            say(opening(parts, world))
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
        if self.choices.get("exported"):
            click.echo("\n".join(parts.network.lines()))
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
    reader = parts.loader.reader
    samples = Samples(sources=getattr(reader, "parts", [reader]))
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
