"""Durable writes: a file or folder has its new contents, all of them, or after a crash the old ones.

Every change of the disk in a run's folder goes through the functions of this file, and calls `os` here.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from graft.errors import UsageError
from graft.storage.disk import disk_full

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


def write(path: Path, data: bytes) -> None:
    """Write a file and fsync it. Its name is durable once its folder is synced (`replace`, `commit`)."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
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
    save_file(plain, path)
    sync(path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path`, whole, when the block ends well."""
    temporary = beside(path)
    try:
        yield temporary
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
    try:
        os.mkdir(temporary)
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            sync(entry)
        sync(temporary)
        if os.path.lexists(path):
            rename(path, old)
        rename(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            if old.exists() and not path.exists():
                rename(old, path)
            remove(temporary)
        raise
    remove(old)


@contextlib.contextmanager
def output_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, a folder that the user asked for (see `new_folder`).

    Raises UsageError if `path` holds something and force is False, SpaceError if the disk is full.
    """
    refuse_occupied(path, force=force)
    try:
        with new_folder(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        full = disk_full(error, path)
        if full is None:
            raise
        raise full from error


def refuse_occupied(path: Path, *, force: bool) -> None:
    """Raise UsageError if `path` is a file or a folder that holds something, and force is False."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not force:
        raise UsageError(
            f"{path} exists", "a new folder", "choose another name, delete it, or pass force=True (--force)"
        )


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
    return path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex}")


def rename(path: Path, new: Path) -> None:
    """Give a file or folder another name on the same disk."""
    os.rename(path, new)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    file = os.open(path, os.O_RDONLY)
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


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder."""
    for entry in folder.glob(f"{_TEMPORARY}*"):
        remove(entry)
