"""What most parts import, imported once: where it fails, the parts fail by it too, and say so."""

import contextlib
import threading

with contextlib.suppress(Exception):
    from tqdm import tqdm

    import tests.bench.gpu.profile
    import tests.bench.gpu.steps
    import tests.bench.gpu.training  # noqa: F401

    # Its own lock is one between processes, of which one that ends at once leaves a semaphore behind.
    tqdm.set_lock(threading.RLock())
