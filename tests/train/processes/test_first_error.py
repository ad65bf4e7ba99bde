"""Whatever ends one of two processes is said once, and the other one ends by it."""

import socket
from contextlib import ExitStack

from tests.processes.client import REPOSITORY
from tests.train.processes import two_ranks
from tests.train.test_resume import start


def test_what_ends_a_run_is_said_by_one_process(tmp_path):
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in two_ranks.CASES]
        ports = [probe.getsockname()[1] for probe in sockets]
    meet = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": REPOSITORY}
    both = [start(two_ranks.__name__, *ports, RANK=f"{rank}", LOCAL_RANK=f"{rank}", **meet) for rank in range(2)]
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
    }
    assert {name: len(lines) for name, lines in said.items()} == dict.fromkeys(wanted, 1), said
    assert all(said[name][0].startswith(text) for name, text in wanted.items()), said
    ended = {name: (1, 1) for name in wanted}
    ended |= {"another_fails_after_it_has_left": (1, 0), "signal_to_one": (1, 143)}
    assert {name: tuple(pair) for name, pair in codes.items()} == ended
