"""What the tests of preprocessing share: the command, its errors, and tables changed by hand."""

import json

from click.testing import CliRunner

from preprocess.run import main
from tests.conftest import call_module


def command(dataroot, out, *more):
    fixed = ["--version", "v1.0-mini", "--sweeps", "2"] if "--version" not in more else ["--sweeps", "2"]
    return ["preprocess.run", *fixed, "--dataroot", dataroot, "--out", out, *more]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def fails(*arguments):
    result = call_module(*arguments, check=False)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 1 and len(lines) == 1, result.stderr
    return lines[0]


def table(folder, name):
    return folder / "v1.0-mini" / f"{name}.json"


def rewrite(folder, name, change):
    rows = json.loads(table(folder, name).read_bytes())
    change(rows)
    table(folder, name).write_text(json.dumps(rows))


def run_here(*arguments):
    """preprocess.run with these arguments, in this process: result with exit_code, stdout, stderr."""
    result = CliRunner().invoke(main, [*map(str, command(*arguments)[1:]), "--workers", "1"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def says_no(*arguments):
    """The one line with which preprocess.run, in this process, refuses."""
    result = run_here(*arguments)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1 and len(lines) == 1, result.output
    return lines[0]
