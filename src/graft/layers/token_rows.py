"""Trained rows of a table: chosen tokens get a vector, and a logit, of their own.

    E'[i] = R_j if i is the j-th chosen id, else E[i]        R (k, d), starts as those rows of E

E itself stays as it is, so rows of one batch may use different R. The bias of a head (BERT) is kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.insert import Insert, Weights
from graft.core.part import Seats
from graft.core.site import Site
from graft.errors import SiteError, UsageError
from graft.layers.tied import tied_heads

Indices = Sequence[int] | Mapping[str, Sequence[int]] | None  # of the input table, or by table or head
DELTA = "trainable_tokens_delta"
BESIDE = f"token_adapter.{DELTA}"  # PEFT's key where the rows are trained beside another method


class Table(nn.Module):
    """R: row j is that of ids[j]."""

    def __init__(self, site: Site, ids: Sequence[int]) -> None:
        super().__init__()
        self.R = nn.Parameter(site.weight().detach()[list(ids)].float().clone())


class Rows(Insert):
    """What reads R at one site.

    ids (k,): the chosen ones.  suffix: of R's key in a file; "" where another site's key holds it.
    """

    ids: torch.Tensor

    def __init__(self, site: Site, table: Table, ids: Sequence[int], suffix: str = DELTA) -> None:
        super().__init__()
        self.site, self.suffix = site, suffix
        self._borrowed = (table,)  # in a tuple torch does not see it: its tensor is kept once
        self.register_buffer("ids", torch.tensor(ids, device=table.R.device), persistent=False)

    @property
    def keeps(self) -> bool:
        """Whether R is kept here, not borrowed."""
        return hasattr(self, "table")

    @property
    def R(self) -> torch.Tensor:
        """The trained rows (k, d)."""
        return self._borrowed[0].R

    def saved(self) -> dict[str, torch.Tensor]:
        """Return R. Files hold no tensor twice, so sites that borrow it give copies."""
        return {self.suffix: self.R if self.keeps else self.R.clone()} if self.suffix else {}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for tensor in tensors.values():
                self.R.copy_(tensor)

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight.index_copy(0, self.ids, self.R.detach().to(weight)), bias


class Lookup(Rows):
    """At a table, where x are ids and y their vectors."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rising, order = self.ids.sort()
        place = torch.searchsorted(rising, x).clamp(max=len(rising) - 1)
        chosen = (rising[place] == x)[..., None]
        trained = F.embedding(order[place], self.R).to(y.dtype) * self.site.multiplier
        return torch.where(chosen, trained, y)


class Scores(Rows):
    """At a head, where y are logits."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bias = self.site.bias()
        trained = F.linear(x, self.R.to(x.dtype), None if bias is None else bias[self.ids].to(x.dtype))
        return y.index_copy(-1, self.ids, trained.to(y.dtype))


def check_ids(name: str, ids: Sequence[Any]) -> None:
    """Raise UsageError unless these are ids of tokens, each once.  name: of the setting."""
    numbers = all(isinstance(i, int) and i >= 0 for i in ids)
    if not (numbers and ids and len(set(ids)) == len(ids)):
        raise UsageError(
            f"{name}={ids!r}", "ids of tokens, each once, or all", "see tokenizer(text)['input_ids']"
        )


def seated(places: Sequence[Site], ids: Sequence[int], suffix: str = DELTA, further: str = DELTA) -> Seats:
    """Return inserts that share one R, the first of which keeps it.

    suffix, further: of R's key in a file, at the first site and at the others.
    """
    count = places[0].weight().shape[0]
    if max(ids) >= count:
        raise UsageError(f"token_indices holds {max(ids)}", f"ids below {count}", "resize the table first")
    table = Table(places[0], ids)
    seats: Seats = []
    for site in places:
        kind = Lookup if site.kind == "embed" else Scores
        seats.append((site, kind(site, table, ids, further if seats else suffix)))
    seats[0][1].table = table  # the first keeps it, in checkpoints and files; the others borrow
    return seats


def beside(indices: Indices, sites: Sequence[Site]) -> Seats:
    """Return the rows that PEFT trains beside another method (`trainable_token_indices`).

    indices: ids of the table of input embeddings; or those of each table or head, by name.  As in PEFT, what
    is tied to the table follows it, unless other ids are given for it.
    """
    tables = [site for site in sites if site.kind == "embed"]
    heads = tied_heads(sites)
    if not indices:
        return []
    if not isinstance(indices, Mapping):
        return seated([*tables, *heads], indices, BESIDE, "")
    chosen = {name: _place(name, sites) for name in indices}
    table = next((name for name, site in chosen.items() if site.kind == "embed"), None)
    own = None if table is None else indices[table]
    apart = {site.name for name, site in chosen.items() if indices[name] != own}
    follow = [] if any(head.name in apart for head in heads) else heads
    seats: Seats = []
    for name, site in chosen.items():
        if name == table:
            seats += seated([*tables, *follow], indices[name], BESIDE, "")
        elif table is None or all(site.name != head.name for head in follow):
            seats += seated([site], indices[name], BESIDE)
    return seats


def ids_at(indices: Indices, site: Site) -> Sequence[int]:
    """Return the ids of the rows that are trained at a table or head. A tied head has those of the table."""
    if not isinstance(indices, Mapping):
        return indices or ()
    own = [ids for name, ids in indices.items() if f".{site.name}".endswith(f".{name}")]
    return own[0] if own else next(iter(indices.values()), ())


def without(indices: Indices, places: Sequence[Site]) -> Indices:
    """Return the indices that are left without those at these places."""
    if not isinstance(indices, Mapping):
        return None
    names = [f".{site.name}" for site in places]
    return {n: ids for n, ids in indices.items() if not any(name.endswith(f".{n}") for name in names)}


def _place(name: str, sites: Sequence[Site]) -> Site:
    found = [s for s in sites if s.kind in ("embed", "head") and f".{s.name}".endswith(f".{name}")]
    if not found:
        raise SiteError(
            f"trainable_token_indices names {name!r}",
            "a table of word embeddings or the head: "
            + ", ".join(s.name for s in sites if s.kind in ("embed", "head")),
            "name one of these",
        )
    return found[0]
