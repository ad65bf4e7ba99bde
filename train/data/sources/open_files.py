"""Files that are opened when they are read, and no more of them at once than a process may open."""

import errno
import os
import resource
import sys
import threading
from contextlib import contextmanager

_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class OpenFiles:
    """File descriptors of numbered paths, opened at their first use. The longest unused go when there are too many.

    A descriptor is closed once nobody uses it: its number may mean another file from then on.

    Args:
        paths: of the files. most: descriptors at once; without it a quarter of what this process may open.
    """

    def __init__(self, paths, most=None):
        self._paths, self._most = list(paths), most or _share()
        self._open = {}  # number of a path -> _File, the longest unused first
        self._lock = threading.Lock()

    @contextmanager
    def use(self, number):
        """A descriptor of a file, which stays open for as long as the block lasts. Raises OSError."""
        with self._lock:
            file = self._open.pop(number, None) or self._opened(number)
            self._open[number] = file
            file.users += 1
        try:
            yield file.descriptor
        finally:
            with self._lock:
                file.users -= 1
                if file.leaves and not file.users:
                    os.close(file.descriptor)

    def close(self):
        """Close what nobody uses, and the rest as soon as nobody does; a later use opens anew."""
        with self._lock:
            for number in list(self._open):
                self._close(number)

    def __len__(self):
        return len(self._open)

    def _opened(self, number):
        while len(self._open) >= self._most and self._close_oldest():
            pass
        while True:
            try:
                return _File(os.open(self._paths[number], os.O_RDONLY))
            except OSError as error:
                if error.errno not in _TOO_MANY or not self._close_oldest():
                    raise

    def _close_oldest(self):
        idle = next((number for number, file in self._open.items() if not file.users), None)
        if idle is not None:
            self._close(idle)
        return idle is not None

    def _close(self, number):
        file = self._open.pop(number)
        file.leaves = True
        if not file.users:
            os.close(file.descriptor)


def _share():
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft // 4)


class _File:
    """users: threads that read it at the moment. leaves: whether the last of them closes it."""

    def __init__(self, descriptor):
        self.descriptor, self.users, self.leaves = descriptor, 0, False
