"""What the commands share: options on the command line and from files, help in groups, errors in one line."""

import sys
from dataclasses import fields
from pathlib import Path

import click
import torch
import yaml

from train import checkpoint, distributed, signals
from train.distributed import say
from train.errors import DataError, Interrupted, NotFinite, PeerFailed, PeersLost, Stopped
from train.options import FREE_ON_RESUME, GROUPS, Options, coerce


class GroupedCommand(click.Command):
    """A command whose help lists the options by group, each in one spelling."""

    def format_options(self, ctx, formatter):
        rows = {group: [] for group in GROUPS}
        for parameter in self.params:
            if isinstance(parameter, OptionOfGroup) and not parameter.hidden:
                rows[parameter.group].append((parameter.spelling(), parameter.text()))
        for group, title in GROUPS.items():
            if rows[group]:
                with formatter.section(title):
                    formatter.write_dl(rows[group], col_max=34)


class OptionOfGroup(click.Option):
    """One field of Options. Values stay as typed; `coerce` makes them."""

    def __init__(self, field, hidden):
        names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
        kind = {"is_flag": False, "flag_value": "true"} if field.type is bool else {}
        super().__init__(
            [*names, field.name], default=None, hidden=hidden, multiple=field.name in ("shards", "val_shards"), **kind
        )
        self.field, self.group = field, field.metadata["group"]

    def spelling(self):
        """Name and what it takes, for the help."""
        takes = {bool: "BOOL", int: "INT", float: "NUMBER", str: "TEXT", tuple: "A,B,.."}[self.field.type]
        return f"--{self.field.name} {takes}"

    def text(self):
        """Meaning and default, for the help."""
        default = self.field.default
        shown = (
            ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in default)
            if self.field.type is tuple
            else default
        )
        return self.field.metadata["help"] + (f"  [{shown}]" if shown != "" else "")


def options_command(hide=()):
    """Decorator: a click command with every field of Options, spelled with _ or -.

    The function gets a dict of the options that were given, coerced. hide: groups and names that the help leaves out.
    """

    def decorate(function):
        def callback(**values):
            fail_in_one_line(lambda: function(_given(values)))

        command = GroupedCommand(
            function.__name__,
            callback=callback,
            help=function.__doc__,
            context_settings={"max_content_width": 100},
            params=[OptionOfGroup(f, f.name in hide or f.metadata["group"] in hide) for f in fields(Options)],
        )
        module = function.__globals__["__spec__"].name  # __module__ is __main__ where it runs
        return lambda: command.main(args=join_words(sys.argv[1:]), prog_name=f"python -m {module}")

    return decorate


def _given(values):
    return {name: coerce(name, value) for name, value in values.items() if value is not None and value != ()}


def join_words(arguments):
    """Words after --shards and --val_shards, as a shell's {} range leaves them, become options of their own."""
    out, current = [], None
    for word in arguments:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            current = word if not equals and name in ("--shards", "--val_shards", "--val-shards") else None
            out += [] if current else [word]
        else:
            out += [current, word] if current else [word]
    return out


def from_config(given):
    """The given options over those of the file that `config` names. Raises ValueError."""
    path = given.get("config")
    if not path:
        return given
    try:
        recorded = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a readable YAML or JSON file ({error})") from None
    if not isinstance(recorded, dict):
        raise ValueError(f"{path}: not a mapping of option names to values")
    return {**_known(recorded, path), **given}


def from_run(given):
    """The given options over those of the run that `resume` names.

    Raises ValueError for an option that would make it another run.
    """
    run = Path(given["resume"])
    if (run / "config.yaml").is_file() and not any(run.glob("model-*.pth")):
        raise ValueError(f"{run}: ended before its first checkpoint; begin it again with --config {run}/config.yaml")
    recorded = checkpoint.read(run).get("options")
    if recorded is None:
        raise ValueError(f"{run}: its checkpoint records no options; use --init_dir")
    recorded = _known(recorded, run)
    for name, value in given.items():
        if name not in FREE_ON_RESUME and recorded.get(name, value) != value:
            raise ValueError(
                f"--{name} {value}: the run to resume has {recorded[name]}; leave it out, or begin another run with "
                "--init_dir and --load_step"
            )
    return {**recorded, **given}


def _known(recorded, source):
    names = {item.name for item in fields(Options)}
    for name in recorded:
        if name not in names:
            raise ValueError(f"{source}: {name} is not an option; see --help")
    try:
        return {name: coerce(name, value) for name, value in recorded.items()}
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def launch(target, options):
    """Run target(options, world) in a process a device, as the options say; see distributed.launch.

    Raises ValueError: options that do not fit together, or this machine.
    """
    size = distributed.count_processes(options.device, options.device_ids)
    options.validate(size)
    device = distributed.pick_device(options.device, options.device_ids)
    if options.sync_bn and device.type != "cuda":
        raise ValueError("--sync_bn needs CUDA devices; leave it out")
    devices = distributed.Devices(options.device, options.device_ids, size)
    return distributed.launch(target, (options,), devices, fail_in_one_line)


def fail_in_one_line(action):
    """Run action(); bad input ends with one line and exit code 1, a signal with its own code.

    What all ranks meet alike is said once, what one alone met by that one.
    """
    try:
        with signals.interrupting():
            return action()
    except (Stopped, Interrupted) as ended:
        signals.ignore()
        say(f"{ended}")
        sys.exit(ended.code)
    except PeerFailed:
        sys.exit(1)
    except (ValueError, NotFinite, DataError, OSError, PeersLost, torch.OutOfMemoryError) as error:
        text = _one_line(error)
        if isinstance(error, torch.OutOfMemoryError):
            text = f"out of memory on the device; lower --batch_size or --res_scale ({text[:120]})"
        # Before the ranks have met, they all read the same command line; a machine has its own disk.
        same = "node" if isinstance(error, ValueError) and not distributed.joined() else "process"
        say(f"error: {text}", "run" if isinstance(error, NotFinite) else same)
        sys.exit(1)


def _one_line(error):
    return " ".join(str(error).split())
