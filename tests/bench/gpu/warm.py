"""What most parts import, imported once: where it fails, the parts fail by it too, and say so."""

import contextlib
import threading

with contextlib.suppress(Exception):
    from tqdm import tqdm

    import train.run  # noqa: F401

    # Its own lock is one between processes, of which one that ends at once leaves a semaphore behind.
    tqdm.set_lock(threading.RLock())
