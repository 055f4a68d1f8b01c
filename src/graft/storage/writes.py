"""Durable writes: a file or folder has its new contents, all of them, or after a crash the old ones.

Every change of the disk in a run's folder goes through the functions of this file, and calls `os` here. They
raise OSError, with the path, for every error of the system, also for those of writers that are not Python's.
"""

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import CheckpointError, GraftError, notice
from graft.storage.disk import TEMPORARY, number_of
from graft.storage.seals import HEX, seal, unseal
from graft.storage.system import BINARY, WINDOWS, alive, hold, let_go

if TYPE_CHECKING:
    import torch

_TEMPORARY = ".tmp-"


def encode(value: Any) -> bytes:
    """Return a value as JSON with sorted keys, so that equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Return the value in a JSON file."""
    return json.loads(path.read_bytes())


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON; keys keep their order, for people."""
    replace(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_record(path: Path, facts: Mapping[str, Any], *, sort: bool = False) -> None:
    """Replace a file by JSON values and their digest, with which `read_record` sees every change.

    sort: order the keys, so that equal facts give equal bytes.
    """
    plain = (json.dumps(dict(facts), indent=2, ensure_ascii=False) + "\n").encode()
    replace(path, seal(encode(dict(facts)) if sort else plain))


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the values of `write_record`; None if there is no such file.

    Records of an older Graft have no digest, and are taken as they are.
    Raises CheckpointError if the file cannot be read, or was changed after it was written.
    """
    try:
        raw = path.read_bytes()
        body = unseal(raw) or _of_before(raw)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    if body is None:
        raise _damaged(path, "is not as graft wrote it")
    return dict(json.loads(body))


def _of_before(raw: bytes) -> bytes | None:
    """Return a record that was never sealed; None for anything else, a seal that does not fit among it."""
    try:
        body = json.loads(raw)
        first = next(iter(body.values()))
    except (ValueError, AttributeError, StopIteration, RecursionError):
        return None
    sealed = "sha256" in body or (isinstance(first, str) and len(first) == HEX)
    return None if sealed else raw


def _damaged(path: Path, state: str) -> CheckpointError:
    remedy = f"move it away: graft train {path.parent} makes it again"
    return CheckpointError(f"{path} {state}", "a whole file", remedy)


@contextlib.contextmanager
def told_as_of(path: Path) -> Iterator[None]:
    """Put a path into errors of the system that name none; make OSError of those of other libraries."""
    try:
        yield
    except GraftError:
        raise
    except Exception as error:
        number = number_of(error)
        if number in (0, errno.ENOMEM, errno.EAGAIN):  # memory has no path
            raise
        if not isinstance(error, OSError) or error.errno is None:
            raise OSError(number, os.strerror(number), str(path)) from error
        if error.filename is None:
            error.filename = str(path)
        raise


def write(path: Path, data: bytes) -> None:
    """Write a file and fsync it. Its name is durable once its folder is synced (`replace`, `commit`)."""
    with told_as_of(path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)


def write_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Write a safetensors file and fsync it. Tied tensors are written once under each of their names."""
    from safetensors.torch import save_file  # late: errors of a recipe must answer before torch is imported

    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    with told_as_of(path):
        save_file(plain, path)
    sync(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path`, whole, when the block ends well."""
    temporary = beside(path)
    try:
        with told_as_of(path):
            yield temporary
            share(temporary)
        sync(temporary)
        rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise
    sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `path`, whole, when the block ends well.

    After an error the temporary folder is removed and an older `path` is as before. A crash between the two
    renames leaves no `path`: replace only folders that their owner can write again.
    """
    make_folder(path.parent)
    temporary = beside(path)
    old = temporary.with_name(f"{temporary.name}-old")
    held = None
    try:
        with told_as_of(path):
            os.mkdir(temporary)
            held = hold(temporary)
            yield temporary
        for entry in sorted(temporary.rglob("*")):
            share(entry)
            sync(entry)
        sync(temporary)
        if os.path.lexists(path):
            rename(path, old)
        rename(temporary, path)
        sync(path.parent)
        clear(old, notice)
    except BaseException:  # a signal may come anywhere
        with contextlib.suppress(OSError):
            if old.exists() and not path.exists():
                rename(old, path)
            remove(temporary)
            remove(old)
        raise
    finally:
        if held is not None:
            let_go(held)


def replace(path: Path, data: bytes) -> None:
    """Replace the contents of a file."""
    with new_file(path) as temporary:
        write(temporary, data)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; their names last like what is written into them."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with contextlib.suppress(PermissionError):  # one may write into a folder that one may not read
            sync(folder.parent)


def beside(path: Path) -> Path:
    """Return the path of a new temporary file or folder beside `path`, which `sweep` knows."""
    return path.with_name(f"{_TEMPORARY}{short(path.name)}-{os.getpid()}-{uuid.uuid4().hex}")


def short(name: str) -> str:
    """Return the beginning of a file's name, for names that are made of it: they may have 255 bytes."""
    return name.encode(errors="surrogateescape")[:160].decode(errors="ignore")


def rename(path: Path, new: Path) -> None:
    """Give a file or folder another name on the same disk; a file that has it is replaced."""
    (os.replace if WINDOWS else os.rename)(path, new)  # on Windows rename replaces nothing


def share(path: Path) -> None:
    """Give a file the mode of any new file; safetensors leaves its own to their owner alone."""
    if path.is_file() and not path.is_symlink():
        umask = os.umask(0o077)
        os.umask(umask)
        os.chmod(path, 0o666 & ~umask)


def sync(path: Path) -> None:
    """fsync a file or folder; on Windows names of files last by themselves, and folders cannot be opened."""
    if WINDOWS and path.is_dir():
        return
    with told_as_of(path):
        file = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it; do nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            remove(entry)
        os.rmdir(path)
    elif os.path.lexists(path):
        os.unlink(path)


def clear(path: Path, warn: Callable[[str], None]) -> None:
    """Remove what is no longer needed; where the system refuses, nothing is lost, and `warn` is told."""
    try:
        remove(path)
    except OSError as error:
        place, reason = error.filename or path, error.strerror or error
        warn(f"{place} is no longer needed and cannot be removed ({reason}): remove it yourself")


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that no other process uses."""
    for entry in folder.glob(f"{_TEMPORARY}*"):
        clear(entry, notice)


def sweep_beside(path: Path) -> None:
    """Remove the temporary files and folders that killed processes left beside `path`; others stay.

    The number of a process is in the name, and a living one holds its folder locked. Where a process was
    killed between its two renames, `path` gets its older contents back.
    """
    for entry in path.parent.glob(f"{_TEMPORARY}*") if path.parent.is_dir() else ():
        match = TEMPORARY.fullmatch(entry.name)
        if match is None or match[1] != short(path.name) or alive(int(match[2])):
            continue
        if not entry.is_dir():
            clear(entry, notice)
            continue
        with contextlib.suppress(OSError):  # another process may sweep at the same time
            held = hold(entry)
            if held is None:
                continue
            try:
                if match[3] and not os.path.lexists(path):
                    rename(entry, path)
                else:
                    remove(entry)
            finally:
                let_go(held)
