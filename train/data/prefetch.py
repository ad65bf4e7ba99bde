"""An iterator that works in a thread of its own, one item ahead of who asks for them."""

import threading

WAIT_S = 1.0  # how long a wait lasts before it looks whether the program is ending


class Prefetch:
    """Runs `items`, an iterator, in a thread: the next item is made while the caller is busy with the last.

    What the iterator raises is raised where the item is asked for. close() lets the item at hand finish, closes the iterator in
    its thread and waits for it.
    """

    def __init__(self, items, name):
        self._items = items
        self._changed = threading.Condition()
        self._ready, self._error, self._done, self._stopped = [], None, False, False
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        with self._changed:
            while not (self._ready or self._done):
                self._changed.wait()
            if self._ready:
                item = self._ready.pop()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self):
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def _run(self):
        try:
            while self._has_room():
                item = next(self._items, self)
                if item is self:
                    break
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # it belongs to who asks for the item
            self._error = error
        finally:
            self._items.close()
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _has_room(self):
        """Wait until the last item was taken; False where there will be nobody to take the next."""
        with self._changed:
            while self._ready and not self._stopped:
                self._changed.wait(WAIT_S)
                if not threading.main_thread().is_alive():
                    return False
            return not self._stopped
