"""Options and commands as people type them."""

import difflib
import os

import click

# For a click command's context_settings: _ and - are one in options' names.
EITHER = {"token_normalize_func": lambda name: name.replace("_", "-")}

# Of `bevshards COMMAND`: module and meaning.
COMMANDS = {
    "demo": ("train.demo", "a generated world to a trained network, without any data"),
    "doctor": ("train.doctor", "what this machine can do, and whether a batch fits"),
    "train": ("train.run", "shards -> a trained network"),
    "evaluate": ("train.evaluate", "IoU of a checkpoint on the val set, with breakdowns"),
    "compare": ("train.compare", "two evaluations side by side, with intervals"),
    "show": ("train.show", "a sample as a picture, a scene as a video"),
    "report": ("train.report", "evaluated runs as one HTML page"),
    "export": ("train.export", "a network for other runtimes"),
    "shards": ("preprocess.run", "nuScenes -> shards"),
    "verify": ("preprocess.verify", "check shards: indexes, checksums, every member"),
    "index": ("preprocess.index", "rebuild the indexes of shards from the tars"),
    "show-shards": ("preprocess.show", "what shards hold"),
    "maps": ("preprocess.maps", "add the map to finished shards"),
    "layer": ("preprocess.layer", "add another layer to finished shards"),
    "synth": ("preprocess.synth", "a generated world in nuScenes' layout"),
}
BY_NAME = "BEVSHARDS_BY_NAME"  # in the environment, so that processes which a command starts know it too
_LIKE_ENOUGH = 0.8  # of difflib's ratio; less is another word
_PREFIX = 3  # letters that say which word is meant


def spelled(module):
    """A command for messages, as this process was called: `bevshards train` or `python -m train.run`.

    Where a file of the user's hides the folder `train`, only the first of them works.
    """
    names = {place: name for name, (place, _) in COMMANDS.items()} if BY_NAME in os.environ else {}
    return f"bevshards {names[module]}" if module in names else f"python -m {module}"


def nearest(word, known):
    """The name that is meant by a word, or None where none is like it.

    known: mapping from a spelling, any of several for one name, to the name.
    """
    plain = {_plain(spelling): name for spelling, name in known.items()}
    word = _plain(word)
    if found := difflib.get_close_matches(word, plain, 1, _LIKE_ENOUGH):
        return plain[found[0]]
    begun = {name for spelling, name in plain.items() if len(word) >= _PREFIX and spelling.startswith(word)}
    return begun.pop() if len(begun) == 1 else None


def _plain(word):
    return word.replace("-", "").replace("_", "").lower()


def parsed(parse):
    """Callback of a click option: what parse(text) gives; its ValueErrors are told as of the option."""

    def callback(_context, _parameter, value):
        try:
            return parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return callback


class Command(click.Command):
    """A click command that answers a mistyped option with the nearest one, spelled as in its help."""

    def parse_args(self, ctx, args):
        """As click.Command."""
        words = list(args)  # which the parser empties
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = {}
            for option in (p for p in self.get_params(ctx) if isinstance(p, click.Option)):
                known |= dict.fromkeys((*option.opts, *getattr(option, "also", ())), option.opts[0])
            # The parser has made one of _ and -.
            typed = {EITHER["token_normalize_func"](word.partition("=")[0]): word.partition("=")[0] for word in words}
            meant = nearest(error.option_name, known)
            message = f"no such option {typed.get(error.option_name, error.option_name)}"
            if meant:
                message += f"; did you mean {meant}?"
            raise click.NoSuchOption(error.option_name, message, ctx=ctx) from None
