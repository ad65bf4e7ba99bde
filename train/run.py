"""python -m train.run: shards -> a trained network."""

from train.command import fail_in_one_line, from_config, options_command
from train.options import Options
from train.paths import check_paths
from train.runs import model_name

__all__ = ["main", "model_name", "train"]


@options_command()
def main(given):
    """Train a bird's-eye-view segmentation network on shards.

    Names may have - for _. BOOL may be left out for True; lists are 0,1 or [0,1].
    """
    given = fail_in_one_line(lambda: _looked_up(given))
    from train.jobs import training  # loads torch, which takes seconds

    fail_in_one_line(lambda: training.train(training.read_options(given)))


def _looked_up(given):
    """The given options with those of --config, once all paths are known to be there. Raises ValueError."""
    given = from_config(given)
    if not given.get("resume"):  # its options lie in its checkpoint
        options = Options(**given)
        options.validate()
        check_paths(options)
    return given


def train(options, build=None):
    """Train as the options say, a process per device; returns the last checkpoint's path (None of new processes).

    build: the network's factory, in the place of --model. It is recorded by the name under which it can be imported.

    Raises ValueError for wrong arguments, among them a factory that new processes cannot import.
    """
    from train.jobs import training

    return training.train(options, build)


if __name__ == "__main__":
    main()
