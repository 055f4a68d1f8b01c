"""What is trained at a table of word embeddings and, where a head is tied to it, at the head too."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from graft.core.insert import Insert, Weights
from graft.core.part import Seats
from graft.core.site import Site


def tied_heads(sites: Sequence[Site]) -> list[Site]:
    """Return the heads whose weight is the table of input embeddings itself."""
    tables = [site for site in sites if site.kind == "embed"]
    return [s for s in sites if tables and s.kind == "head" and s.module.weight is tables[0].module.weight]


def group(sites: Sequence[Site]) -> list[str]:
    """Return the names of the table of input embeddings and of the heads tied to it; empty without heads."""
    heads = [site.name for site in tied_heads(sites)]
    return [next(site.name for site in sites if site.kind == "embed"), *heads] if heads else []


def follow(seats: Seats, sites: Sequence[Site], build: Callable[[Site], Any]) -> Seats:
    """Return seats in which a table and the heads tied to it share what is trained at any of them.

    build: makes the table's insert where there is none; its `follower` is that of a head.
    """
    heads, names = tied_heads(sites), group(sites)
    if not {site.name for site, _ in seats} & set(names):
        return seats
    table = next(site for site in sites if site.name == names[0] and site.kind == "embed")
    rest = [(site, insert) for site, insert in seats if site.name not in names]
    own: Any = next((insert for site, insert in seats if site.name == table.name), None) or build(table)
    return [*rest, (table, own), *((head, own.follower(head)) for head in heads)]


class TiedReplacement(Insert):
    """At a tied head: logits by the trained copy of the table, and by the head's own bias."""

    def __init__(self, site: Site, table: Any) -> None:
        """table: the insert of the trained copy."""
        super().__init__()
        self.site = site
        self._borrowed = (table,)  # in a tuple torch does not see it: its tensor is kept once

    @property
    def weight(self) -> torch.Tensor:
        """The trained table (ids, d)."""
        weight: torch.Tensor = self._borrowed[0].copy.weight
        return weight

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bias = self.site.bias()
        return F.linear(x, self.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)).to(y.dtype)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return self.weight.detach(), bias

    def saved(self) -> dict[str, torch.Tensor]:
        """Return a copy: PEFT writes the table under both names."""
        return {"weight": self.weight.detach().clone()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take nothing: the table's own insert does."""
