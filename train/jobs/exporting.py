"""An export from a run to its folder: the work of train.export."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.errors import InputError
from common.files import write_atomically
from common.progress import progress
from common.spelling import spelled
from train import checkpoint
from train.command import known_options
from train.exporting import folder
from train.exporting.compare import BOUND, check_batches, compare, own_spread
from train.exporting.describe import Facts, card_of, lines_of, radar_filters, table_of
from train.exporting.feeds import MOST, Feeds
from train.exporting.graph import Form, check_exportable, exported_graph, reference_graph
from train.exporting.half import write_half
from train.exporting.measure import quickest
from train.exporting.operators import check_operators
from train.exporting.quantised import write_int8
from train.exporting.runtime import open_file
from train.exporting.writing import OPSET, export_program, write_onnx, write_torch
from train.jobs.evaluation_options import read_options
from train.options import Options
from train.processes.ranks import say
from train.setup import make_loaders, make_network

RANGED = 16  # samples that int8's ranges are found on
# That comparing goes on for where nobody said on how many samples: an export of the largest encoder takes three minutes then.
LIMIT_S = 80.0
LEAST = 3
SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
FORMS = (  # of the table: format, precision, images, points, whether the calibration is baked in
    ("onnx", "fp32", "stored", "points", False),
    ("onnx", "fp32", "stored", "points", True),
    ("onnx", "fp32", "network", "voxels", False),
    ("onnx", "fp16", "stored", "points", False),
    ("onnx", "int8", "stored", "points", False),
    ("torch", "fp32", "stored", "points", False),
)


@dataclass
class Parts:
    """A run's network in evaluation, its val samples in batches of one, and where both come from.

    weights: of train.checkpoint.WEIGHTS. train_shards: patterns that the run recorded; empty where it recorded none.
    """

    path: Path
    step: int
    options: Options
    network: torch.nn.Module
    loader: object
    grid: object
    weights: str
    train_shards: tuple


def export_run(run, wanted, out, weights, count, shards, forms):
    """Export a run; the arguments are train.export's. Raises ValueError.

    wanted: dict of format_, precision, images, points, calibration, bound. count: of samples, "all", or "" (see LIMIT_S).
    shards: of the val split.
    """
    parts = _parts(run, shards, weights)
    if forms:
        return _all_forms(parts, Path(out or parts.path.parent / "export"), count, Path(forms), wanted["bound"])
    form = Form(wanted["images"], wanted["points"], wanted["calibration"])
    kind = wanted["format_"], wanted["precision"]
    name = "-".join(filter(None, (*kind, form.images * (form.images != "stored"), form.calibration)))
    target = Path(out or parts.path.parent / "export" / name)
    export(parts, form, *kind, target, count, wanted["bound"])
    say(f"written: {target}/{', '.join(sorted(path.name for path in target.iterdir() if path.is_file()))}")


def _parts(run, shards, weights):
    given = {"init_dir": run, "batch_size": 1, "device": "cpu", "nworkers": 1, "compile": False}
    options = read_options(given | ({"val_shards": tuple(shards)} if shards else {}))
    if options.mix and not options.val_shards:
        raise InputError(
            "the run's samples are of several rigs, and a file is for one; give --val_shards of the set whose car it is for"
        )
    # In windows, which hold their past: what a memory of streams leaves behind is the same to the last bit.
    options = replace(options, order="shuffled")
    path = checkpoint.find(options.init_dir)
    content = checkpoint.read(path, command=spelled("train.export"))
    network, options = make_network(options)
    check_exportable(network)
    step = checkpoint.load_weights(path, content, network, options.ignore_load, weights)
    _, loader, grid = make_loaders(options, "cpu", want_train=False, needs=network.needs)
    if loader.reader.is_stream:
        raise InputError(
            "a pipe: is read from front to back and has no single samples; give --val_shards that are files"
        )
    recorded = known_options(content.get("options") or {}, path, strict=False)
    return Parts(Path(path), step, options, network.eval(), loader, grid, weights, tuple(recorded.get("shards", ())))


def _all_forms(parts, out, count, table, bound):
    """Export every form, and write their table."""
    key, cards = parts.loader.reader.keys[0], {}
    for format_, precision, images, points, is_baked in FORMS:
        name = "-".join(filter(None, (format_, precision, images * (images != "stored"), "baked" * is_baked)))
        form = Form(images, points, key if is_baked else "")
        cards[name] = export(parts, form, format_, precision, out / name, count, bound)
    text = "\n".join(table_of(cards)) + "\n"
    write_atomically(table, text.encode())
    say(text)


def export(parts, form, format_, precision, target, count, bound=BOUND):
    """Write one export's folder; its card. Raises ValueError where a check fails, and leaves no model then.

    bound: largest difference of float32 outputs from PyTorch's.
    """
    began = time.monotonic()
    feeds = Feeds(parts.network, parts.loader, parts.grid, form)
    [(_, tensors)] = feeds(feeds.spread(1))
    constants = feeds.constants(tensors)
    reference = reference_graph(parts.network, feeds.stages(tensors), tensors, constants)
    graph, view, seconds = exported_graph(reference, tensors, parts.grid, quickest)
    facts = Facts(format_, precision, view, seconds, constants, bound)
    target.mkdir(parents=True, exist_ok=True)
    file = target / f"model{SUFFIX[format_]}"
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        made = Path(scratch, file.name)
        _write(graph, tensors, facts, made, lambda: _ranging_arrays(parts, form, reference))
        found = _measured(reference, made, feeds, count, facts)
        made.replace(file)
    card = card_of(parts, feeds, reference, tensors, file, found, facts)
    program = folder.program_of(card, radar_filters(parts.options, parts.loader.reader.rig))
    folder.write_folder(target, card, found.kept, program)
    say("\n".join(lines_of(card, time.monotonic() - began)))
    return card


def _write(graph, tensors, facts, file, ranging_arrays):
    """Write the file, and into the Facts what it holds. ranging_arrays: function to the samples that int8 finds ranges on."""
    program = export_program(graph, tensors)
    if facts.format == "torch":
        return write_torch(program, graph, file)
    import onnx

    write_onnx(program, graph, file)
    check_operators(onnx.load(file), OPSET)
    if facts.precision != "fp32":
        whole = file.with_name("whole.onnx")
        file.replace(whole)
        if facts.precision == "fp16":
            write_half(whole, file)
        else:
            facts.quantisation = write_int8(whole, file, ranging_arrays())
    facts.operators = dict(sorted(check_operators(onnx.load(file), OPSET).items()))


def _ranging_arrays(parts, form, reference):
    """Arrays of RANGED samples of the run's train shards; where these are not there, of its val shards."""
    loader = parts.loader
    try:
        if not parts.train_shards:
            raise InputError("the run recorded no train shards")
        options = replace(parts.options, val_shards=parts.train_shards, shards=())
        _, loader, _ = make_loaders(options, "cpu", want_train=False, needs=parts.network.needs)
    except InputError as error:
        say(f"note: int8's ranges are found on val samples: {error}")
    feeds = Feeds(parts.network, loader, parts.grid, form)
    numbers = feeds.spread(RANGED)
    samples = progress(feeds(numbers), "samples", "ranges", len(numbers))
    return [{name: tensors[name].numpy() for name in reference.inputs} for _, tensors in samples]


def _in_time(samples):
    """Those of the samples that are asked for within LIMIT_S, and LEAST of them."""
    began = time.monotonic()
    for number, sample in enumerate(samples):
        if number >= LEAST and time.monotonic() - began > LIMIT_S:
            return
        yield sample


def _measured(reference, file, feeds, count, facts):
    """Comparison of a file, and into the Facts those of batches. Raises ValueError where float32 differs by over the bound."""
    run = open_file(file, threads=torch.get_num_threads())
    numbers = feeds.spread({"all": len(feeds.numbers), "": MOST}.get(count, count))
    samples = progress(feeds(numbers), "samples", "beside PyTorch", len(numbers))
    found = compare(reference, run, samples if count else _in_time(samples), keep=MOST)
    few = found.samples < len(numbers)
    facts.batches = check_batches(run, reference, found.kept[: LEAST if few else MOST], feeds.grid.Z * feeds.grid.X)
    worst = max([*found.differences.values(), *facts.batches.values()])
    if facts.precision == "fp32" and worst > facts.bound:
        key, tensors, _ = found.kept[0]
        raise InputError(
            f"the exported {file.name} differs from PyTorch by up to {worst:.1e}, more than {facts.bound:.0e}: "
            f"{', '.join(f'{name} {value:.1e}' for name, value in found.differences.items())}; "
            f"in batches of {', '.join(f'{size} {value:.1e}' for size, value in facts.batches.items())}; of {key} PyTorch "
            f"differs from itself, without oneDNN, by {own_spread(reference, tensors):.1e}: where that is as much, it is "
            "rounding, and --bound lets it pass"
        )
    return found
