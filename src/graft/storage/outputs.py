"""Files and folders that a user asks for: looked at before the work begins, whole or absent after it."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from graft.errors import UsageError
from graft.storage import writes
from graft.storage.disk import named_errors
from graft.storage.lock import output_locked

LONGEST = 255  # bytes of a name


@contextlib.contextmanager
def output_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, a folder that the user asked for (see `new_folder`).

    Raises UsageError if `path` holds something and force is False, cannot be a folder, or is being written by
    another process; MachineError for errors of the system. What killed processes left of earlier tries is
    removed.
    """
    refuse_occupied(path, force=force)
    with named_errors("while writing it", path), output_locked(path):
        refuse_occupied(path, force=force)  # another process may have written it in between
        with writes.new_folder(path) as temporary:
            yield temporary


def refuse_occupied(path: Path, *, force: bool) -> None:
    """Raise UsageError if `path` is a file or a folder that holds something, and force is False.

    Raises also what `require_writable` does. What killed processes left of earlier tries is removed.
    """
    require_writable(path)
    with named_errors("while looking at it", path):
        writes.sweep_beside(path)
        occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if occupied and not force:
        raise UsageError(
            f"{path} exists", "a new folder", "choose another name, delete it, or pass force=True (--force)"
        )


def require_file(path: Path) -> None:
    """Raise UsageError or MachineError if `path` cannot be written as a file; its folder may be missing."""
    require_writable(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "a file", "give the name of a file in it")


# What lies in a run's folder from its first moments on, or in that of several runs.
OF_RUNS = ("recipe.yaml", "identity.json", "metrics.jsonl", "tokenizer", "*/recipe.yaml", "rows/rows.json")


def require_run_folder(path: Path) -> None:
    """Raise UsageError or MachineError if files of a run cannot be written in this folder.

    It may be missing. One that holds other files and nothing of a run is refused, as exports refuse it.
    """
    require_writable(path / "recipe.yaml", typed=path)
    with named_errors("while looking at it", path):
        others = [p for p in path.iterdir() if not p.name.startswith(".")] if path.is_dir() else []
        foreign = others and not any(next(path.glob(name), None) for name in OF_RUNS)
    if foreign:
        raise UsageError(
            f"{path} holds other files, such as {others[0].name}, and no run",
            "a new folder, an empty one, or that of a run",
            f"choose another output, for example {path / 'run'}",
        )


def require_writable(path: Path, typed: Path | None = None) -> None:
    """Raise UsageError or MachineError if nothing can be written under this name.

    Folders that are missing on the way count as writable if the nearest that exists is.
    typed: the path for messages, if it is another one.
    """
    typed = typed or path
    if "\0" in str(path) or any(len(os.fsencode(part)) > LONGEST for part in path.parts):
        expected = f"names of at most {LONGEST} bytes each, without NUL"
        raise UsageError(f"{str(path)[:80]!r} cannot be a path", expected, "choose another one")
    with named_errors("while looking for it", typed):
        folder = _folder_above(path, typed)
    writes.sweep_beside(folder / "probe")  # that a process could not remove
    probe = writes.beside(folder / "probe")
    with named_errors("while trying to write there", typed):
        try:
            writes.write(probe, b"")
        except OSError as error:
            error.filename = str(typed)
            raise
        finally:
            with contextlib.suppress(OSError):
                writes.remove(probe)


def _folder_above(path: Path, typed: Path) -> Path:
    """Return the nearest folder above a path that exists. Raises UsageError if it is a file."""
    _refuse_broken_link(path)
    for place in path.absolute().parents:
        try:
            mode = os.stat(place).st_mode
        except NotADirectoryError:  # a file is further up
            continue
        except FileNotFoundError:
            _refuse_broken_link(place)
            continue
        if not stat.S_ISDIR(mode):
            what = "a folder" if place == typed.absolute() else f"a folder, for {typed}"
            raise UsageError(f"{place} is a file", what, "choose another path, or move the file away")
        return place
    raise AssertionError("the root is a folder")


def _refuse_broken_link(place: Path) -> None:
    if place.is_symlink() and not place.exists():
        raise UsageError(
            f"{place} is a link to {os.readlink(place)}, which does not exist",
            "a folder, a link to one, or nothing",
            "make what it leads to, remove the link, or choose another path",
        )
