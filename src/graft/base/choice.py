"""Which adapter answers: that of the `using` block, or one for each row of a batch.

An adapter is named by its name, or given itself.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from graft.base.adapter import Adapter
from graft.base.merging import Merges
from graft.core.route import Route, Span
from graft.errors import AdapterError, UsageError, one_of

Rows = Sequence[str | None]  # the adapter of each row; None is the bare (or merged) base
Wanted = str | Adapter | Sequence[str | Adapter | None]  # an adapter for all rows, or one for each


class Adapters(dict[str, Adapter]):
    """The adapters of one base by name. The error of a name that is not there tells the nearest one."""

    def __missing__(self, name: object) -> Adapter:
        return self[named(name, self)]


def named(given: object, adapters: Mapping[str, Adapter]) -> str:
    """Return the name of an adapter of a base, which is given by its name or itself.

    Raises AdapterError for one that the base does not have, UsageError for what is no adapter.
    """
    if isinstance(given, str):
        return one_of("adapter", given, adapters, AdapterError, if_none="attach or load one first")
    if not isinstance(given, Adapter):
        raise UsageError(
            f"an adapter is given as {given!r:.60}", "its name, or the adapter itself", 'for example "sql"'
        )
    if adapters.get(given.name) is not given:
        other = f", which has another one called {given.name!r}" if given.name in adapters else ""
        raise AdapterError(
            f"{given!r} is not on this base{other}",
            "an adapter that was attached or loaded here",
            "use the base that it is on, or save it and load it here",
        )
    return given.name


@dataclass(frozen=True, eq=False)
class Block:
    """A `using` block that is open.  name: of the adapter in use there."""

    name: str | None


class Choice:
    """The adapters of one base, and the one in use.

    adapters: by name.  merges: an adapter that is merged cannot be used.
    on_exit: called with every block that ends.
    """

    def __init__(self, adapters: Mapping[str, Adapter], merges: Merges) -> None:
        self._adapters, self._merges = adapters, merges
        self._current: ContextVar[Block | None] = ContextVar("graft_adapter", default=None)
        self._open: list[Block] = []  # those of all threads
        self.on_exit: Callable[[Block], None] = lambda block: None

    @property
    def adapters(self) -> list[Adapter]:
        """All adapters."""
        return list(self._adapters.values())

    @property
    def block(self) -> Block | None:
        """The `using` block that this runs in."""
        return self._current.get()

    @property
    def active(self) -> str | None:
        """The adapter of the `using` block that this runs in."""
        block = self._current.get()
        return None if block is None else block.name

    @property
    def open(self) -> bool:
        """Whether an adapter is in use in any thread."""
        return any(block.name is not None for block in self._open)

    @contextlib.contextmanager
    def using(self, name: str | Adapter | None) -> Iterator[None]:
        """Let this adapter answer every row inside the block; None is the bare (or merged) base."""
        block = Block(None if name is None else self.usable(name).name)
        token = self._current.set(block)
        self._open.append(block)
        try:
            yield
        finally:
            self._open.remove(block)
            self._current.reset(token)
            self.on_exit(block)

    def known(self, name: str | Adapter) -> Adapter:
        """Return this adapter of the base. Raises AdapterError with the nearest name."""
        return self._adapters[named(name, self._adapters)]

    def usable(self, name: str | Adapter) -> Adapter:
        """Return this adapter of the base. Raises AdapterError if there is none, or if it is merged."""
        adapter = self.known(name)
        name = adapter.name
        if name in self._merges:
            raise AdapterError(
                f"{name!r} is merged: the base already answers with it",
                "an adapter that is not merged",
                f"use None, or call unmerge({name!r})",
            )
        return adapter

    def rows(self, adapters: Wanted | None, count: int) -> Rows:
        """Return the name of the adapter of each of `count` rows.

        adapters: one for all rows, or one for each; None: the active one for all.
        """
        if adapters is None:
            return [self.active] * count
        if isinstance(adapters, str | Adapter):
            return [named(adapters, self._adapters)] * count
        if not isinstance(adapters, Sequence):
            raise UsageError(
                f"adapters={adapters!r:.60}",
                "a name (or an adapter), or one for each row",
                'write adapters="sql"',
            )
        if len(adapters) != count:
            raise UsageError(
                f"adapters= has {len(adapters)} names for {count} rows",
                "one name (or None) per row, or one for all rows",
                'give as many, or one name alone: adapters="sql"',
            )
        return [None if given is None else named(given, self._adapters) for given in adapters]

    def route(self, groups: tuple[Span, ...], rows: int) -> Route:
        """Return the Route of rows in these spans. Raises AdapterError for adapters that cannot answer so."""
        adapters = [self.usable(name) for name, _, _ in groups if name is not None]
        if len(groups) > 1:
            for adapter in adapters:
                _check_routable(adapter)
        if adapters and groups[0][0] is not None and adapters[0].in_place:
            return Route(groups, rows, adapters[0].swapped)
        return Route(groups, rows)


def _check_routable(adapter: Adapter) -> None:
    """Raise AdapterError if an adapter cannot share a batch with others."""
    for method in adapter.methods:
        if not method.routable:
            raise AdapterError(
                f"{adapter.name!r} in a batch with other adapters: {method.routable}",
                "rows that all use it",
                "run its rows in a batch of their own",
            )
