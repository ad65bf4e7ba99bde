"""What ends a run or a command in one line. Knows nobody above it; train.command turns these into words and exit codes."""

import signal


class DataError(RuntimeError):
    """A sample could not be loaded; the message names shard and key."""


class NotFinite(RuntimeError):
    """The loss became NaN or infinite; the message names step and samples."""


class PeerFailed(RuntimeError):
    """Another rank failed, and says why itself. code: exit code of this one."""

    def __init__(self, code=1):
        super().__init__()
        self.code = code


class PeersLost(RuntimeError):
    """The other ranks could not be met, or the connection to them broke; the message holds what the backend said."""


class Stopped(RuntimeError):
    """A signal arrived and a checkpoint was saved; `code` is the exit code, 128 and the signal's number."""

    def __init__(self, code):
        super().__init__(f"stopped by {signal.Signals(code - 128).name}; a checkpoint was saved")
        self.code = code


class Interrupted(KeyboardInterrupt):
    """A signal arrived where there is nothing to save; `code` is the exit code. Passes every `except Exception`."""

    def __init__(self, number):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number
