"""Record what happens to a folder, operation by operation, and build what a crash would leave of it.

The seam is the `os` that graft's writing modules use. Before and after each call there the folder is looked
at, so that files of other writers (safetensors, transformers, shutil) are operations as well. What a power
cut keeps is decided on a model of a strict disk: bytes last once their file is synced, and names once their
folder is.

    applied   everything up to the operation is there
    lost      names are there, bytes that were not synced are not
    cut       names are there, of the bytes that were not synced every second half is missing
    unnamed   bytes are there, names that were made, changed or removed in a folder not synced since are not
"""

import contextlib
import importlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORLDS = ("applied", "lost", "cut", "unnamed")
# Modules whose `os` changes the folder of a run, if they have one.
SEAMS = ("graft.storage.writes", "graft.storage.commits", "graft.storage.digests", "graft.training.log")
CHANGES = (
    "open", "mkdir", "write", "fsync", "fdatasync", "rename", "replace", "unlink", "remove", "rmdir", "link",
    "symlink", "truncate", "ftruncate",
)  # fmt: skip
GONE = 2**22 - 1  # a process that does not run: whose states are looked at is no more
IGNORED = (".lock", ".owner.json")  # they serve a process that lives

Operation = tuple[str, str, Any]  # kind, path inside the folder, contents or a second path


@dataclass
class Recorder:
    """The operations on a folder, in order; stands for the module `os` while `recording`."""

    folder: Path
    operations: list[Operation] = field(default_factory=list)
    _seen: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._recorded(name, real) if name in CHANGES else real

    def getpid(self) -> int:
        """Return the number of a process that does not run: temporary names may have it in them."""
        return GONE

    def _recorded(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.notice()
            synced = self._inside(arguments[0]) if name in ("fsync", "fdatasync") else None
            moved = [self._inside(path) for path in arguments[:2]] if name in ("rename", "replace") else []
            value = real(*arguments, **keywords)
            if synced is not None:
                self.operations.append(("sync", synced, None))
            elif len(moved) == 2 and None not in moved:
                self.operations.append(("rename", moved[0], moved[1]))
                self._seen = self._scan()
            self.notice()
            return value

        return call

    def notice(self) -> None:
        """Note what has changed in the folder since the last look."""
        now = self._scan()
        for path in sorted(self._seen.keys() - now.keys(), reverse=True):
            self.operations.append(("remove", path, None))
        for path in sorted(now):
            if self._seen.get(path) != now[path]:
                if stat.S_ISDIR(now[path][0]):
                    if path not in self._seen:
                        self.operations.append(("mkdir", path, None))
                else:
                    new = now[path][1] != self._seen.get(path, (0, 0))[1]  # another file under this name
                    self.operations.append(("content", path, ((self.folder / path).read_bytes(), new)))
        self._seen = now

    def _scan(self) -> dict[str, tuple[int, ...]]:
        """Return what tells a changed file or folder from an unchanged one, by path."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.folder.rglob("*"):
            if path.name in IGNORED:
                continue
            with contextlib.suppress(FileNotFoundError):
                s = path.lstat()
                mark = () if stat.S_ISDIR(s.st_mode) else (s.st_size, s.st_mtime_ns)
                found[path.relative_to(self.folder).as_posix()] = (s.st_mode, s.st_ino, *mark)
        return found

    def _inside(self, what: Any) -> str | None:
        """Return the path inside the folder of a path or of an open file; None if it lies elsewhere."""
        where = Path(os.readlink(f"/proc/self/fd/{what}")) if isinstance(what, int) else Path(what).absolute()
        return where.relative_to(self.folder).as_posix() if where.is_relative_to(self.folder) else None


@contextlib.contextmanager
def seam(stand_in: Any) -> Iterator[Any]:
    """Give graft's writing modules another `os` inside the block."""
    modules = []
    for name in SEAMS:
        with contextlib.suppress(ModuleNotFoundError):
            modules.append(importlib.import_module(name))
    modules = [module for module in modules if getattr(module, "os", None) is os]
    for module in modules:
        module.os = stand_in
    try:
        yield stand_in
    finally:
        for module in modules:
            module.os = os


@contextlib.contextmanager
def recording(folder: Path) -> Iterator[Recorder]:
    """Record the operations on a folder inside the block."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(folder.resolve())
    recorder.notice()
    with seam(recorder):
        yield recorder
    recorder.notice()


@dataclass
class Node:
    """A file or a folder of the model.

    data, synced: contents now, and on the disk (None: never synced).  names, lasting: entries, the same.
    """

    folder: bool
    data: bytes = b""
    synced: bytes | None = None
    names: dict[str, "Node"] = field(default_factory=dict)
    lasting: dict[str, "Node"] = field(default_factory=dict)


def after(operations: list[Operation], begin: int, count: int) -> Node:
    """Return the folder after `count` operations; the first `begin` of them had been on the disk for long."""
    root = Node(True)
    for number, operation in enumerate(operations[:count]):
        _apply(root, operation)
        if number + 1 == begin:
            _settle(root)
    return root


def _settle(node: Node) -> None:
    """Make everything durable."""
    node.synced, node.lasting = node.data, dict(node.names)
    for child in node.names.values():
        _settle(child)


def _apply(root: Node, operation: Operation) -> None:
    kind, path, more = operation
    if path == ".":  # only synced
        root.lasting = dict(root.names)
        return
    *above, name = path.split("/")
    folder = _at(root, above)
    if kind == "mkdir":
        folder.names[name] = Node(True)
    elif kind == "content":
        data, new = more
        if new:
            folder.names[name] = Node(False)
        folder.names[name].data = data
    elif kind == "remove":
        folder.names.pop(name)
    elif kind == "rename":
        *new_above, new_name = more.split("/")
        _at(root, new_above).names[new_name] = folder.names.pop(name)
    elif kind == "sync" and name in folder.names:
        node = folder.names[name]
        node.synced, node.lasting = node.data, dict(node.names)


def _at(root: Node, parts: list[str]) -> Node:
    for part in parts:
        root = root.names[part]
    return root


def materialise(node: Node, world: str, place: Path) -> None:
    """Write what a crash in this world leaves into a new folder."""
    place.mkdir(parents=True)
    for name, child in (node.lasting if world == "unnamed" else node.names).items():
        if child.folder:
            materialise(child, world, place / name)
        else:
            (place / name).write_bytes(left(child, world))


def left(node: Node, world: str) -> bytes:
    """Return what is left of a file's bytes."""
    if world in ("applied", "unnamed") or node.data == node.synced:
        return node.data
    kept = node.synced or b""
    kept = kept if node.data.startswith(kept) else b""  # it was cut and written anew
    half = (len(node.data) - len(kept)) // 2 if world == "cut" else 0
    return node.data[: len(kept) + half]


def cleared(place: Path) -> Path:
    """Return a path with nothing there."""
    shutil.rmtree(place, ignore_errors=True)
    return place
