"""Host: what hooks the inserts of some kinds of sites into a model.

`Base.hosts_of` says which kind goes to which.
"""

from collections.abc import Iterable
from typing import Any

from graft.core.site import Site


class Host:
    """Base class. A host leaves no trace on the model when its last insert is gone."""

    def add(self, name: str, site: Site, insert: Any) -> None:
        """Seat an insert of the adapter `name`, after those that this adapter has here already."""

    def remove(self, name: str) -> None:
        """Unseat an adapter."""

    def rehook(self) -> None:
        """Hook the modules that sit in the model now; merging may have replaced some."""

    def positions(self, names: Iterable[str | None]) -> int:
        """Return the largest number of positions that one of these adapters takes, besides the tokens."""
        return 0
