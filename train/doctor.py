"""python -m train.doctor: what this machine can do, whether shards can be read, and whether a batch fits."""

import sys
from pathlib import Path

from common.addresses import is_pipe, is_remote
from common.errors import InputError
from common.plain import one_line
from common.progress import say
from common.spelling import spelled
from train.command import fail_in_one_line, from_config, options_command
from train.jobs import examination
from train.jobs.examination import Finding
from train.options import Options
from train.runs import find_run

_WIDTH = 11  # columns of the names


@options_command(argument=("WHAT", "init_dir"))
def main(given):
    """Say what this machine can do, and what to do about what it cannot, line by line.

    WHAT: shards (a folder, a path, an address, a pattern in quotes), or a run (its folder, name or a checkpoint). Of shards it
    says what they hold and whether they can be read, of a run its options and shards. Whether a batch fits goes by the run's
    options and those given. Ends with exit code 1 where a command would fail.
    """
    options, run, named = fail_in_one_line(lambda: _looked_up(given))
    if not fail_in_one_line(lambda: examine(options, run, named)):
        sys.exit(1)


def _looked_up(given):
    """(Options, the run's folder or None, whether WHAT are shards). Raises ValueError."""
    word = given.pop("init_dir", "")
    if not word:
        return Options(**from_config(given)), None, False
    runs = given.get("ckpt_dir", Options.ckpt_dir)
    if not _is_run(word, runs):
        if not (is_remote(word) or is_pipe(word) or any(c in word for c in "*?[{<,") or Path(word).exists()):
            raise InputError(f"WHAT {word}: there are no such shards, and no run of this name in {runs}")
        return Options(**from_config({**given, "shards": (word,)})), None, True
    found = Path(find_run(word, runs, "WHAT"))
    folder = found.parent if found.is_file() else found
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder}: no config.yaml, which says a run's options; give --config, or the options themselves"
        )
    recorded = {"init_dir": "", "resume": "", "config": str(folder / "config.yaml")}
    return Options(**from_config(recorded | given)), folder, False


def _is_run(word, ckpt_dir):
    path = Path(word)
    if not path.exists():
        return len(path.parts) == 1 and Path(ckpt_dir, word).is_dir()
    return path.suffix == ".pth" or any(path.glob("model-*.pth")) or any(path.glob("[tv]/events*"))


def examine(options, run, named):
    """Print the findings; whether no command would fail. run: folder or None. named: shards were, as a whole."""
    found = []
    for finding in _findings(options, run, named):
        found.append(finding)
        text = finding.text + (f"; {finding.remedy}" if finding.remedy else "")
        say(f"{'! ' if finding.stops else '  '}{finding.name:<{_WIDTH}}{one_line(text)}", to_stdout=True)
    stops = [finding.name for finding in found if finding.stops]
    if stops:
        say(f"to be mended first: {', '.join(stops)}", to_stdout=True)
    return not stops


def _findings(options, run, named):
    yield from examination.versions()
    yield from examination.places(options)
    if run is not None:
        yield from examination.run_options(options, run)
    if run is not None or named or options.shards or Path(options.data_dir).is_dir():
        yield from examination.shards_of(options, named)
    else:
        yield Finding("shards", "none named", f"{spelled('train.doctor')} SHARDS says what they hold")
    try:
        from train.jobs import device_check  # loads torch, which takes seconds
    except (ImportError, OSError) as error:  # of a library that it is made of
        yield Finding("torch", f"does not load ({error})", "install it anew: make setup", True)
        return
    yield from device_check.devices(options)
    yield device_check.batch(options)


if __name__ == "__main__":
    main()
