"""Which of the ranks says why a run has ended: the first that fails. Those whose connection breaks by that stay silent."""

import os
import socket
import threading
import time
from contextlib import suppress

ANSWER_S = 5.0  # that the store may take: it lies in rank 0's process or the launcher's, which may hang or be gone
STAY_S = 5.0  # that rank 0 stays for the questions of the others


class FirstError:
    """One rank's view of who has spoken. store: of torch.distributed, where the ranks have met; it needs no process group."""

    def __init__(self, store, rank, size):
        self.store, self.rank, self.expected = store, rank, size
        self.address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def mine(self, lost=False):
        """Whether this rank is to speak: nobody did before it, or nobody answers. lost: only to say that others are gone."""
        first = self._add("spoken", 1) in (1, None)
        if first and lost:
            self.expected -= 1  # at least one is gone without a word, and is not waited for
        return first

    def leave(self):
        """The last that a rank does, its connections being closed: rank 0 waits until the others have asked what they must."""
        self._add("left", 1)
        deadline = time.monotonic() + STAY_S
        while self.rank == 0 and time.monotonic() < deadline and (self._add("left", 0) or 0) < self.expected:
            time.sleep(0.02)

    def _add(self, name, number):
        """The counter of that name in the store, after adding to it; None where the store does not answer."""
        answers = []

        def ask():
            with suppress(RuntimeError, OSError):
                # Of a store that is gone, torch itself would tell at length.
                socket.create_connection(self.address, ANSWER_S).close()
                answers.append(self.store.add(name, number))

        asking = threading.Thread(target=ask, daemon=True)  # the store itself would wait without end
        asking.start()
        asking.join(ANSWER_S)
        return answers[0] if answers else None
