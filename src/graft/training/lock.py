"""Lock a run's folder: an operating-system lock, which vanishes with its process even after kill -9.

On network file systems without locks (old NFS) two machines can still collide.
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
def locked(run: Path) -> Iterator[None]:
    """Hold the run's folder inside the block. Raises CheckpointError, naming the holder, if it is in use."""
    run.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(run / ".lock"), run / ".owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"{run} is in use by {_owner(owner)}",
            "one run per folder",
            "wait until it ends, stop it (the same command then continues the run), or choose another output",
        ) from None
    try:
        # Not fsynced: it is only for the message, and only while this process lives.
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
    for _ in range(20):  # the winner may not have written its name yet
        try:
            who = storage.read_json(path)
            return f"process {who['pid']} on {who['host']}, started {who['started']}"
        except (OSError, ValueError):
            time.sleep(0.05)
    return "another process"
