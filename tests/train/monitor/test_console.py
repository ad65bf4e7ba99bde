"""What commands say while they work: widths, how often, on a terminal and in a log, and where a run ends."""

import fcntl
import os
import pty
import re
import signal
import struct
import termios
import time

import pytest
import torch
from click.testing import CliRunner

from common.progress import Left, Pace, Progress, clock, progress
from common.shard_set import find_shards
from preprocess import index, show, verify
from preprocess import run as preprocess
from preprocess.synth.__main__ import main as synth
from tests.conftest import split_file
from tests.processes.client import Process
from tests.train.test_resume import arguments, curves, run_folder
from train.metrics import Segmentation
from train.monitor import console
from train.monitor.console import FIRST_UPDATES, WIDTH, Console, ending, line
from train.monitor.curves import POOL, Pool
from train.options import Options, as_dict
from train.step import TOTAL

LONG = "a_name_that_says_everything_about_the_experiment_and_then_some_more_of_it"
FIGURES = {"rtime": 0.1, "itime": 0.5, "samples_per_s": 123.4, "read_mb_per_s": 1234.0, "data_wait_percent": 20.0}


def pool(*figures):
    """A Pool of (loss, intersection, union), an update each."""
    made = Pool(read=lambda counts: Segmentation().of(counts).figures())
    for loss, both, either in figures:
        made.add({TOTAL: loss}, torch.tensor([both, either], dtype=torch.float64))
    return made


def on_terminal(command, columns=80):
    """What a command writes on a terminal of that width, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = Process(*command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # Linux's end of file
            data = b""
        if not data:
            break
        written += data
    os.close(ours)
    return written.decode(), process.wait(60)


def in_log(tmp_path, *words, after=""):
    """Run into two files; asked to end once `after` is in the first. (stdout, stderr, exit code)."""
    paths = [tmp_path / "stdout.txt", tmp_path / "stderr.txt"]
    with open(paths[0], "w") as out, open(paths[1], "w") as err:
        process = Process("-m", *words, stdout=out, stderr=err)
        deadline = time.monotonic() + 120
        while after and after not in paths[0].read_text():
            assert process.poll() is None and time.monotonic() < deadline, paths[1].read_text()
            time.sleep(0.05)
        if after:
            process.send_signal(signal.SIGTERM)
        code = process.wait(180)
    # Python's text files would take a carriage return for the end of a line.
    return *(path.read_bytes().decode() for path in paths), code


def row_of(text, name):
    """Texts of the rows of that name in an opening and an ending."""
    found = re.findall(rf"^{name} +(\S.*)$", text, re.MULTILINE)
    assert found, (name, text)
    return found


def assert_narrow(text, *whole):
    """No line is wider than WIDTH but for those that hold a path or a command."""
    wide = [row for row in text.splitlines() if len(row) > WIDTH and not any(word in row for word in whole)]
    assert not wide


def test_a_run_in_a_log(synth_shards, tmp_path):
    """Opening, a line for each of the first ten updates, ending; TensorBoard has every update."""
    built_in = "--model simple_bev --encoder_type effb0 --no_pretrained --latent_dim 8".split()
    words = arguments(synth_shards, tmp_path, "--exp_name", LONG, "--max_iters", 12, "--grad_acc", 1, *built_in)
    out, err, code = in_log(tmp_path, *words)
    folder = run_folder(tmp_path)
    assert code == 0 and "\r" not in out + err and len(folder.name) > 80
    assert_narrow(out)
    assert_narrow(err, str(tmp_path))
    steps = [int(number) for number in re.findall(r"^step (\d{6})/12; loss ", out, re.MULTILINE)]
    assert steps[:FIRST_UPDATES] == list(range(1, 11)) and steps[-1] == 12
    for name in ("stats/total_loss", "stats/ce_loss", "stats/center_loss", "stats/offset_loss", "stats/iou"):
        assert [step for step, _ in curves(tmp_path)["t", name]] == list(range(1, 13))
    assert [step for step, _ in curves(tmp_path)["t", "_/grad_norm"]] == list(range(1, 13))
    # The line's figures are this update's and the latest validation's, as the curves have them.
    last, found = out.splitlines()[-1], curves(tmp_path)
    assert f"; IoU {found['t', 'stats/iou'][-1][1]:.3f}, val {found['v', 'stats/iou'][-1][1]:.3f};" in last
    assert row_of(err, "run") == [str(folder)] and row_of(err, "device") == ["cpu, 1 process, fp32"]
    assert row_of(err, "train") == ["20 samples in 2 shards of v1.0-mini"]
    assert row_of(err, "val") == ["4 samples in 1 shard of v1.0-mini; 1 batch every 4 updates, so its"]
    [network] = row_of(err, "network")
    count = sum(value.numel() for name, value in weights(folder).items() if not is_buffer(name))
    assert network == f"simple_bev effb0, {count:,} parameters"
    assert row_of(err, "checkpoint") == [f"{folder}/model-000000012.pth"]
    assert row_of(err, "curves") == [
        str(tmp_path / "logs" / folder.name),
        f"tensorboard --logdir {tmp_path}/logs/{folder.name}",
    ]
    assert row_of(err, "evaluate") == [f"python -m train.evaluate {folder}"]
    assert err.splitlines()[-1].endswith(f"python -m train.run --resume {folder} --max_iters N")


def weights(folder):
    return torch.load(folder / "model-000000012.pth", weights_only=True)["model_state_dict"]


def is_buffer(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_a_stopped_run_says_how_to_go_on(synth_shards, tmp_path):
    words = arguments(synth_shards, tmp_path, "--max_iters", 900, "--do_val", "False", "--grad_acc", 1)
    _, err, code = in_log(tmp_path, *words, after="step 000002/900")
    folder = run_folder(tmp_path)
    assert code == 143 and "\r" not in err
    *_, stopped, checkpoint, _, again = err.splitlines()
    assert stopped == "stopped by SIGTERM; a checkpoint was saved" and f"{folder}/model-" in checkpoint
    assert again.split(maxsplit=2)[2] == f"python -m train.run --resume {folder}"
    step = int(checkpoint[-13:-4])
    _, err, code = in_log(tmp_path, *again.split()[4:], "--max_iters", step + 1)
    assert code == 0 and row_of(err, "updates")[0].startswith(f"1, after {step} that are done; ")


def test_a_failed_run_says_how_to_begin_again(synth_shards, tmp_path):
    words = arguments(synth_shards, tmp_path, "--max_iters", 900, "--do_val", "False", "--lr", "1e38", "--grad_acc", 1)
    _, err, code = in_log(tmp_path, *words)
    folder = run_folder(tmp_path)
    assert code == 1 and "Traceback" not in err and err.count("error: ") == 1
    assert row_of(err, "checkpoint") == [f"none yet in {folder}"]
    assert err.splitlines()[-1].endswith(f"python -m train.run --config {folder}/config.yaml")


TERMINAL = """
from tests.train.monitor.test_console import FIGURES, pool
from train.monitor.console import Console
import time

console = Console(range(24001, 25001), 40, True)
for step in range(24001, 24013):
    console.show(step, FIGURES, {"t": pool((12.5, 1, 2)), "v": pool((9.5, 1, 4))})
    time.sleep(0.1)
console.close()
"""


def test_a_bar_of_80_columns_shows_all_its_figures():
    written, code = on_terminal(["-c", TERMINAL])
    assert code == 0, written
    shown = [part.rstrip() for part in re.split(r"[\r\n]+", written)]
    assert max(map(len, shown)) <= 80
    bar = r"240\d\d/25000 updates, 123\.4 samples/s, 1234 MB/s, wait 20 %, \d+:\d\d left \|.+\|"
    assert re.fullmatch(bar, [part for part in shown if " updates" in part][-1]), shown
    lines = [part for part in shown if part.startswith("step ")]
    assert len(lines) == FIRST_UPDATES and all(
        re.match("step 0240.*; IoU 0.500, val 0.250; 0.500 s each", s) for s in lines[1:]
    )


def test_a_fast_loop_is_thinned(monkeypatch, capsys):
    """One line for each of the first ten updates; later ones by the clock, ever more seldom; the last one."""
    monkeypatch.setattr(console, "PAUSE_S", 0.05)
    monkeypatch.setattr(console, "LONGEST_PAUSE_S", 0.2)
    shown, pools, began = Console(range(1, 2001), 4, True), {"t": pool((1.0, 1, 2))}, time.monotonic()
    for step in range(1, 2001):
        time.sleep(0.0005)
        shown.show(step, FIGURES, pools)
    seconds = time.monotonic() - began
    told = [int(text[5:11]) for text in capsys.readouterr().out.splitlines()]
    assert told[:10] == list(range(1, 11)) and told[-1] == 2000
    assert 12 <= len(told) <= 11 + 3 + seconds / 0.2
    assert shown.speed().startswith("2000 updates in 0:0")


@pytest.mark.parametrize("last", [4, 25000, 10**8])
@pytest.mark.parametrize("loss", [1e-9, 0.51234, 99.999, 123456.7, 1e30])
def test_lines_fit(last, loss):
    text = line(last, last, {"itime": 99.99}, {"t": pool((loss, 1, 2)), "v": pool((loss, 1, 4))}, "600:12:34 left")
    assert len(text) <= WIDTH and text.startswith(f"step {last:06d}/{last}; loss ") and "; IoU 0.500, val 0.250" in text


def test_a_line_is_of_the_last_entries_alone():
    pools = {"t": pool(*[(9.0, 0, 10)] * POOL, (1.0, 5, 10)), "v": pool((9.0, 0, 10), (9.0, 1, 1))}
    assert line(3, 9, {"itime": 1.0}, pools, "") == "step 000003/9; loss 1.000; IoU 0.500, val 1.000; 1.000 s each"
    assert "IoU" not in line(3, 9, {"itime": 1.0}, {"t": without_seg()}, "")


def without_seg():
    made = Pool()
    made.add({TOTAL: 1.0}, torch.zeros(0))
    return made


def test_time_left():
    assert [clock(s) for s in (0.4, 59.6, 754, 216754)] == ["0:00", "1:00", "12:34", "60:12:34"]
    left = Left(100, 60)
    left.since -= 10.0
    assert left.after(60) == "" and left.after(70) == "0:30 left"


def test_a_log_gets_a_line_now_and_then(capsys):
    with Progress(5, "keyframes", "shards") as bar:
        bar.pace = Pace(0.0, 0.0)
        for _ in bar.over(range(5)):
            pass
    *told, ended = capsys.readouterr().err.split("\n")[:-1]
    assert [re.sub(r"\d+:\d\d", "T", text) for text in told] == [
        f"shards: {n} of 5 keyframes, T left" for n in range(1, 5)
    ]
    assert ended == "shards: 5 keyframes in 0:00"
    assert list(progress("abc", "scenes", "world")) == ["a", "b", "c"] and not capsys.readouterr().err


def test_other_commands_write_no_carriage_returns(synth_world, synth_shards, tmp_path):
    splits = split_file(tmp_path, synth_world)
    source = ["--version", "v1.0-mini", "--dataroot", synth_world, *splits]
    commands = {
        synth: ["--out", tmp_path / "world", "--scenes", 4, "--tables-only", *splits],
        preprocess.main: [*source, "--out", tmp_path / "out", "--dry-run"],
        verify.main: [synth_shards, "--workers", 1],
        index.main: [synth_shards],
        show.main: [synth_shards],
    }
    for command, words in commands.items():
        result = CliRunner().invoke(command, list(map(str, words)))
        assert result.exit_code == 0 and "\r" not in result.output, result.output


def test_what_a_checkpoint_may_not_say_is_asked_for(tmp_path):
    folder = tmp_path / "a run"
    options = Options(shards=("pipe:cat a.tar",), store_options="{}", log_dir=str(tmp_path))
    begin = ending(options, folder, done=False)[-1]
    assert begin.endswith(f"train.run --config '{folder}'/config.yaml --shards … --store_options …")
    folder.mkdir()
    (folder / "model-000000003.pth").touch()
    *_, evaluate, again = ending(options, folder, done=True)
    assert evaluate.endswith(f"train.evaluate '{folder}' --val_shards … --store_options …")
    assert again.endswith(f"train.run --resume '{folder}' --max_iters N --shards … --store_options …")


def test_queries_of_signed_addresses_and_passwords_are_not_recorded_and_are_asked_for_again(tmp_path):
    signed = "https://user:hush@host/set/train-<000..099>.tar?sig=hush"
    plain = ("s3://bucket/what?/train-*.tar", "abfs://container@account.dfs.core.windows.net/set/", "pipe:cat a?b.tar")
    options = Options(
        shards=(signed, *plain), val_shards=("https://host/val/?sig=hush",), data_dir="http://host/d?hush"
    )
    recorded = as_dict(options)
    assert recorded["shards"] == ["https://host/set/train-<000..099>.tar", *plain] and "hush" not in str(recorded)
    assert recorded["val_shards"] == ["https://host/val/"] and recorded["data_dir"] == "http://host/d"
    options = Options(shards=("https://host/set/?sig=hush",), log_dir=str(tmp_path))
    again = ending(options, tmp_path, done=False)[-1]
    assert again.endswith("config.yaml --shards …")
    with pytest.raises(ValueError) as caught:
        find_shards("https://host/train-<9..0>.tar?sig=hush")
    assert "hush" not in str(caught.value)
