"""Files that are whole or not there, folders flushed to the disk, and a lock between processes.

Some file systems refuse part of this: object stores mounted as folders know no fsync of a folder, some network file systems
no flock. The work goes on there, and the caller is told, so that it can say so once.
"""

import errno
import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

_NO_FOLDER_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EISDIR}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Busy(RuntimeError):
    """The lock is held by another process."""


def temporary_name(path):
    """The name under which this process writes what will be `path`: hidden, beside it, ending in .tmp."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def new_file(path):
    """A binary file that becomes `path`, whole and on the disk, when the block ends well, and vanishes when it does not.

    Raises OSError, which names `path` where it would name no file: a full disk is met by a file that is open already.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        # The name that is meant, not one that nobody knows; a new one, since two names are told as a move.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_path(path):
    """The path of a file that becomes `path` as new_file's does, for what writes to names and not to files.

    It ends as `path` does, by which such writers tell what to write. Raises OSError.
    """
    path = Path(path)
    temporary = temporary_name(path).with_suffix(path.suffix)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path, data):
    """Write bytes to a temporary name beside `path`, flush to disk, rename. Raises OSError."""
    with new_file(path) as file:
        file.write(data)


def flush_folder(folder):
    """Bring new names in a folder to the disk. False where its file system does not know how; raises OSError for the rest."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return False  # a folder that may be written to, but not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def locked(path, wait=True):
    """Hold the advisory lock of the file `path`, which is made and stays. Its end, a kill too, gives the lock back.

    Args:
        wait: for another holder to finish; False raises Busy instead.
    Yields:
        True; False where the file system knows no locks, and nothing is held.
    Raises:
        Busy; OSError.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except BlockingIOError:
            raise Busy(f"{path}: held by another process") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            held = False
        yield held
