"""What the commands share: options on the command line and from files, help in groups, errors in one line."""

import sys
import traceback
from dataclasses import fields
from pathlib import Path

import click
import yaml

from common.errors import InputError
from common.plain import one_line
from common.spelling import EITHER, Command, spelled
from train.errors import Interrupted, NotFinite, PeerFailed, Stopped
from train.faults import told_in_a_line
from train.options import GROUPS, Options, check_visibility, coerce, is_bool, of_today
from train.processes import ranks, signals
from train.processes.ranks import say
from train.runs import find_run

_TYPED = "train.command: the words of the command line"


class GroupedCommand(Command):
    """A command whose help lists the options by group, each in one spelling, and of a network that is named its own."""

    def parse_args(self, ctx, args):
        """As click.Command; what was typed is there for the help, which click shows before it knows any value."""
        ctx.meta[_TYPED] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx, formatter):
        rows = {group: [] for group in GROUPS}
        for parameter in self.params:
            if isinstance(parameter, OptionOfGroup) and not parameter.hidden:
                rows[parameter.group].append((parameter.spelling(), parameter.text()))
        sections = {title: rows[group] for group, title in GROUPS.items()}
        own = [p for p in self.params if isinstance(p, click.Option) and not isinstance(p, OptionOfGroup)]
        sections["Of this command"] = [r for p in own if p.name != "help" and (r := p.get_help_record(ctx))]
        sections |= fail_in_one_line(lambda: _own_options(ctx.meta.get(_TYPED, ())))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=34)


def _own_options(words):
    """{title: (name, meaning) of each option} of the network that the words of a command line name. Raises ValueError."""
    named = [value for word, value in zip(words, words[1:], strict=False) if word == "--model"]
    named += [word.partition("=")[2] for word in words if word.startswith("--model=")]
    if not named:
        return {}
    from train.model.arguments import described  # these load torch, and the network's own file
    from train.model.interface import find_network

    return {f"Network {named[-1]}, in --model_args": described(find_network(named[-1]))}


class OptionOfGroup(click.Option):
    """One field of Options. Values stay as typed; `coerce` makes them. Some have a value that stands for the bare name."""

    def __init__(self, field, hidden):
        bare = "true" if field.type is bool else {"run_name": "dated"}.get(field.name)
        kind = {"is_flag": False, "flag_value": bare} if bare else {}
        several = field.name in ("shards", "val_shards")
        super().__init__([f"--{field.name}", field.name], default=None, hidden=hidden, multiple=several, **kind)
        self.field, self.group, self.also = field, field.metadata["group"], field.metadata["also"]

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


def options_command(hide=(), argument=None, extra=()):
    """Decorator: a click command with every field of Options, spelled with _ or -.

    The function gets a dict of the options that were given, coerced, and what was given to `extra`, click.Options of its own,
    by name. hide: groups and names that the help leaves out. argument: (name in the help, option) for an option that may be
    given without its name.
    """

    def decorate(function):
        def callback(**values):
            own = {option.name: values.pop(option.name) for option in extra}
            function(fail_in_one_line(lambda: _given(values, argument)), **own)

        words = [click.Argument([argument[0].lower()], required=False)] if argument else []
        command = GroupedCommand(
            function.__name__,
            callback=callback,
            help=function.__doc__,
            context_settings={**EITHER, "max_content_width": 100},
            params=[
                *words,
                *(
                    OptionOfGroup(f, f.name in hide or f.metadata["group"] in hide)
                    for f in fields(Options)
                    if f.metadata["typed"]
                ),
                *extra,
            ],
        )
        module = function.__globals__["__spec__"].name  # __module__ is __main__ where it runs
        return lambda: command.main(
            args=join_words(sys.argv[1:], alone=argument is not None), prog_name=spelled(module)
        )

    return decorate


def _given(values, argument=None):
    """The options given, coerced, with what goes without saying."""
    if argument:
        name, option = argument
        word = values.pop(name.lower())
        if word is not None and values[option] not in (None, word):
            raise InputError(f"{name} is {word} and --{option} {values[option]}; leave one out")
        values[option] = word or values[option]
    given = {name: coerce(name, value) for name, value in values.items() if value is not None and value != ()}
    if "min_visibility" in given and "protocol" not in given:
        say(f"note: --protocol min_visibility, to which --min_visibility {given['min_visibility']} belongs")
        given["protocol"] = "min_visibility"
    if "protocol" in given:
        given.setdefault("min_visibility", 1)  # a file's belongs to the file's protocol
        check_visibility(given["protocol"], given["min_visibility"])
    return given


def join_words(arguments, alone=False):
    """Words after --shards and --val_shards, as a shell's {} range leaves them, become options of their own.

    alone: a word may stand by itself; where a BOOL is given without a value, the word after it is none.
    """
    switches = {f"__{item.name}" for item in fields(Options) if item.type is bool} if alone else ()
    out, current = [], None
    for word, after in zip(arguments, [*arguments[1:], "-"], strict=False):
        if word.replace("-", "_") in switches and not after.startswith("-") and not is_bool(after):
            word = f"{word}=true"
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            current = word if not equals and name.replace("-", "_") in ("__shards", "__val_shards") else None
            out += [] if current else [word]
        else:
            out += [current, word] if current else [word]
    return out


def from_config(given, called=None):
    """The given options over those of the file that `config` names, with runs found where they lie.

    called: name of an option -> what a user gave it as, where that is not the option. Raises ValueError.
    """
    called = called or {}
    path = given.get("config")
    if path:
        path = Path(path, "config.yaml") if Path(path).is_dir() else path
        try:
            recorded = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: not a readable YAML or JSON file ({error})") from None
        if not isinstance(recorded, dict):
            raise InputError(f"{path}: not a mapping of option names to values")
        given = {**known_options(recorded, path, strict=True), **given}
    for name in ("exp_name", "run_name"):
        if "/" in given.get(name, ""):
            word = given[name].strip("/").replace("/", "_")
            raise InputError(
                f"--{name} {given[name]}: it names one folder, no path; write --{name} {word}, and --ckpt_dir for a path"
            )
    runs = given.get("ckpt_dir", Options.ckpt_dir)
    return given | {
        name: find_run(given[name], runs, called.get(name, f"--{name}"))
        for name in ("resume", "init_dir")
        if given.get(name)
    }


def commands_among(recorded):
    """The pipe: commands among recorded options of shards."""
    words = [recorded.get(name, ()) for name in ("shards", "val_shards", "data_dir")]
    words = [word for value in words for word in ([value] if isinstance(value, str) else value)]
    return [word for word in words if word.strip().lower().startswith("pipe:")]


def known_options(recorded, source, strict):
    """What options.of_today makes of the options of a file or a checkpoint; the notes are said. Raises ValueError."""
    try:
        known, notes = of_today(recorded, strict)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    for note in notes:
        say(f"note: {source}: {note}")
    return known


def fail_in_one_line(action):
    """Run action(); bad input ends with one line and exit code 1, a fault with its traceback, a signal with its own code.

    What all ranks meet alike is said once, what one alone met by that one.
    """
    try:
        with signals.interrupting():
            return action()
    except (Stopped, Interrupted) as ended:
        signals.ignore()
        # All ranks save together; a signal that ended one otherwise may have been sent to it alone.
        alone = isinstance(ended, Interrupted) and ranks.joined()
        _say_with_notes(f"{ended}", ended, "process" if alone else "run")
        sys.exit(ended.code)
    except PeerFailed as failed:
        _say_with_notes("", failed)
        sys.exit(failed.code)
    except Exception as error:
        out_of_memory = _is_out_of_memory(error)
        # Before the ranks have met, they all read the same command line; a machine has its own disk.
        same = "node" if isinstance(error, ValueError) and not ranks.joined() else "process"
        if not (out_of_memory or told_in_a_line(error)):
            # Here, since click would make one word of some kinds. Notes are part of it.
            say("".join(traceback.format_exception(error)).rstrip(), same)
            sys.exit(1)
        text = one_line(error)
        if out_of_memory:
            text = f"out of memory on the device; lower --batch_size or --res_scale ({text[:120]})"
        _say_with_notes(f"error: {text}", error, "run" if isinstance(error, NotFinite) else same)
        sys.exit(1)


def _is_out_of_memory(error):
    torch = sys.modules.get("torch")  # which nothing here loads
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _say_with_notes(text, error, once_per="run"):
    """The text, then what was noted about the error on its way."""
    for shown in filter(None, (text, *getattr(error, "__notes__", ()))):
        say(shown, once_per)
