"""What Linux, macOS and Windows do differently: locks on folders, living processes, memory, error numbers.

Nothing outside this file asks for what one system alone has, so that all of it imports and runs on each.

    Linux      /proc tells memory; folders can be locked and synced
    macOS      psutil tells memory; folders as on Linux; no /proc, no posix_fallocate
    Windows    psutil tells memory and processes; folders cannot be opened, so neither locked nor synced;
               a locked file cannot be read by others; an open file can be neither removed nor replaced
"""

import contextlib
import errno
import mmap
import os
import signal
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

WINDOWS = os.name == "nt"
BINARY: int = getattr(os, "O_BINARY", 0)  # without it Windows changes the ends of lines
NO_LOCK = -1  # in place of a descriptor, where folders cannot be locked
_STATM = Path("/proc/self/statm")
_MEMINFO = Path("/proc/meminfo")
# Windows' own numbers of errors, which writers in Rust leave in their text.
_ERRORS = {
    2: errno.ENOENT,
    3: errno.ENOENT,
    5: errno.EACCES,
    8: errno.ENOMEM,
    19: errno.EROFS,
    21: errno.ENODEV,
    32: errno.EBUSY,
    33: errno.EBUSY,
    39: errno.ENOSPC,
    80: errno.EEXIST,
    112: errno.ENOSPC,
    145: errno.ENOTEMPTY,
    183: errno.EEXIST,
    206: errno.ENAMETOOLONG,
    1224: errno.EBUSY,  # the file is mapped
    1450: errno.ENOMEM,
    1455: errno.ENOMEM,
}


def error_number(number: int) -> int:
    """Return the errno of a number that the system has given: on Windows those are others."""
    return _ERRORS.get(number, 0) if WINDOWS else number


def end(pid: int, *, at_once: bool) -> None:
    """Let a process of this number end, if it runs: by its own means, or at once, as always on Windows."""
    hard = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has no other
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, hard if at_once else signal.SIGTERM)


def alive(pid: int) -> bool:
    """Return whether a process of this number runs on this machine."""
    if WINDOWS:  # where os.kill(pid, 0) would send it a Ctrl-C
        import psutil  # late: no other system needs it for this

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def hold(folder: Path) -> int | None:
    """Lock a folder until `let_go`, or until its process ends; return what `let_go` takes.

    Returns None if another process holds it, or if the file system has no locks, and NO_LOCK on a system that
    cannot lock folders.
    """
    if fcntl is None:
        return NO_LOCK
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def let_go(held: int) -> None:
    """Unlock a folder."""
    if held != NO_LOCK:
        os.close(held)


def reserve(file: int, size: int) -> None:
    """Give a new file so many bytes of the disk. Raises OSError if it has not got them."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    piece = bytes(min(size, 1 << 20))
    os.lseek(file, 0, os.SEEK_SET)
    for start in range(0, size, len(piece) or 1):
        left = memoryview(piece)[: size - start]
        while left:
            left = left[os.write(file, left) :]


def leave_memory(pages: mmap.mmap) -> None:
    """Let the pages of a mapped file leave the process, where the system can be told; the file keeps them."""
    if hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def memory_now() -> int:
    """Return the bytes of main memory that this process has."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except OSError:  # not Linux
        import psutil

        return int(psutil.Process().memory_info().rss)


def memory_peak() -> int:
    """Return the most bytes of main memory that this process has had."""
    if resource is not None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most * (1 if sys.platform == "darwin" else 1024)
    import psutil

    facts = psutil.Process().memory_info()
    return int(getattr(facts, "peak_wset", facts.rss))


def memory_free() -> int:
    """Return the bytes of main memory that this machine can still give."""
    try:
        facts = _MEMINFO.read_text(encoding="ascii")
    except OSError:  # not Linux
        import psutil

        return int(psutil.virtual_memory().available)
    return next(int(line.split()[1]) * 1024 for line in facts.splitlines() if line.startswith("MemAvailable"))
