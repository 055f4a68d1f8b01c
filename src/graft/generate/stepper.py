"""Stepper: what the engine asks of whatever computes logits with a cache of keys and values.

A slot is one text in the cache. The engine gives slots numbers, and knows nothing of layers, masks or
positions; a stepper knows nothing of sampling and ends.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import torch

BLOCK = 64  # tokens of a prompt


class Stepper(Protocol):
    """A model with a cache of slots.

    The engine cuts prompts at multiples of BLOCK only. So a stepper may read blocks that are followed by more
    of a prompt in another way than its end, and what a text gets still does not depend on its neighbours.
    """

    def positions(self, adapter: str | None) -> int:
        """Return how many positions of a slot this adapter takes, besides the tokens."""

    def reserve(self, slots: int, length: int) -> None:
        """Make room for this many open slots of at most `length` positions each, and for no more.

        Slots that are open are kept; the caller sees to it that they fit.
        """

    def open(self, slot: int, adapter: str | None) -> None:
        """Begin a slot, without tokens."""

    def prefill(
        self, pieces: Sequence[tuple[int, Sequence[int]]], unfinished: Collection[int] = ()
    ) -> torch.Tensor:
        """Read further tokens of some slots.

        Returns the logits (n, V), in fp32, after the last one of each slot that is not unfinished.

        pieces: (slot, tokens, at least one).  unfinished: slots whose prompts go on.
        """

    def decode(self, slots: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        """Read one token of each slot. Returns the logits (n, V), in fp32, after it.

        slots: those of one adapter stand side by side, and the whole list is in the order of
        `route.spans`.  tokens: (n,).
        """

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a slot."""

    def copy_prefix(self, source: int, slot: int, length: int) -> None:
        """Let an open slot without tokens have the first `length` tokens of another one of its adapter."""

    def free(self, slot: int) -> None:
        """End a slot."""
