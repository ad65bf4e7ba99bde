"""Answers before imports: help, versions, typos and paths that are not there are told without loading torch."""

import json
import subprocess
import sys

import pytest

from common.spelling import COMMANDS, nearest
from tests.conftest import REPOSITORY
from train import options
from train.model import encoder_types

# In one process, a command after another; what each wrote, and whether anything has loaded torch by then.
ASK = """
import contextlib, io, json, sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd() / "common" / "entry"))
import bevshards

for words in json.loads(sys.argv.pop()):
    sys.argv[:], told = ["bevshards", *words], io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            bevshards.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([words, code if isinstance(code, int) else str(code), told.getvalue(), "torch" in sys.modules]))
"""
HERE = [name for name in COMMANDS if (REPOSITORY / COMMANDS[name][0].replace(".", "/")).with_suffix(".py").is_file()]
WRONG = {
    ("tran",): "tran is no command; did you mean train?",
    ("eval",): "eval is no command; did you mean evaluate?",
    ("sharts",): "did you mean shards?",
    ("xylophone",): "xylophone is no command; it is one of ",
    ("train", "--batchsize", "3"): "no such option --batchsize; did you mean --batch_size?",
    ("train", "--lerning_rate=3"): "no such option --lerning_rate; did you mean --lr?",
    ("evaluate", "--batch-siz=3"): "no such option --batch-siz; did you mean --batch_size?",
    ("shards", "--imagesize", "3x3"): "no such option --imagesize; did you mean --image-size?",
    ("show", "--outt", "a"): "no such option --outt; did you mean --out?",
    ("train", "--xylophone", "3"): "no such option --xylophone\n",
    ("train", "--shards", "nowhere"): "no shard matches 'nowhere'",
    ("train", "--shards", "{shards}/train-*.tar", "--val_shards", "nowhere"): "no shard matches 'nowhere'",
    (
        "train",
        "--shards",
        "{shards}",
        "--backbone_weights",
        "nowhere",
    ): "--backbone_weights nowhere: there is no such file",
    ("train", "--shards", "{shards}", "--model_args", "nowhere"): "--model_args nowhere: ",
    ("train", "--resume", "nowhere"): "--resume nowhere: there is no such file or folder",
    ("train", "--init_dir", "nowhere"): "--init_dir nowhere: there is no such file or folder",
    ("train", "--config", "nowhere"): "nowhere: not a readable YAML or JSON file",
    ("train", "--lr", "0"): "--lr 0.0 must be positive",
    ("evaluate", "nowhere"): "RUN nowhere: there is no such file or folder",
    ("evaluate",): "give a run's folder or a checkpoint file",
    ("compare", "nowhere", "nowhere"): "nowhere: there is no such file or folder",
    ("doctor", "nowhere"): "WHAT nowhere: there are no such shards, and no run of this name in checkpoints",
    ("export", "nowhere"): "RUN nowhere: there is no such file or folder",
    ("export",): "give a run's folder or a checkpoint file",
    ("evaluate", "--exported", "nowhere.onnx"): "card.json: not the card of an export",
    ("report", "nowhere"): "nowhere: there is no such file or folder",
    ("show", "nowhere"): "no shard matches 'nowhere'",
    ("show", "{shards}", "--out", "a.bmp"): "--out a.bmp: a picture ends in ",
    ("show", "{shards}", "0", "--run", "nowhere"): "--run nowhere: there is no such file or folder",
    ("shards", "--version", "v1.0-mini", "--dataroot", "nowhere"): "nowhere: no such folder",
    ("show-shards", "nowhere"): "no shard matches 'nowhere'",
    ("verify", "nowhere"): "no shard matches 'nowhere'",
    ("index", "nowhere"): "no shard matches 'nowhere'",
}


@pytest.fixture
def bevshards(tmp_path):
    """Function from lists of words to [words, exit code or what sys.exit was given, text, torch is loaded] of each command."""
    (tmp_path / "bevshards").symlink_to(REPOSITORY / "common" / "entry")

    def ask(commands):
        code = ASK.replace('Path.cwd() / "common" / "entry"', f"{str(tmp_path)!r}")
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore::RuntimeWarning",
                "-c",
                code,
                json.dumps(commands),
            ],  # which runpy meets twice here
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def test_help_typos_and_wrong_paths_are_answered_without_torch(bevshards, small_shards):
    helped = [[], ["--help"], ["--version"], *([name, "--help"] for name in HERE)]
    wrong = {tuple(word.format(shards=small_shards) for word in words): told for words, told in WRONG.items()}
    answers = bevshards([*helped, *wrong])
    for words, code, text, loaded in answers[: len(helped)]:
        assert code == 0 and not loaded and text.startswith(("Usage: bevshards", "bevshards ")), (words, text)
    assert {"train", "evaluate", "compare"} <= set(HERE)
    for (words, code, text, loaded), told in zip(answers[len(helped) :], wrong.values(), strict=True):
        assert told in (code if isinstance(code, str) else text) and code != 0 and not loaded, (words, code, text)


def test_what_is_meant_by_a_word():
    known = {name: name for name in ("--batch_size", "--lr", "--nsweeps", "--val_shards", "--shards")} | {
        "learning_rate": "--lr"
    }
    for word, want in (
        ("--batch-size", "--batch_size"),
        ("--BatchSize", "--batch_size"),
        ("--lerning_rate", "--lr"),
        ("--nsweep", "--nsweeps"),
        ("--shard", "--shards"),
        ("--valshards", "--val_shards"),
        ("--batch", "--batch_size"),  # begins one name alone
        ("--val", "--val_shards"),
        ("--b", None),
        ("--colour", None),
        ("--sweeping", None),
    ):
        assert nearest(word, known) == want, word


def test_options_name_the_encoders_that_there_are():
    assert options.ENCODERS == encoder_types.ENCODERS
