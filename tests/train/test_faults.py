"""A line for what this project says on purpose; a traceback for what happens inside other code."""

import pytest

from common.errors import InputError
from train.command import fail_in_one_line
from train.errors import DataError
from train.options import Options

NETWORK = """
import json

def unpack():
    a, b = 1, 2, 3

def read():
    open("/nonexistent/depth.npy")

def end():
    raise EOFError

def number():
    return int("four")

def ours(call):
    call()
"""


@pytest.fixture(scope="module")
def theirs():
    scope = {}
    exec(compile(NETWORK, "/elsewhere/mynet.py", "exec"), scope)
    return scope


def told(action, capsys):
    with pytest.raises(SystemExit) as ended:
        fail_in_one_line(action)
    assert ended.value.code == 1
    return capsys.readouterr().err


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize("name", ["unpack", "read", "end", "number"])
def test_a_fault_in_a_network_shows_its_file_and_line(theirs, name, capsys):
    text = told(lambda: theirs[name](), capsys)
    assert "/elsewhere/mynet.py" in text and f", in {name}" in text and "Traceback" in text


def test_our_own_errors_take_a_line_unless_other_code_asked_for_them(theirs, capsys):
    for error in (InputError("no such shard"), DataError("a bad sample"), FileNotFoundError(2, "not there", "a.tar")):
        assert told(raising(error), capsys).startswith("error: ") and error.__traceback__ is not None
    assert "/elsewhere/mynet.py" in told(lambda: theirs["ours"](raising(InputError("asked wrongly"))), capsys)
    assert told(lambda: Options(precision="fp16"), capsys).startswith("error: --precision fp16")


def test_notes_come_with_a_traceback_too(theirs, capsys):
    def action():
        try:
            theirs["unpack"]()
        except ValueError as error:
            error.add_note("go on with --resume")
            raise

    assert told(action, capsys).rstrip().endswith("go on with --resume")
