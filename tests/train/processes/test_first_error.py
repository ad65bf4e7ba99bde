"""Whatever ends one of two processes is said once, and the other one ends by it."""

import os
import socket
from contextlib import ExitStack

from common.shard_index import dump_index
from tests.index_files import index_path, load_index
from tests.processes.client import REPOSITORY
from tests.train.processes import two_ranks
from tests.train.test_resume import start


def shards_of(rank, shards, folder):
    """A folder of one rank's shards: by what they differ from the other one's is their name."""
    folder.mkdir()
    for name in ("samples", "options", "bytes"):
        tar = shards / ("val-000.tar" if (name, rank) == ("samples", 1) else "train-000.tar")
        index = load_index(tar)
        if rank and name == "options":
            index.facts = index.facts | {"version": "v1.0-other"}
        if rank and name == "bytes":
            index.tar_sha256 = index.tar_sha256[::-1]
        os.symlink(tar, folder / f"{name}-000.tar")
        index_path(folder / f"{name}-000.tar").write_bytes(dump_index(index))
    return folder


def test_what_ends_a_run_is_said_by_one_process(small_shards, tmp_path):
    shards = [shards_of(rank, small_shards, tmp_path / f"{rank}") for rank in range(2)]
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in two_ranks.CASES]
        ports = [probe.getsockname()[1] for probe in sockets]
    meet = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": REPOSITORY}
    both = [
        start(two_ranks.__name__, shards[rank], *ports, RANK=f"{rank}", LOCAL_RANK=f"{rank}", **meet)
        for rank in range(2)
    ]
    said, codes = {case.__name__: [] for case in two_ranks.CASES}, {case.__name__: [] for case in two_ranks.CASES}
    for process in both:
        lines = []
        for line in process.communicate(timeout=120)[1].splitlines():
            if line.startswith("[rank"):  # torch's own advice, which is not to search where nothing was left out
                continue
            word, *rest = line.split()
            if word in said:
                said[word], codes[word], lines = said[word] + lines, [*codes[word], int(rest[0])], []
            else:
                lines.append(line)
        assert process.returncode == 0 and not lines, lines
    wanted = {
        "what_all_meet": "error: --keep_best iou needs a validation",
        "bad_sample_of_rank_0": "error: a bad sample of rank 0",
        "bad_sample_of_rank_1": "error: a bad sample of rank 1",
        "out_of_memory_in_an_update": "error: out of memory on the device",
        "two_errors_at_once": "error: word ",
        "another_fails_after_it_has_left": "error: the report cannot be written",
        "time_out_of_an_evaluation": "error: waits for 30 s",
        "layer_left_out_by_one": "error: second.weight got no gradient in this update, as it did in the first: in several",
        # Two batches of rank 0 and of rank 1, halved, where both have rank 0's weights.
        "layer_left_out_and_searched": "error: [(2.0, 2.0), (2.0, 1.0), (2.0, 2.0)]",
        "layer_left_out_from_the_first": "error: [(2.0, 1.0), (2.0, 2.0), (2.0, 2.0)]",
        "signal_to_one": "stopped by SIGTERM",
        "other_samples": "error: the train shards differ: ",
        "other_options_of_shards": "error: the train shards differ: ",
        "other_bytes": "error: the train shards differ: ",
        "another_command_line": "error: --lr: ",
        "another_checkpoint": "error: ",
    }
    assert {name: len(lines) for name, lines in said.items()} == dict.fromkeys(wanted, 1), said
    assert all(said[name][0].startswith(text) for name, text in wanted.items()), said
    ended = {name: (1, 1) for name in wanted}
    ended |= {"another_fails_after_it_has_left": (1, 0), "signal_to_one": (1, 143)}
    assert {name: tuple(pair) for name, pair in codes.items()} == ended
    here = f"{socket.gethostname()} (rank %d)"
    for case, what in (
        (
            "other_samples",
            f"{here % 1} has other samples ({shards[1]}/samples-000.tar and on: 3 samples) than {here % 0}",
        ),
        ("other_options_of_shards", f"{here % 1} has shards made with other options"),
        ("other_bytes", f"{here % 1} has the same samples in shards of other bytes"),
        (
            "another_command_line",
            f"{here % 1} has 0.0001, {here % 0} has 0.0003; start every process with the same options",
        ),
        ("another_checkpoint", f"{here % 1} goes on after step 1000, {here % 0} after step 2000"),
    ):
        assert what in said[case][0], said[case]
