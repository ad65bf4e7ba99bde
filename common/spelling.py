"""Options and commands as people type them."""

import os

# For a click command's context_settings: _ and - are one in options' names.
EITHER = {"token_normalize_func": lambda name: name.replace("_", "-")}

# Of `bevshards COMMAND`: module and meaning.
COMMANDS = {
    "train": ("train.run", "shards -> a trained network"),
    "evaluate": ("train.evaluate", "IoU of a checkpoint"),
    "compare": ("train.compare", "two evaluations beside each other"),
    "show": ("train.show", "pictures of a sample"),
    "report": ("train.report", "a run as a page"),
    "export": ("train.export", "a network for other runtimes"),
    "demo": ("train.demo", "a small training, before and after"),
    "shards": ("preprocess.run", "nuScenes -> shards"),
    "verify": ("preprocess.verify", "read all of some shards again"),
    "index": ("preprocess.index", "rebuild the index of a shard"),
    "show-shards": ("preprocess.show", "what is in shards"),
    "synth": ("preprocess.synth", "a generated nuScenes folder"),
}
BY_NAME = "BEVSHARDS_BY_NAME"  # in the environment, so that processes which a command starts know it too


def spelled(module):
    """A command for messages, as this process was called: `bevshards train` or `python -m train.run`.

    Where a file of the user's hides the folder `train`, only the first of them works.
    """
    names = {place: name for name, (place, _) in COMMANDS.items()} if BY_NAME in os.environ else {}
    return f"bevshards {names[module]}" if module in names else f"python -m {module}"
