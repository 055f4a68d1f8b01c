"""Rows that tell how many of them have been taken."""

from collections.abc import Callable, Sequence
from typing import Any

from graft.data.rows import Row

Told = Callable[[str, int, int], None]  # (what, done, total)


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""


class Counted(Sequence[Row]):
    """Rows that tell, each time a part of them is taken, how many were taken before it."""

    def __init__(self, rows: Sequence[Row], told: Told) -> None:
        self._rows, self._told = rows, told

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            self._told("rows", place.indices(len(self))[0], len(self))
        return self._rows[place]
