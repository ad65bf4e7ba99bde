"""Calls that may hang, as those to a disk behind a network do: made in threads that are left behind where they do."""

import errno
import queue
import threading

IDLE_S = 10.0  # that a thread waits for its next call


class Patience:
    """Makes calls and waits for each so long and no longer.

    Attributes:
        hanging: how many of the calls that were given up have not come back yet.
    """

    def __init__(self, limit_s):
        self.limit_s, self.hanging = limit_s, 0
        self._idle, self._lock = [], threading.Lock()

    def call(self, function, *arguments):
        """What function(*arguments) returns or raises; OSError where that takes longer than limit_s."""
        call = _Call(function, arguments)
        self._thread().put(call)
        if not call.done.wait(self.limit_s):
            with self._lock:
                if not call.done.is_set():
                    call.given_up = True
                    self.hanging += 1
                    raise OSError(errno.ETIMEDOUT, f"no answer in {self.limit_s:g} s")
        if call.error is not None:
            raise call.error
        return call.value

    def _thread(self):
        """The queue of a thread that has nothing to do."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        calls = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(calls,), name="patience", daemon=True).start()
        return calls

    def _work(self, calls):
        while (call := self._next(calls)) is not None:
            call.make()
            with self._lock:
                call.done.set()
                self.hanging -= call.given_up
                self._idle.append(calls)

    def _next(self, calls):
        """The thread's next call; None once nobody wants it any more."""
        while True:
            try:
                return calls.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if calls in self._idle:
                        self._idle.remove(calls)
                        return None


class _Call:
    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments
        self.value = self.error = None
        self.done, self.given_up = threading.Event(), False

    def make(self):
        try:
            self.value = self.function(*self.arguments)
        except BaseException as error:  # whatever it is, whoever waits for it raises it
            self.error = error
