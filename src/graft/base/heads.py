"""Task heads: know which adapters have one, and compute the heads' logits for the rows of a batch."""

from collections.abc import Callable, Sequence

import torch

from graft.base.host import Host
from graft.core.insert import Head
from graft.core.route import Route
from graft.core.site import Site
from graft.errors import AdapterError


class Heads(Host):
    """The heads of all adapters on one base. They hook nothing: `Base` runs them on the last hidden state."""

    def __init__(self) -> None:
        self._heads: dict[str, list[Head]] = {}

    def add(self, name: str, site: Site, insert: Head) -> None:
        self._heads.setdefault(name, []).append(insert)

    def remove(self, name: str) -> None:
        self._heads.pop(name, None)

    def answer(self, rows: Sequence[str | None]) -> bool:
        """Return whether heads answer these rows. Raises AdapterError if only some of the rows have one."""
        if not any(name in self._heads for name in rows):
            return False
        bare = sorted({str(name) for name in rows if name not in self._heads})
        if bare:
            raise AdapterError(
                f"a batch mixes task heads with rows of {', '.join(bare)}, which have none",
                "rows that all have a head",
                "run them in batches of their own",
            )
        return True

    def logits(
        self, route: Route, states_of: Callable[[str], torch.Tensor], mask: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Return the logits of every head, in the order of the spans.

        states_of: the last hidden states (B, T, D) of all rows, as the head of this adapter reads them.
        """
        return [
            head(states_of(name or "")[a:b], None if mask is None else mask[a:b])
            for name, a, b in route.spans
            for head in self._heads[name or ""]
        ]

    def of_states(self, name: str | None, states: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, classes) of one adapter's head on states (N, D) that are pooled already.

        Raises AdapterError for an adapter without a head.
        """
        if name not in self._heads:
            raise AdapterError(
                f"{name or 'the bare base'} has no task head",
                "an adapter with one",
                "attach TaskHead with it, or use an adapter of stage reward",
            )
        logits: torch.Tensor = self._heads[name][0](states[:, None], None)
        return logits
