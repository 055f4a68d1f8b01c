"""Lock a run's folder, or a folder that is being written, for one process.

The lock is one of the operating system, which ends with its process even after kill -9. Two threads exclude
each other as two processes do. On network file systems without locks (old NFS) two machines can still write
to one folder.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import CheckpointError, GraftError, UsageError
from graft.storage.signals import held
from graft.storage.system import WINDOWS, alive
from graft.storage.writes import make_folder, short, told_as_of


@dataclass(frozen=True)
class Lock:
    """A run's folder that somebody holds."""

    folder: Path


@contextlib.contextmanager
def locked(folder: Path, lock: Lock | None = None) -> Iterator[Lock]:
    """Hold a run's folder inside the block; yield its lock, to hand on to what works in it.

    lock: of this folder, where the caller holds it already. A folder that the block leaves empty is removed
    again. Raises CheckpointError, naming the holder, if the folder is in use.
    """
    if lock is not None:
        assert lock.folder == folder
        yield lock
        return
    new = not folder.exists()
    make_folder(folder)
    file = folder / ".lock"
    busy = CheckpointError(
        f"{folder} is in use",
        "one process per run folder",
        "wait until it ends, stop it (the same command then continues the run), or choose another output",
    )

    def clean() -> None:
        ours = {file, _note(file)}
        if new and {*folder.iterdir()} <= ours:
            for path in ours:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else has come
                folder.rmdir()
        else:
            os.truncate(_note(file), 0)

    with _held(file, busy, clean):
        yield Lock(folder)


@contextlib.contextmanager
def output_locked(path: Path) -> Iterator[None]:
    """Hold a file or folder that is being written, inside the block; afterwards no trace of the lock is left.

    Raises UsageError, naming the holder, if somebody else is writing it.
    """
    make_folder(path.parent)
    file = path.with_name(f".{short(path.name)}.lock")
    busy = UsageError(
        f"{path} is being written", "one process per output", "wait until it ends, or choose another name"
    )

    def clean() -> None:
        for path in (_note(file), file):
            path.unlink(missing_ok=True)

    with _held(file, busy, clean):
        yield


@contextlib.contextmanager
def _held(file: Path, busy: GraftError, clean: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file, which names its holder, inside the block.

    busy: what to raise if another holds it; the holder is added to its first sentence.
    clean: called when the block ends, while the file is still held: nobody can be in between. Windows removes
    no open file, so there it is called afterwards, and may fail.
    """
    from filelock import FileLock, Timeout  # late: it imports asyncio, which no --help needs

    lock = FileLock(file)
    try:
        with held():  # a signal in the middle would leave the file
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise type(busy)(f"{busy.given} by {_owner(file)}", busy.expected, busy.remedy) from None
            # Not fsynced: it only serves the message above, while this process lives.
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
            with told_as_of(_note(file)):
                _note(file).write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        if lock.is_locked:
            with held():
                _let_go(lock, clean)


def _let_go(lock: Any, clean: Callable[[], None]) -> None:
    """Clean up and release a lock, whatever cleaning up meets."""
    try:
        if not WINDOWS:
            clean()
    finally:
        lock.release()
        if WINDOWS:
            with contextlib.suppress(OSError):
                clean()


def _note(file: Path) -> Path:
    """Return the file that names the holder of a lock: the lock itself, where a locked file can be read."""
    return file.with_name(f"{file.name}-holder") if WINDOWS else file


def _owner(file: Path) -> str:
    """Return the process that holds a lock, in words."""
    for _ in range(20):  # the holder may not have written the file yet
        try:
            holder = json.loads(_note(file).read_bytes())
            words = f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
            if holder["host"] != socket.gethostname() or alive(holder["pid"]):
                return words
        except (OSError, ValueError, LookupError, TypeError):
            pass
        time.sleep(0.05)
    return "another process"


def holder(folder: Path) -> str | None:
    """Return the process that holds a run's folder, in words; None if nobody does.

    The lock is not touched, so that a run which begins at this moment finds it free. A killed process leaves
    its name there: it counts only while a process of that number lives; of another machine nobody knows.
    """
    try:
        known = json.loads(_note(folder / ".lock").read_bytes())
        words = f"process {known['pid']} on {known['host']}, started {known['started']}"
        return words if known["host"] != socket.gethostname() or alive(known["pid"]) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def holding(folder: Path) -> int | None:
    """Return the number of the process of this machine that holds a run's folder; None if none does.

    For those who will signal it: the lock itself is asked, since a number may have been given away again
    after a kill. A run that begins at this very moment may find its folder in use.
    """
    from filelock import FileLock, Timeout

    file = folder / ".lock"
    if not file.exists():
        return None
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            known = json.loads(_note(file).read_bytes())
            return int(known["pid"]) if known["host"] == socket.gethostname() else None
        except (OSError, ValueError, LookupError, TypeError):
            return None
    lock.release()
    return None
