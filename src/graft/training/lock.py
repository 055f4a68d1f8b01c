"""Lock a run's folder with a lock of the operating system, which ends with its process even after kill -9.

On network file systems without locks (old NFS) two machines can still write to one folder.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from graft import storage
from graft.errors import CheckpointError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder inside the block. Raises CheckpointError, naming the holder, if it is in use."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    owner = folder / ".owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"{folder} is in use by {_owner(owner)}",
            "one process per run folder",
            "wait until it ends, stop it (the same command then continues the run), or choose another output",
        ) from None
    try:
        # Not fsynced: the file only serves the message above, while this process lives.
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        owner.write_bytes(
            storage.encode({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        )
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(owner)
        lock.release()


def _owner(path: Path) -> str:
    """Return the process that holds the folder, in words."""
    for _ in range(20):  # the holder may not have written the file yet
        try:
            holder = storage.read_json(path)
            return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
        except (OSError, ValueError):
            time.sleep(0.05)
    return "another process"
