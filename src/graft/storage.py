"""The one door to a run folder: every write is durable before it is relied on.

Commit protocol of a folder: fill `.tmp-NAME-UUID/`; fsync its files; write `manifest.json` last, with the size and
SHA-256 of each file; fsync the folder; rename it to NAME; fsync the parent. After a crash at any moment NAME is there
and complete, or absent. A folder without a valid manifest is not a checkpoint; "latest" is found by scanning and
validating, never by a pointer that could be wrong.
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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from graft.errors import CheckpointError, SpaceError

MANIFEST = "manifest.json"
FORMAT = 1
PAUSES_S = (1.0, 3.0, 9.0)  # between the tries when the disk is full
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = ".tmp-"
_STEP = re.compile(r"step-(\d{6,})")

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """JSON in the one form that we write: sorted keys, so that equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def decode(path: Path) -> Any:
    """The value in a JSON file."""
    return json.loads(path.read_bytes())


def write(path: Path, data: bytes) -> None:
    """Write a file and fsync it; not yet durable in its folder (see `replace` and `commit`)."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file and fsync it; tied tensors are written once for each name."""
    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(plain, path)
    sync(path)


def replace(path: Path, data: bytes) -> None:
    """Give `path` new contents: all of them, or after a crash the old ones."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    try:
        write(temporary, data)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            remove(entry)
        os.rmdir(path)
    elif os.path.lexists(path):
        os.unlink(path)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for entry in folder.glob(f"{_TEMPORARY}*"):
        remove(entry)


def commit(target: Path, fill: Callable[[Path], object], facts: Mapping[str, Any] | None = None) -> Path:
    """Make folder `target`, which `fill(folder)` writes, appear complete; an older one of that name is replaced.

    facts: JSON values kept in the manifest.  Where anything fails the temporary folder is removed again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex}")
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        os.mkdir(temporary)
        fill(temporary)
        files = {}
        for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
            sync(file)
            files[file.relative_to(temporary).as_posix()] = {
                "bytes": file.stat().st_size,
                "sha256": digest(file),
            }
        for folder in (p for p in temporary.rglob("*") if p.is_dir()):
            sync(folder)
        body = {"format": FORMAT, "name": target.name, "files": files, "facts": dict(facts or {})}
        write(temporary / MANIFEST, encode(body | {"sha256": hashlib.sha256(encode(body)).hexdigest()}))
        sync(temporary)
        if target.exists():
            os.rename(
                target, old
            )  # a crash here leaves no `target`: only for folders that their owner writes again
        os.rename(temporary, target)
        sync(target.parent)
    except Exception:
        with contextlib.suppress(OSError):
            if old.exists() and not target.exists():
                os.rename(old, target)
            remove(temporary)
        raise
    remove(old)
    return target


def validate(folder: Path) -> dict[str, Any]:
    """The facts of a committed folder whose every byte is as it was written. Raises CheckpointError."""
    manifest = folder / MANIFEST
    try:
        raw = manifest.read_bytes()
        body = json.loads(raw)
        own = body.pop("sha256")
        sound = own == hashlib.sha256(encode(body)).hexdigest() and encode(body | {"sha256": own}) == raw
    except (OSError, ValueError, KeyError, AttributeError) as error:
        state = f"cannot be read ({type(error).__name__})"
        raise _damaged(manifest, state, "a manifest written by a finished commit") from None
    if not sound or body["format"] != FORMAT or body["name"] != folder.name:
        raise _damaged(
            manifest, "was changed after it was written", f"the manifest of {folder.name}, format {FORMAT}"
        )
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name in sorted(present ^ set(body["files"])):
        state = "is not in the manifest" if name in present else "is missing"
        raise _damaged(folder / name, state, f"exactly the files {', '.join(body['files'])}")
    for name, written in body["files"].items():
        found = digest(folder / name)
        if found != written["sha256"]:
            size = (folder / name).stat().st_size
            raise _damaged(
                folder / name,
                f"has SHA-256 {found} ({size} bytes)",
                f"{written['sha256']} ({written['bytes']} bytes)",
            )
    return body["facts"]


def _damaged(path: Path, state: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {state}", expected, "use another checkpoint of the run, or delete this one"
    )


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything named like a checkpoint, newest first; not validated."""
    found = ((_STEP.fullmatch(entry.name), entry) for entry in folder.glob("step-*"))
    return sorted(((int(match[1]), entry) for match, entry in found if match), reverse=True)


def latest(folder: Path) -> tuple[Path | None, list[tuple[Path, CheckpointError]]]:
    """The newest valid checkpoint; and each newer one with what is wrong with it."""
    damaged = []
    for _, checkpoint in steps(folder):
        try:
            validate(checkpoint)
            return checkpoint, damaged
        except CheckpointError as error:
            damaged.append((checkpoint, error))
    return None, damaged


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint so that it no longer counts, and keep it to be looked at."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}-{uuid.uuid4().hex[:8]}")
    os.rename(checkpoint, aside)
    sync(checkpoint.parent)
    return aside


def rotate(folder: Path, keep: int, spare: Iterable[int] = ()) -> None:
    """Remove all but the `keep` newest checkpoints (at least one) and the steps in `spare`.

    Only called after the newest has been validated, so a valid one always stays.
    """
    for step, checkpoint in steps(folder)[max(keep, 1) :]:
        if step not in set(spare):
            # Renamed first: a crash in the middle leaves rubbish that `sweep` knows, not half a checkpoint.
            rubbish = checkpoint.with_name(f"{_TEMPORARY}{checkpoint.name}-{uuid.uuid4().hex}")
            os.rename(checkpoint, rubbish)
            remove(rubbish)


def patiently(path: Path, needed: int, action: Callable[[], T], warn: Callable[[str], None]) -> T:
    """`action()`, again after a pause where the disk is full: somebody may make room. Then SpaceError.

    needed: bytes that the action will write.
    """
    for pause in (*PAUSES_S, None):
        try:
            return action()
        except (OSError, SafetensorError) as error:
            number = _errno(error)
            if number not in _FULL:
                raise
            free = shutil.disk_usage(path if path.exists() else path.parent).free
            trouble = f"{os.strerror(number)} in {path}: {needed:,} bytes are needed, {free:,} are free"
            if pause is None:
                raise SpaceError(
                    trouble,
                    "room for one checkpoint beside the kept ones (and no limit on file size)",
                    "make room or lower train.keep, then run the same command: it goes on from the last checkpoint",
                ) from error
        warn(f"{trouble}; trying again in {pause:g} s")
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _errno(error: OSError | SafetensorError) -> int:
    """The system's number; safetensors' writer, which is not Python, has it in its text only."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None) or 0
