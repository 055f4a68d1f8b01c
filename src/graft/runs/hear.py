"""Who hears of a run: its observer, and the notices that are passed on to it, its result and its folder."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from graft import storage
from graft.data import DataReport
from graft.errors import Notice, notice
from graft.recipe import Recipe
from graft.training import Observer


class RunObserver(Observer):
    """An observer of training that also receives what happens before and after it."""

    def stage(self, name: str, number: int, count: int, recipe: Recipe) -> None:
        """Receive the start of a stage, which is number `number` of `count`, of a recipe with several."""

    def begin(self, facts: dict[str, Any]) -> None:
        """Receive what will be trained: base, parameters, dtype, stored; methods, sites, trained."""

    def note(self, text: str) -> None:
        """Receive something that the user must know: a setting, row or model that is not used as it stands.

        An observer without this method of its own leaves notes to Python's warnings (`graft.Notice`).
        """

    def data(self, report: DataReport) -> None:
        """Receive the data report, before the first step."""

    def scoring(self) -> None:
        """Receive the start of scoring: the held-out rows, before and after training."""


def note_of(observer: RunObserver) -> Callable[[str], None] | None:
    """Return what receives notes; None for an observer that does not say what to do with them."""
    return None if type(observer).note is RunObserver.note else observer.note


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
def heard(note: Callable[[str], None] | None) -> Iterator[Notes]:
    """Collect the notices of the block, each once, and call `note` with them.

    note: None leaves them to be warnings of Python, which the caller's filters may show, hide or raise.
    """
    notes = Notes()
    others, filters = warnings.showwarning, list(warnings.filters)

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        text = str(message)
        if not issubclass(category, Notice):
            others(message, category, *where, **more)
        elif text not in notes:
            notes.append(text)
            note(text) if note is not None else warn_again(message, category, *where)

    def warn_again(message: Warning | str, category: type[Warning], file: str, line: int, *_: Any) -> None:
        with warnings.catch_warnings():
            warnings.filters[:] = filters  # type: ignore[index]
            warnings.showwarning = others
            warnings.warn_explicit(message, category, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = show
        yield notes
