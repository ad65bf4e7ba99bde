"""What the commands of this package share: errors in one line, and options that several of them have."""

import sys

import click

from common.interrupts import CODE
from common.plain import one_line
from common.shard_index import ShardError
from preprocess.errors import SourceError
from preprocess.workers import CORES

store_option = click.option(
    "--store-options",
    default="",
    show_default=False,
    help="JSON object, or a file with one, for the store of an address",
)
shards_option = click.option(
    "--shards", "patterns", multiple=True, default=("shards",), help="folder, paths or addresses of shards"
)
workers_option = click.option("--workers", default=CORES, type=click.IntRange(1), help="processes", show_default=True)
scheduler_option = click.option(
    "--scheduler", default="", show_default=False, help="a Dask scheduler (tcp://host:8786) that runs the work instead"
)
_overwrite = click.option("--overwrite", is_flag=True, help="replace a layer made with other options")


def layer_work(command):
    """Options of how a layer is made: workers, scheduler, overwrite, store_options."""
    for option in (store_option, _overwrite, scheduler_option, workers_option):  # help shows the last one first
        command = option(command)
    return command


def fail_in_one_line(run, place, remedy=None, goes_on=True):
    """What run() returns; what a user can mend ends the process with one line instead.

    place: named where an OSError names no file. remedy: function of an error to what its line says besides. goes_on: whether
    the same command goes on after Ctrl-C, which is then said.
    """
    try:
        return run()
    except (SourceError, ShardError, ValueError) as error:
        _fail(f"{error}{remedy(error) if remedy else ''}")
    except OSError as error:
        _fail(f"{error.filename or place}: {error.strerror or error}")
    except KeyboardInterrupt:
        if not goes_on:
            raise
        _fail("interrupted; the same command continues", CODE)


def _fail(text, code=1):
    click.echo(f"error: {one_line(text)}", err=True)
    sys.exit(code)
