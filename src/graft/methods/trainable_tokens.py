"""Trainable tokens: chosen rows of the table of word embeddings are trained; everything else is frozen.

    E'[i] = R_j if i is the j-th chosen id, else E[i]        R (k, d) trained, starts as those rows of E

For tokens that are new to the vocabulary, or that a task gives another meaning. k·d numbers. If the head is
tied to the table, its logits of the chosen ids come from R too. PEFT's method of this name, without a paper.
Differs: rows of one batch may use different R, because E itself stays as it is; the bias of a tied head
(BERT) is kept, which PEFT leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from graft.core.file_layout import FileLayout
from graft.core.insert import Insert, Weights
from graft.core.method import Method
from graft.core.part import Part, Seats
from graft.core.site import Site
from graft.errors import UsageError

MANY = 4096  # with so many rows a notice says how many are trained


class TokenFiles(FileLayout):
    """PEFT's config, with the ids of the trained rows."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        ids = part.of(Rows)[0][1].ids
        return {"token_indices": ids.tolist(), "target_modules": None, "init_weights": True}


@dataclass(frozen=True)
class TrainableTokens(Method):
    # ids of the tokens whose rows are trained; all: the whole table
    token_indices: str | tuple[int, ...] = "all"

    kinds: ClassVar = ("embed", "head")
    files: ClassVar = TokenFiles("TRAINABLE_TOKENS", idle=frozenset({"target_modules", "init_weights"}))

    def __post_init__(self) -> None:
        ids = self.token_indices
        numbers = not isinstance(ids, str) and all(isinstance(i, int) and i >= 0 for i in ids)
        if ids != "all" and not (numbers and ids and len(set(ids)) == len(ids)):
            raise UsageError(
                f"token_indices={ids!r}",
                "ids of tokens, each once, or all",
                "see tokenizer(text)['input_ids']",
            )

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """Return the table, under all its names, and a head that is tied to it."""
        tables = [site for site in sites if site.kind == "embed"]
        tied = [
            site for site in sites if site.kind == "head" and site.module.weight is tables[0].module.weight
        ]
        return tables + tied

    def assemble(self, sites: Sequence[Site]) -> Seats:
        places = self.targets(sites)
        count = places[0].in_features
        ids = range(count) if isinstance(self.token_indices, str) else self.token_indices
        if max(ids) >= count:
            raise UsageError(
                f"token_indices holds {max(ids)}", f"ids below {count}", "resize the table first"
            )
        table = Table(places[0], ids)
        seats: Seats = [
            (site, (Lookup if site.kind == "embed" else Scores)(site, table, ids)) for site in places
        ]
        seats[0][1].table = table  # the first keeps it, in checkpoints and files; the others borrow
        return seats

    def param_groups(self, part: Part, lr: float) -> list[dict[str, Any]]:
        """Return groups without weight decay, which would pull a row to 0 and not to where it started."""
        return [group | {"weight_decay": 0.0} for group in super().param_groups(part, lr)]

    def notice(self, part: Part) -> str | None:
        count = len(part.of(Rows)[0][1].ids)
        return f"{count:,} rows of the table are trained: name token_indices" if count >= MANY else None


class Table(nn.Module):
    """R: row j is that of ids[j]."""

    def __init__(self, site: Site, ids: Sequence[int]) -> None:
        super().__init__()
        self.R = nn.Parameter(site.weight().detach()[list(ids)].float().clone())


class Rows(Insert):
    """What reads R at one site.  ids (k,): the chosen ones."""

    ids: torch.Tensor

    def __init__(self, site: Site, table: Table, ids: Sequence[int]) -> None:
        super().__init__()
        self.site = site
        self._borrowed = (table,)  # in a tuple torch does not see it: its tensor is kept once
        self.register_buffer("ids", torch.tensor(ids, device=table.R.device), persistent=False)

    @property
    def R(self) -> torch.Tensor:
        """The trained rows (k, d)."""
        return self._borrowed[0].R

    def saved(self) -> dict[str, torch.Tensor]:
        """Return R at every site, as PEFT writes it.

        Files hold no tensor twice, so other sites give copies.
        """
        return {"trainable_tokens_delta": self.R if hasattr(self, "table") else self.R.clone()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.R.copy_(tensors["trainable_tokens_delta"])

    def merge(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Weights:
        return weight.index_copy(0, self.ids, self.R.detach().to(weight)), bias


class Lookup(Rows):
    """At the table, where x are ids and y their vectors."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rising, order = self.ids.sort()
        place = torch.searchsorted(rising, x).clamp(max=len(rising) - 1)
        chosen = (rising[place] == x)[..., None]
        trained = F.embedding(order[place], self.R).to(y.dtype) * self.site.multiplier
        return torch.where(chosen, trained, y)


class Scores(Rows):
    """At a tied head, where y are logits."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bias = self.site.bias()
        trained = F.linear(x, self.R.to(x.dtype), None if bias is None else bias[self.ids].to(x.dtype))
        return y.index_copy(-1, self.ids, trained.to(y.dtype))
