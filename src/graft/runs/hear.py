"""Notices of a run: passed on to who hears of it, to its result and to its folder."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from graft import storage
from graft.errors import Notice, notice


class Notes(list[str]):
    """What the user must know of a run, each once.

    From `keep_in` on every note is in a file as soon as it is told: a run that goes on after a kill does not
    tell again what has run away before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path: Path | None = None
        self._earlier: list[str] = []  # of processes before this one

    def keep_in(self, path: Path) -> None:
        """Write these notes and all later ones into a file, after those that it holds."""
        self._path, self._earlier = path, kept_notes(path)
        self._write()

    def append(self, text: str) -> None:
        super().append(text)
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            storage.write_json(self._path, list(dict.fromkeys([*self._earlier, *self])))


def kept_notes(path: Path) -> list[str]:
    """Return the notes in a file; none, with a notice, if it is damaged."""
    try:
        notes = storage.read_json(path)
        if not isinstance(notes, list):
            raise ValueError("no list")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        notice(f"{path} is damaged: the notes of earlier starts are lost")
        return []
    return [str(text) for text in notes]


@contextlib.contextmanager
def heard(note: Callable[[str], None] | None, shown: Callable[[str], None] | None = None) -> Iterator[Notes]:
    """Collect the notices of the block, each once, and call `note` with them.

    note: None leaves them to be warnings of Python, which the caller's filters may show, hide or raise.
    shown: shows those that the filters let through, instead of Python, and beside `note`.
    """
    notes = Notes()
    others, filters = warnings.showwarning, list(warnings.filters)

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        text = str(message)
        if not issubclass(category, Notice):
            others(message, category, *where, **more)
        elif text not in notes:
            notes.append(text)
            if note is not None:
                note(text)
            if note is None or shown is not None:
                warn_again(message, category, *where)

    def tell(message: Warning | str, *_: Any, **__: Any) -> None:
        assert shown is not None
        shown(str(message))

    def warn_again(message: Warning | str, category: type[Warning], file: str, line: int, *_: Any) -> None:
        with warnings.catch_warnings():
            warnings.filters[:] = filters  # type: ignore[index]
            warnings.showwarning = others if shown is None else tell
            warnings.warn_explicit(message, category, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = show
        yield notes
