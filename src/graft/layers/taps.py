"""Taps: leave states of the trunk in the Route, for an insert of the same adapter further up.

A tap changes nothing and keeps nothing itself; what it left is gone when the forward ends. Reading does not
take it out, because generation runs an encoder once and its decoder many times.
"""

from collections.abc import Sequence
from typing import Any

import torch

from graft.core.insert import Insert
from graft.core.route import Taps, current
from graft.core.site import Site
from graft.errors import SiteError


class Tap(Insert):
    """Leaves what enters its block. At block l, counted from 0, that is h_l; h_0 are the embeddings."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.leave(x)
        return y

    def leave(self, states: Any) -> None:
        """Keep states for the length of the forward.

        An adapter owns one span of its rows, so its taps never meet.
        """
        _taps().states[id(self)] = states

    def left(self) -> Any:
        """Return what was left in the forward that runs."""
        return _taps().states[id(self)]

    def cache(self) -> Any:
        """Return the stack's cache of keys and values at a stack, or None if it keeps none."""
        return _taps().cache


def _taps() -> Taps:
    route = current()
    assert route is not None, "inserts run inside a Route"
    return route.taps


def stacks(sites: Sequence[Site]) -> list[tuple[Site, list[Site]]]:
    """Return every stack with its blocks, in order; in an encoder-decoder the encoder comes first.

    Raises SiteError for a model without one.
    """
    blocks = [site for site in sites if site.kind == "block"]

    def owner(block: Site) -> str:
        return block.name.rpartition(".")[0].rpartition(".")[0]

    found = [
        (stack, [b for b in blocks if owner(b) == stack.name]) for stack in sites if stack.kind == "stack"
    ]
    if not found:
        raise SiteError(
            "no list of blocks is found in this model", "blocks that come after each other", "use LoRA"
        )
    return found
