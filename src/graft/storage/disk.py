"""The operating system's errors in our words, whoever met them; how much room there is, and waiting for more.

An error has a number of the system if Python raised it. Writers in Rust (safetensors, tokenizers) and in C++
(torch) leave the number in their text, and numpy says only how much of an array it has written. All of them
are told alike. What has no such number is a defect of a program, and is not told here.
"""

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from graft.errors import GraftError, MachineError, SpaceError
from graft.storage.signals import stopping
from graft.storage.system import error_number

PAUSES_S = (1.0, 3.0, 9.0)  # between the tries when the disk is full
TEMPORARY = re.compile(
    r"\.tmp-(.+)-(\d+)-[0-9a-f]{32}(-old)?", re.DOTALL
)  # the names that `writes.beside` gives

T = TypeVar("T")

_AGAIN = "then run the same command again (a run continues from its last checkpoint)"
_FULL = {
    errno.ENOSPC: ("room for everything that is written", f"free some disk space, {_AGAIN}"),
    errno.EDQUOT: ("a quota with room for everything that is written", f"free some of your space, {_AGAIN}"),
    errno.EFBIG: (
        "no limit on the size of a file below what is written",
        f"raise the limit (ulimit -f unlimited) or choose another file system, {_AGAIN}",
    ),
}
_PERMISSION = (
    "permission to read and write there",
    "look at who owns it (ls -ld) and give yourself the permission, or choose another path",
)
_DISK = (
    "a disk that reads and writes",
    f"look at the disk (dmesg), copy what it holds to a sound one, {_AGAIN}",
)
_EXISTING = ("a place where nothing is yet", "move away what is there, or choose another path")
_FILES = ("room for one more open file", f"raise the limit (ulimit -n 4096), {_AGAIN}")
_MEMORY = (
    "memory for the work",
    "close other programs, raise the limit (ulimit -v), or take quant=nf4, a smaller batch or a smaller "
    "model (`graft plan` tells what a run needs)",
)
_WORDS = {
    errno.ENOENT: (
        "a file or folder that is there, and stays while graft works",
        f"check the path and that its disk is mounted, {_AGAIN}",
    ),
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: (
        "a file system that can be written",
        "choose a path on another one, or mount this one for writing",
    ),
    errno.ENOTDIR: (
        "a folder in that place",
        "move away the file that stands where a folder should be, or choose another path",
    ),
    errno.EISDIR: ("a file in that place", "move the folder away, or choose another path"),
    errno.EEXIST: _EXISTING,
    errno.ENOTEMPTY: _EXISTING,
    errno.ENAMETOOLONG: (
        "a name of at most 255 bytes in a path of at most 4,095",
        "choose a shorter one",
    ),
    errno.ELOOP: (
        "a link that leads to a file or folder",
        "mend the symbolic link, which leads back to itself, or choose another path",
    ),
    errno.EIO: _DISK,
    errno.ENXIO: _DISK,
    errno.ENODEV: _DISK,
    errno.ESTALE: ("a network disk that answers", f"mount it again, {_AGAIN}"),
    errno.EBUSY: ("a file that no other program holds", f"end the program that uses it, {_AGAIN}"),
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: ("room for one more thread or process", f"raise the limit (ulimit -u), {_AGAIN}"),
}
_OTHER = ("what the system allows", f"look at the path and its disk, {_AGAIN}")
_DEFECTS = (errno.EBADF, errno.EFAULT)  # only a program that is wrong meets them

_NUMBER = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]|[Ee]rror code (\d+) \(|memory \((\d+)\)")
_NO_MEMORY = re.compile("can't allocate memory|bad_alloc|failed to map segment|CUDA out of memory")
_NO_THREAD = re.compile("can't start new thread")
_PART_WRITTEN = re.compile(r"\d+ requested and \d+ written")  # numpy's tofile, which knows no reason
_TOLD_BY_NAME = {os.strerror(number): number for number in (*_FULL, *_WORDS)}


def system_error(
    error: BaseException, doing: str = "", path: Path | None = None, needed: int | None = None
) -> MachineError | None:
    """Return an error of the system in our words; None for an error of another kind.

    doing: what was being done ("while training").  path: where, if the error does not say so.
    needed: the bytes that were being written, where known.
    """
    number = number_of(error)
    if not number and isinstance(error, OSError):  # another library's, which may have met one of the system's
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError) and number_of(cause) != errno.ENOENT:  # they look for many files
            return system_error(cause, doing, path, needed)
    if not number or number in _DEFECTS:
        return None
    named = getattr(error, "filename", None)
    place = path if not isinstance(named, str | bytes) else Path(os.fsdecode(named))
    if number in _FULL:
        return _full(number, place, needed)
    of_memory = number in (errno.ENOMEM, errno.EAGAIN)
    where = "" if place is None or of_memory else f"{final_path(place)}: "
    said = getattr(error, "strerror", None) or os.strerror(number)
    reason = f"{said} ({errno.errorcode.get(number, number)})"
    told = MachineError(f"{where}{reason} {doing}".rstrip(), *_WORDS.get(number, _OTHER))
    told.number = number
    return told


@contextlib.contextmanager
def named_errors(doing: str, path: Path | None = None, needed: int | None = None) -> Iterator[None]:
    """Raise an error of the system that leaves the block as MachineError; see `system_error`."""
    try:
        yield
    except GraftError:
        raise
    except Exception as error:
        told = system_error(error, doing, path, needed)
        if told is None:
            raise
        raise told from error


def number_of(error: BaseException) -> int:
    """Return the system's error number, which some libraries leave in their text only; 0 without one."""
    if isinstance(error, MachineError):
        return error.number
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if type(error) is not Exception and not isinstance(
        error, OSError | SafetensorError | RuntimeError | ImportError
    ):
        return 0
    text = str(error)
    if match := _NUMBER.search(text):
        number = int(next(filter(None, match.groups())))
        return error_number(number) if match[1] else number
    if _NO_MEMORY.search(text):
        return errno.ENOMEM
    if _NO_THREAD.search(text):
        return errno.EAGAIN
    if _PART_WRITTEN.search(text):
        return errno.ENOSPC
    return next((number for name, number in _TOLD_BY_NAME.items() if text.endswith(name)), 0)


def final_path(path: Path) -> Path:
    """Return a path with the names that its temporary parts will get: those that the user knows."""
    parts = ((match[1] if (match := TEMPORARY.fullmatch(part)) else part) for part in path.parts)
    return Path(*parts)


def retry_while_full(path: Path, needed: int, action: Callable[[], T], warn: Callable[[str], None]) -> T:
    """Return `action()`; while the disk is full, wait and try again, as somebody may make room.

    needed: the bytes that the action writes to the disk of `path`.  warn: told before each pause.
    Raises SpaceError after the last try, and after a signal at once.
    """
    for pause in (*PAUSES_S, None):
        try:
            return action()
        except Exception as error:
            number = number_of(error)
            if number not in _FULL:
                raise
            full = _full(number, path, needed)
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


def _full(number: int, path: Path | None, needed: int | None) -> SpaceError:
    """Return the error of a full disk.  path: what was being written.  needed: its bytes, where known."""
    place = path or Path()
    sizes = [] if needed is None else [f"{needed:,} bytes are needed"]
    with contextlib.suppress(OSError):  # a disk that fails may not even tell how full it is
        sizes.append(f"{free_bytes(place):,} bytes are free")
    told = SpaceError(f"{os.strerror(number)} in {final_path(place)}: {', '.join(sizes)}", *_FULL[number])
    told.number = number
    return told


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` lies on, or would lie on."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
