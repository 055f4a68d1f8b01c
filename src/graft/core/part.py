"""Part: what one method of an adapter put on the base.

An adapter that was built by several methods has one Part for each of them. A method is handed its own Part
(in `param_groups`, `after_step`, ...) and never sees what the other methods built.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import nn

from graft.core.insert import AdapterModule
from graft.core.site import Site

Seat = tuple[Site, AdapterModule]
Seats = list[Seat]
M = TypeVar("M", bound=AdapterModule)


class Part:
    """The (site, insert) pairs that one method built, in the order in which they run."""

    def __init__(self, inserts: Iterable[Seat]) -> None:
        self.inserts = list(inserts)

    def __repr__(self) -> str:
        return (
            f"Part of {len(self.inserts)} inserts, {sum(p.numel() for p in self.parameters()):,} parameters"
        )

    def of(self, kind: type[M]) -> list[tuple[Site, M]]:
        """Return the pairs whose insert is of this class."""
        return [(site, insert) for site, insert in self.inserts if isinstance(insert, kind)]

    def named_inserts(self) -> Iterator[tuple[str, AdapterModule]]:
        """Yield (key, insert). The key names the insert in checkpoints, by its number and its site."""
        for position, (site, insert) in enumerate(self.inserts):
            yield f"{position}.{site.name}", insert

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (key, trained tensor), each tensor once, even if several inserts share it."""
        seen: set[int] = set()
        for key, insert in self.named_inserts():
            for name, parameter in insert.named_parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{key}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained tensors, each once."""
        return [parameter for _, parameter in self.named_parameters()]
