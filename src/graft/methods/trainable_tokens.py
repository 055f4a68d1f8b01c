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

from graft.core.file_layout import FileLayout, Settings, Tensors
from graft.core.method import Method
from graft.core.part import Part, Seats
from graft.core.schema import Ids
from graft.core.site import Site
from graft.errors import AdapterError
from graft.layers.targets import matches
from graft.layers.tied import tied_heads
from graft.layers.token_rows import Rows, check_ids, seated

MANY = 4096  # with so many rows a notice says how many are trained


class TokenFiles(FileLayout):
    """PEFT's config, with the ids of the trained rows."""

    def describe(self, method: Any, part: Part) -> dict[str, Any]:
        ids = part.of(Rows)[0][1].ids
        return {"token_indices": ids.tolist(), "target_modules": None, "init_weights": True}

    def convert(self, config: Settings, tensors: Tensors, sites: Sequence[Site]) -> tuple[Settings, Tensors]:
        wanted = config.get("target_modules")
        tables = [site.name for site in sites if site.kind == "embed"]
        if wanted and not any(matches(name, wanted) for name in tables):
            raise AdapterError(
                f"target_modules={wanted!r} of trained tokens",
                f"the table of word embeddings: {', '.join(tables)}",
                "train them with PEFT's LoRA and trainable_token_indices, which Graft reads",
            )
        return config, tensors


@dataclass(frozen=True, kw_only=True)
class TrainableTokens(Method):
    # ids of the tokens whose rows are trained; all: the whole table
    token_indices: str | Ids = "all"

    kinds: ClassVar = ("embed", "head")
    files: ClassVar = TokenFiles("TRAINABLE_TOKENS", idle=frozenset({"target_modules", "init_weights"}))

    def __post_init__(self) -> None:
        if self.token_indices != "all":
            check_ids("token_indices", self.token_indices)

    def targets(self, sites: Sequence[Site]) -> list[Site]:
        """Return the table, under all its names, and a head that is tied to it."""
        return [site for site in sites if site.kind == "embed"] + tied_heads(sites)

    def assemble(self, sites: Sequence[Site]) -> Seats:
        places = self.targets(sites)
        ids = self.token_indices
        return seated(places, range(places[0].in_features) if isinstance(ids, str) else ids)

    def param_groups(self, part: Part, lr: float) -> list[dict[str, Any]]:
        """Return groups without weight decay, which would pull a row to 0 and not to where it started."""
        return [group | {"weight_decay": 0.0} for group in super().param_groups(part, lr)]

    def notice(self, part: Part) -> str | None:
        count = len(part.of(Rows)[0][1].ids)
        return f"{count:,} rows of the table are trained: name token_indices" if count >= MANY else None
