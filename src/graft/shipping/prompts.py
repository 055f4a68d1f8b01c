"""What a merge is measured with: rows of the run where there is one, else eight fixed texts.

The fixed texts are short, so that a model of any context length can read them, and of many kinds, because a
merge may spare prose and spoil digits. Changing one changes every certificate that was made with them:
`digest` tells which prompts a certificate is about. Without a tokenizer ids are drawn from a seed.

A run's rows come from `graft.runs.own_rows`. Of each the answer alone is measured, as in training.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from graft.core.positions import context_length, first_position
from graft.data.encode import IGNORED

if TYPE_CHECKING:
    from graft.base.base import Base

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Once upon a time there was a lighthouse keeper who had never seen the sea by day.",
    "Question: How many days are there in three weeks?\nAnswer: There are 21 days in three weeks.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([2, 4, 9]))",
    '{"name": "lamp", "price": 24.5, "colours": ["red", "grey"], "in_stock": true}',
    "SELECT city, COUNT(*) FROM visits WHERE year = 2019 GROUP BY city ORDER BY 2 DESC;",
    "Der Zug nach Hamburg fährt heute zehn Minuten später von Gleis sieben ab.",
    "1. Wash the rice.\n2. Boil two cups of water.\n3. Add salt, cover, and wait for 18 minutes.",
)
LONGEST = 32  # tokens of a fixed text: logits of a large vocabulary are held for all of them
SEED, DRAWN = 0, 4  # without a tokenizer: rows of random ids


@dataclass(frozen=True)
class Prompt:
    """One text to measure with.

    ids: what the model reads.  inputs: its other arguments by name, a list of numbers each.
    at: the places whose logits are measured; None: all.
    wanted: the token or the class that is right at each of them, IGNORED where nothing is.
    """

    ids: list[int]
    wanted: list[int]
    inputs: Mapping[str, list[int]] = field(default_factory=dict)
    at: list[int] | None = None


@dataclass(frozen=True)
class Prompts:
    """All texts of one measurement.

    source: which rows these are, for the certificate; empty for the fixed texts.
    headed: an adapter's task head answers.  classes: names of what `wanted` numbers then.
    """

    rows: Sequence[Prompt]
    source: Mapping[str, Any] = field(default_factory=dict)
    headed: bool = False
    classes: Sequence[str] = ()

    def facts(self) -> dict[str, Any]:
        """Return what a certificate says of them."""
        counts = {"rows": len(self.rows), "tokens": sum(len(row.ids) for row in self.rows)}
        return {**counts, "sha256": self.digest(), **self.source}

    def digest(self) -> str:
        """Return the SHA-256 of what is read, and of what is measured where it is not all of it."""
        parts = [[row.ids] if row.at is None else [row.ids, row.at, row.wanted] for row in self.rows]
        whole = [one[0] if len(one) == 1 else one for one in parts]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def fixed(base: "Base", adapters: Sequence[str | None] = ()) -> Prompts:
    """Return the fixed texts, cut to what the model can read besides these adapters' positions."""
    length = max(2, min(LONGEST, room(base, adapters)))
    if base.tokenizer is not None:
        encoded = [base.tokenizer(text)["input_ids"][:length] for text in TEXTS]
        if all(len(row) > 1 for row in encoded):
            return of_ids(base, encoded)
    size = base.model.config.get_text_config().vocab_size
    drawn = torch.randint(4, size, (DRAWN, length), generator=torch.Generator().manual_seed(SEED))
    return of_ids(base, drawn.tolist())


def of_ids(base: "Base", rows: Sequence[Sequence[int]]) -> Prompts:
    """Return prompts of which every next token is measured."""
    decoders = [{"decoder_input_ids": list(row)} if base.family == "seq2seq" else {} for row in rows]
    return Prompts(
        [Prompt(list(row), [*row[1:], IGNORED], more) for row, more in zip(rows, decoders, strict=True)]
    )


def room(base: "Base", adapters: Sequence[str | None] = ()) -> int:
    """Return how many tokens a text may have besides the positions that these adapters take."""
    config = base.model.config.get_text_config()
    context = context_length(base.model.config)
    taken = first_position(config) + base.positions(adapters)
    return (LONGEST if context is None else context) - taken
