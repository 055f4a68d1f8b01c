"""Routing: which rows of a batch belong to which adapter while one forward runs.

`spans` is pure arithmetic on names. A `Route` is what hooks read. It is kept in a `threading.local` while one
forward runs, because dynamo can trace that (it cannot trace a ContextVar), and because a checkpointed layer,
recomputed in backward, must find the Route of ITS forward again (`installed(route)` in the checkpoint's
context).
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Span = tuple[str | None, int, int]  # adapter, first row, row after the last


def spans(rows: Sequence[str | None]) -> tuple[list[int], tuple[Span, ...]]:
    """Sort rows by adapter so that each adapter owns one contiguous span.

    >>> spans(["b", None, "b", "a"])
    ([1, 3, 0, 2], ((None, 0, 1), ('a', 1, 2), ('b', 2, 4)))
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i] is not None, rows[i] or ""))
    groups: list[Span] = []
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or rows[order[stop]] != rows[order[start]]:
            groups.append((rows[order[start]], start, stop))
            start = stop
    return order, tuple(groups)


@dataclass
class Taps:
    """What one place of the model leaves for a later one while a forward runs.

    entered: {name of a sublayer: what entered its first projection}.
    text: where the text stands among virtual tokens, while the backbone runs.
    virtual: the virtual tokens themselves, until the backbone embeds its ids.
    states: {identity of an insert: the states that it left}.
    cache: keys and values of the stack that has just run, or None.
    added: the modules whose product holds its update already.
    """

    entered: dict[str, torch.Tensor] = field(default_factory=dict)
    text: Any = None
    virtual: Any = None
    states: dict[int, Any] = field(default_factory=dict)
    cache: Any = None
    added: set[str] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Route:
    """The adapters of one forward.

    spans: contiguous, and cover all rows.  rows: number of rows that the caller gave.
    swap: puts the parameters of in-place methods into the model, for a block.
    seated: the virtual tokens are in the cache already, and mask and positions count them.
    """

    spans: tuple[Span, ...]
    rows: int
    swap: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    taps: Taps = field(default_factory=Taps)
    seated: bool = False

    @property
    def names(self) -> list[str | None]:
        """The adapter of each span."""
        return [name for name, _, _ in self.spans]

    def parts(self, count: int) -> list[tuple[str | None, slice]]:
        """Return (adapter, its rows) for a tensor of `count` rows.

        A module may see k times as many rows as the caller gave: OPT flattens to B·T, beams and returned
        sequences repeat rows.

        >>> Route((("a", 0, 1), (None, 1, 3)), rows=3).parts(6)
        [('a', slice(0, 2, None)), (None, slice(2, 6, None))]
        """
        k = count // self.rows
        return [(name, slice(a * k, b * k)) for name, a, b in self.spans]


_live = threading.local()


def current() -> Route | None:
    """Return the Route of the forward that runs in this thread, if any."""
    return getattr(_live, "route", None)


def decided() -> bool:
    """Return whether somebody has said which Route hooks read in this thread now, be it none."""
    return getattr(_live, "decided", False)


@contextlib.contextmanager
def installed(route: Route | None) -> Iterator[None]:
    """Let hooks read `route` inside the block, and the Route that was there before after it."""
    before = current(), decided()
    _live.route, _live.decided = route, True
    try:
        with route.swap() if route is not None else contextlib.nullcontext():
            yield
    finally:
        _live.route, _live.decided = before
