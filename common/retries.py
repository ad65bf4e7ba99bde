"""How often, and after which pauses, a remote operation is tried again."""

import random
import threading
from dataclasses import dataclass

from common.errors import StoreError

LONGEST_PAUSE_S = 20.0


@dataclass(frozen=True)
class Retry:
    """attempts: tries in all. pause_s: before the second; each further one is twice as long, give or take a half.

    stall_s: without progress for this long, a try has failed.
    """

    attempts: int = 5
    pause_s: float = 0.5
    stall_s: float = 30.0

    def __post_init__(self):
        if self.attempts < 1 or self.pause_s < 0 or self.stall_s <= 0:
            raise ValueError(f"{self}: attempts must be at least 1, pauses not negative, the stall time positive")

    def run(self, action, reason_to_retry, what, stopped=None):
        """What action() returns.

        Args:
            reason_to_retry: function of an exception: text if another try may help; else it raises what the user is to see.
            what: the address, for the message once all tries have failed.
            stopped: an Event that ends the pauses early, and the tries with them.
        Raises:
            StoreError.
        """
        stopped = stopped or threading.Event()
        for attempt in range(self.attempts):
            try:
                return action()
            except Exception as error:
                reason = reason_to_retry(error)
            pause = min(self.pause_s * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
            if attempt + 1 < self.attempts and stopped.wait(pause):
                raise StoreError(f"{what}: the reader was closed")
        raise StoreError(f"{what}: given up after {self.attempts} tries: {reason}")
