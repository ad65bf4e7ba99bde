"""How often, and after which pauses, a remote operation is tried again.

A store that has never answered is most likely mis-named or out of reach for good, so that is found out within half a
minute. One that has answered before is most likely back soon: it is waited for in minutes, and the user is told meanwhile.
"""

import random
import threading
import time
from dataclasses import dataclass

from common import progress
from common.errors import InputError, StoreError

LONGEST_PAUSE_S = 20.0
FIRST_ANSWER_S = 30.0  # that a store has for its first answer, all tries together
FIRST_TRY_S = 8.0  # of which one try may take so much
SLOWEST_BYTES_PER_S = 16 << 10  # anything slower is no progress
SILENT_S = 5.0  # of waiting before the user is told
SAID_EVERY_S = 60.0


class Contact:
    """What is known of one store, shared by the threads that use it.

    Attributes:
        answered: whether it has ever answered.
        not_before: time.monotonic() before which it asked not to be asked again.
        say: function of a line for the user.
        asking: held by the thread that asks for not_before.
    """

    def __init__(self):
        self.answered, self.not_before, self.say = False, 0.0, progress.say
        self.asking, self._lock = threading.Lock(), threading.Lock()
        self._away_since = self._said = None

    def answers(self, what):
        """An operation has succeeded."""
        self.answered = True
        if self._said is None:
            return
        with self._lock:
            if self._said is not None:
                away = time.monotonic() - self._away_since
                self._said = self._away_since = None
                self.say(f"note: {what}: answers again, after {progress.clock(away)}")

    def waits(self, what, reason, since, left_s):
        """An operation that first failed at `since` is about to be tried again, for so many seconds at most."""
        with self._lock:
            now = time.monotonic()
            if now - since < SILENT_S or (self._said is not None and now - self._said < SAID_EVERY_S):
                return
            self._said, self._away_since = now, self._away_since or since
            self.say(f"note: {what}: {reason}; waiting for it, for {progress.clock(left_s)} more at most")


@dataclass(frozen=True)
class Retry:
    """attempts: tries in all. pause_s: before the second; each further one is twice as long, give or take a half.

    stall_s: without progress for this long, a try has failed. minutes: that a store which has answered before is waited for,
    however many tries these are.
    """

    attempts: int = 5
    pause_s: float = 0.5
    stall_s: float = 30.0
    minutes: float = 15.0

    def __post_init__(self):
        if self.attempts < 1 or self.pause_s < 0 or self.stall_s <= 0 or self.minutes < 0:
            raise InputError(
                f"{self}: attempts must be at least 1, pauses and minutes not negative, the stall time positive"
            )

    def run(self, action, reason_to_retry, what, stopped=None, contact=None):
        """What action() returns.

        Args:
            reason_to_retry: function of an exception: text if another try may help; else it raises what the user is to see.
            what: the address, for messages.
            stopped: an Event that ends the pauses early, and the tries with them.
            contact: Contact of the store.
        Raises:
            StoreError.
        """
        stopped, contact = stopped or threading.Event(), contact or Contact()
        began, tries = time.monotonic(), 0
        while True:
            try:
                value = action()
            except Exception as error:
                reason = reason_to_retry(error)
            else:
                contact.answers(what)
                return value
            if not tries and contact.answered:
                began = time.monotonic()
            tries += 1
            pause, left = self._next(began, tries, contact)
            if pause is None:
                raise StoreError(f"{what}: given up after {tries} tries: {reason}")
            if contact.answered:
                contact.waits(what, reason, began, left)
            if stopped.wait(pause):
                raise StoreError(f"{what}: the reader was closed")

    def _next(self, began, tries, contact):
        """(seconds to the next try, None where there is none; seconds that are left to wait in)."""
        now = time.monotonic()
        pause = min(self.pause_s * 2 ** min(tries - 1, 30), LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
        asked = contact.not_before - now
        if not contact.answered:
            pause = max(pause, asked)
            late = now - began + pause + FIRST_TRY_S > FIRST_ANSWER_S
            return (None if tries >= self.attempts or late else pause), 0.0
        left = began + 60 * self.minutes - now
        if tries < self.attempts:
            return max(pause, min(asked, left)), max(left, 0.0)
        return (min(max(pause, asked), left) if left > 0 else None), left


class Pace:
    """Finds out that what arrives is too slow to be called progress. Only time spent waiting for it counts."""

    def __init__(self, stall_s):
        self._stall_s, self._seconds, self._bytes = stall_s, 0.0, 0

    def timed(self, call):
        """What call() returns, a buffer or None; raises TimeoutError where too little came in the last stall_s."""
        began = time.monotonic()
        piece = call()
        self._seconds += time.monotonic() - began
        self._bytes += len(piece) if piece is not None else 0
        if piece is not None and self._seconds >= self._stall_s:
            if self._bytes < SLOWEST_BYTES_PER_S * self._seconds:
                raise TimeoutError(f"{self._bytes} bytes arrived in {self._seconds:.0f} s")
            self._seconds, self._bytes = 0.0, 0
        return piece


def patience_s(stall_s, size):
    """Seconds that an operation on so many bytes may take."""
    return stall_s + size / SLOWEST_BYTES_PER_S
