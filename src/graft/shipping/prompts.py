"""The fixed prompts for measuring merges: our texts, or ids from a seed if there is no tokenizer.

They are short, so that a model of any context length can read them, and of many kinds, because a merge may
spare prose and spoil digits. Changing one changes every certificate: `digest` tells which prompts a
certificate was made with.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from graft.core.positions import context_length, first_position

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
LONGEST = 32  # tokens of a prompt: logits of a large vocabulary are held for all of them
SEED, DRAWN = 0, 4  # without a tokenizer: rows of random ids


def rows(base: "Base", adapters: Sequence[str | None] = ()) -> list[list[int]]:
    """Return the ids of every prompt, cut to what the model can read besides these adapters' positions."""
    config = base.model.config.get_text_config()
    context = context_length(base.model.config) or LONGEST
    length = max(2, min(LONGEST, context - first_position(config) - base.positions(adapters)))
    if base.tokenizer is not None:
        encoded = [base.tokenizer(text)["input_ids"][:length] for text in TEXTS]
        if all(len(row) > 1 for row in encoded):
            return encoded
    drawn = torch.randint(
        4, config.vocab_size, (DRAWN, length), generator=torch.Generator().manual_seed(SEED)
    )
    ids: list[list[int]] = drawn.tolist()
    return ids


def digest(ids: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 of the ids."""
    return hashlib.sha256(json.dumps([list(row) for row in ids]).encode()).hexdigest()
