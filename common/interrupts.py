"""Commands that Ctrl-C ends in one plain line, with the exit code that shells know it by, whatever they are doing."""

import os
import signal
import sys

import click

from common.spelling import Command

CODE = 128 + signal.SIGINT
_LINE = "stopped by SIGINT"


def end_at_once():
    """Until a command does its own work, mostly while modules are imported, Ctrl-C ends the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(_number, _frame):
    os.write(2, f"{_LINE}\n".encode())
    os._exit(CODE)


class Interruptible(Command):
    """For click.command's `cls`."""

    def invoke(self, context):
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            click.echo(_LINE, err=True)
            sys.exit(CODE)
