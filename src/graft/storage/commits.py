"""Folders that are complete or absent, with a manifest that shows every change; checkpoints are such folders.

A folder is committed in this order: fill `.tmp-NAME-UUID/`; write `manifest.json` last, with the size and
SHA-256 of each file; fsync every file and folder; rename the folder to NAME; fsync its parent. After a crash
at any moment NAME is complete or absent. A folder without a valid manifest is not a checkpoint; the latest
checkpoint is found by scanning and validating, never by a pointer that could be wrong.
"""

import errno
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from graft.errors import CheckpointError, notice
from graft.storage.digests import KINDS, digest
from graft.storage.writes import beside, clear, encode, new_folder, rename, sync, write

MANIFEST = "manifest.json"
FORMAT = 1
_STEP = re.compile(r"step-(\d{6,})")


def commit(target: Path, fill: Callable[[Path], object], facts: Mapping[str, Any] | None = None) -> Path:
    """Make folder `target`, which `fill(folder)` writes, appear complete and with a manifest.

    An older one is replaced.  facts: JSON values kept in the manifest.
    """
    with new_folder(target) as folder:
        fill(folder)
        files = {
            file.relative_to(folder).as_posix(): {
                "bytes": file.stat().st_size,
                **{kind: digest(file, kind) for kind in KINDS},
            }
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
        sha256 = _digest(folder / name)
        if sha256 != entry["sha256"]:
            size = (folder / name).stat().st_size
            state = f"has SHA-256 {sha256} ({size} bytes)"
            raise _damaged(folder / name, state, f"{entry['sha256']} ({entry['bytes']} bytes)")
    facts: dict[str, Any] = body["facts"]
    return facts


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raises CheckpointError if the disk has lost a part of it."""
    try:
        return digest(path)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOENT):
            raise  # the file may be whole: no reason to go on without it
        raise _damaged(path, f"cannot be read ({error.strerror})", "a file that can be read") from None


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder. Raises CheckpointError if it was changed, or is another folder's."""
    path = folder / MANIFEST
    body = sealed_manifest(path)
    if body["name"] != folder.name:
        raise _damaged(path, f"is that of {body['name']}", f"the manifest of {folder.name}")
    return body


def sealed_manifest(path: Path) -> dict[str, Any]:
    """Return what a manifest says, whatever its folder is called.

    Raises CheckpointError if it was changed.
    """
    try:
        raw = path.read_bytes()
        body = json.loads(raw)
        sha256 = body.pop("sha256")
        sealed = hashlib.sha256(encode(body)).hexdigest() == sha256
        unchanged = sealed and encode(body | {"sha256": sha256}) == raw
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        state = f"cannot be read ({type(error).__name__})"
        raise _damaged(path, state, "a manifest written by a finished commit") from None
    if not unchanged or not _has_our_shape(body):
        raise _damaged(path, "was changed after it was written", f"a manifest of format {FORMAT}")
    return dict(body)


def _has_our_shape(body: dict[str, Any]) -> bool:
    """Return whether an object is what `commit` writes, apart from what its values are."""
    files = body.get("files")
    if body.get("format") != FORMAT or not isinstance(files, dict):
        return False
    entries = [
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("bytes"), int)
        for entry in files.values()
    ]
    return all(entries) and isinstance(body.get("facts"), dict) and isinstance(body.get("name"), str)


def _damaged(path: Path, state: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {state}", expected, "use another checkpoint of the run, or delete this one"
    )


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
    rename(checkpoint, renamed)
    sync(checkpoint.parent)
    return renamed


def rotate(folder: Path, keep: int, spare: Iterable[int] = (), warn: Callable[[str], None] = notice) -> None:
    """Remove all checkpoints but the `keep` newest (at least one) and the steps in `spare`.

    Call it only after the newest has been validated, so that a valid one always stays. Where the system does
    not let an old one go, `warn` is told, and nothing is lost.
    """
    spared = set(spare)
    for step, checkpoint in steps(folder)[max(keep, 1) :]:
        if step not in spared:
            discard(checkpoint, warn)


def discard(folder: Path, warn: Callable[[str], None] = notice) -> None:
    """Remove a committed folder; where the system does not let it go, `warn` is told, and nothing is lost."""
    # Renamed first: a crash in the middle leaves rubbish that `sweep` knows, not half a folder.
    rubbish = beside(folder)
    try:
        rename(folder, rubbish)
    except OSError as error:
        warn(f"{folder} is no longer kept and cannot be removed ({error.strerror or error})")
        return
    clear(rubbish, warn)
