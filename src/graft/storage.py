"""Durable writes: a file or folder has its new contents, all of them, or after a crash the old ones.

A folder is committed in this order: fill `.tmp-NAME-UUID/`; write `manifest.json` last, with the size and
SHA-256 of each file; fsync every file and folder; rename the folder to NAME; fsync its parent. After a crash
at any moment NAME is complete or absent. A folder without a valid manifest is not a checkpoint; the latest
checkpoint is found by scanning and validating, never by a pointer that could be wrong.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from graft.errors import CheckpointError, SpaceError, UsageError

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
FORMAT = 1
PAUSES_S = (1.0, 3.0, 9.0)  # between the tries when the disk is full
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".tmp-"
_STEP = re.compile(r"step-(\d{6,})")

T = TypeVar("T")


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
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.rename(temporary, path)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        os.mkdir(temporary)
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            sync(entry)
        sync(temporary)
        if os.path.lexists(path):
            os.rename(path, old)
        os.rename(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            if old.exists() and not path.exists():
                os.rename(old, path)
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


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex}")


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


def commit(target: Path, fill: Callable[[Path], object], facts: Mapping[str, Any] | None = None) -> Path:
    """Make folder `target`, which `fill(folder)` writes, appear complete and with a manifest.

    An older one is replaced.  facts: JSON values kept in the manifest.
    """
    with new_folder(target) as folder:
        fill(folder)
        files = {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest(file)}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        body = {"format": FORMAT, "name": target.name, "files": files, "facts": dict(facts or {})}
        manifest = body | {"sha256": hashlib.sha256(encode(body)).hexdigest()}
        write(folder / MANIFEST, encode(manifest))
    return target


def validate(folder: Path) -> dict[str, Any]:
    """Return the facts of a committed folder. Raises CheckpointError if any byte of it has changed."""
    body = _manifest(folder)
    written: dict[str, dict[str, Any]] = body["files"]
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(present ^ set(written)):
        state = "is not in the manifest" if name in present else "is missing"
        raise _damaged(folder / name, state, f"exactly the files {', '.join(written)}")
    for name, entry in written.items():
        sha256 = digest(folder / name)
        if sha256 != entry["sha256"]:
            size = (folder / name).stat().st_size
            state = f"has SHA-256 {sha256} ({size} bytes)"
            raise _damaged(folder / name, state, f"{entry['sha256']} ({entry['bytes']} bytes)")
    facts: dict[str, Any] = body["facts"]
    return facts


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder. Raises CheckpointError if it was changed, or is another folder's."""
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
        body: dict[str, Any] = json.loads(raw)
        sha256 = body.pop("sha256")
        sealed = hashlib.sha256(encode(body)).hexdigest() == sha256
        unchanged = sealed and encode(body | {"sha256": sha256}) == raw
    except (OSError, ValueError, KeyError, AttributeError) as error:
        state = f"cannot be read ({type(error).__name__})"
        raise _damaged(path, state, "a manifest written by a finished commit") from None
    if not unchanged or body["format"] != FORMAT or body["name"] != folder.name:
        expected = f"the manifest of {folder.name}, format {FORMAT}"
        raise _damaged(path, "was changed after it was written", expected)
    return body


def _damaged(path: Path, state: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {state}", expected, "use another checkpoint of the run, or delete this one"
    )


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def steps(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of everything named like a checkpoint, newest first, without validating."""
    matches = ((_STEP.fullmatch(entry.name), entry) for entry in folder.glob("step-*"))
    return sorted(((int(match[1]), entry) for match, entry in matches if match), reverse=True)


def latest(folder: Path) -> tuple[Path | None, list[tuple[Path, CheckpointError]]]:
    """Return the newest valid checkpoint, and each newer one together with what is wrong with it."""
    damaged: list[tuple[Path, CheckpointError]] = []
    for _, checkpoint in steps(folder):
        try:
            validate(checkpoint)
            return checkpoint, damaged
        except CheckpointError as error:
            damaged.append((checkpoint, error))
    return None, damaged


def quarantine(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it no longer counts but can be looked at; return the new path."""
    renamed = checkpoint.with_name(f"damaged-{checkpoint.name}-{uuid.uuid4().hex[:8]}")
    os.rename(checkpoint, renamed)
    sync(checkpoint.parent)
    return renamed


def rotate(folder: Path, keep: int, spare: Iterable[int] = ()) -> None:
    """Remove all checkpoints but the `keep` newest (at least one) and the steps in `spare`.

    Call it only after the newest has been validated, so that a valid one always stays.
    """
    spared = set(spare)
    for step, checkpoint in steps(folder)[max(keep, 1) :]:
        if step not in spared:
            # Renamed first: a crash in the middle leaves rubbish that `sweep` knows, not half a checkpoint.
            rubbish = _temporary(checkpoint)
            os.rename(checkpoint, rubbish)
            remove(rubbish)


def retry_while_full(path: Path, needed: int, action: Callable[[], T], warn: Callable[[str], None]) -> T:
    """Return `action()`; while the disk is full, wait and try again, as somebody may make room.

    needed: the bytes that the action writes to the disk of `path`.  warn: told before each pause.
    Raises SpaceError after the last try.
    """
    for pause in (*PAUSES_S, None):
        try:
            return action()
        except (OSError, SafetensorError) as error:
            full = disk_full(error, path, needed)
            if full is None:
                raise
            if pause is None:
                raise full from error
        warn(f"{full.given}; trying again in {pause:g} s")
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


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
