"""Pass the notices of a run on: to its observer, its result and its folder."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from graft.errors import Notice


@contextlib.contextmanager
def heard(note: Callable[[str], None] | None) -> Iterator[list[str]]:
    """Collect the notices of the block, each once, and call `note` with them.

    note: None leaves them to be warnings of Python, which the caller's filters may show, hide or raise.
    """
    notes: list[str] = []
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
