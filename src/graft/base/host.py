"""Host: hooks inserts into a model. `Base` has one for each group of kinds of sites."""

from collections.abc import Iterable
from typing import Any

from graft.core.site import Site


class Host:
    """Base class of hosts. A host leaves no trace on the model when its last insert is gone."""

    def add(self, name: str, site: Site, insert: Any) -> None:
        """Hook an insert of the adapter `name` in, after those that this adapter has here already."""

    def remove(self, name: str) -> None:
        """Take out all inserts of an adapter."""

    def rehook(self) -> None:
        """Hook the modules that are in the model now; merging may have replaced some."""

    def positions(self, names: Iterable[str | None]) -> int:
        """Return the largest number of positions that one of these adapters takes, tokens not counted."""
        return 0

    def seats(self, name: str | None) -> int:
        """Return how many places an adapter's virtual tokens take in a cache."""
        return 0

    def cacheable(self, names: Iterable[str | None]) -> bool:
        """Return whether text can be written with a cache under these adapters."""
        return True
