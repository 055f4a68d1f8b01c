"""A disk that is full: what its errors say, how much room there is, and waiting for somebody to make more."""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from graft.errors import SpaceError
from graft.storage.signals import stopping

PAUSES_S = (1.0, 3.0, 9.0)  # between the tries when the disk is full
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


def retry_while_full(path: Path, needed: int, action: Callable[[], T], warn: Callable[[str], None]) -> T:
    """Return `action()`; while the disk is full, wait and try again, as somebody may make room.

    needed: the bytes that the action writes to the disk of `path`.  warn: told before each pause.
    Raises SpaceError after the last try, and after a signal at once.
    """
    for pause in (*PAUSES_S, None):
        try:
            return action()
        except (OSError, SafetensorError) as error:
            full = disk_full(error, path, needed)
            if full is None:
                raise
            if pause is None or stopping():
                raise full from error
        warn(f"{full.given}; trying again in {pause:g} s")
        _wait(pause)
    raise AssertionError("the last try returns or raises")


def _wait(seconds: float) -> None:
    """Sleep, but no longer than until a signal asks the process to stop."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stopping():
        time.sleep(min(left, 0.1))


def disk_full(error: BaseException, path: Path, needed: int | None = None) -> SpaceError | None:
    """Return the SpaceError that `error` stands for; None if it is not about a full disk.

    path: what was being written.  needed: its size in bytes, where known.
    """
    number = _errno(error)
    if number not in _FULL:
        return None
    need = "" if needed is None else f"{needed:,} bytes are needed, "
    return SpaceError(
        f"{os.strerror(number)} in {path}: {need}{free_bytes(path):,} bytes are free",
        "room for everything that is written (and no limit on the size of a file)",
        "free some disk space, then run the same command again; training continues from its last checkpoint",
    )


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` lies on, or would lie on."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def _errno(error: BaseException) -> int:
    """Return the system's error number; safetensors' writer, which is not Python, has it in its text only."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else getattr(error, "errno", None) or 0
