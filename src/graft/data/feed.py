"""Decide which rows make which step, as a pure function of (seed, epoch, step), and build the step's batches.

A step is `batch_size` rows of the epoch's permutation; the last step of an epoch has the rows that are left.
Packing and the size of micro-batches decide how these rows lie in memory, never which they are, so never what
the step learns. Where rows are always padded, those of similar lengths make a step. There is no state to
save.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graft.data import noise
from graft.data.batches import Batch, Batches
from graft.data.encode import Example
from graft.data.pack import best_fit

SORTED_TOGETHER = 50  # steps whose rows are sorted by length before they are dealt out (`Feed.by_length`)
_ORDER, _BATCHES, _NOISE = range(3)  # streams of random numbers


class Source:
    """What the loop tells a source of batches, and asks of it, beside the batches of a step.

    Rows of a file have nothing to say or to remember: these doors do nothing. `Rollouts` uses them.
    """

    why_none = ""  # why a step has no batches

    def record(self, step: int) -> dict[str, float]:
        """Return what the line of a step says of its batches.  step: how many were taken before."""
        return {}

    def timing(self, step: int) -> dict[str, float]:
        """Return the seconds that a step's batches took beside its own."""
        return {}

    def check(self, step: int, told: Mapping[str, float]) -> None:
        """Look at what a step has measured, before it is applied."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""

    def forget(self, step: int) -> None:
        """Drop what no run needs that goes on from `step` or later."""


@dataclass
class Feed(Source):
    """The batches of a training run, or of an evaluation, which asks for `step(0, i)`.

    batches: turns examples into tensors.  batch_size: examples of an optimizer step.  micro_batch_size: rows
    of one forward.  by_length: rows of similar lengths make a step, which saves padding. It must follow from
    the model and the stage, not from how rows are laid out, or else the layout would decide what is learnt.
    """

    examples: Sequence[Example]
    batches: Batches
    batch_size: int = 16
    micro_batch_size: int = 2
    seed: int = 0
    by_length: bool = False

    def __post_init__(self) -> None:
        self._permuted: tuple[int, list[int]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Return how many steps it takes to see every row once."""
        return -(-len(self.examples) // self.batch_size)

    def step(self, epoch: int, index: int) -> list[Batch]:
        """Return the micro-batches of one optimizer step. Equal arguments always give equal batches."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"step {index} of {self.steps_per_epoch}")
        rows = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return self.micro_batches([self._drawn(epoch, row) for row in rows])

    def longest(self) -> Batch:
        """Return the largest micro-batch that can occur: that of a step with the longest rows of all."""
        rows = sorted(range(len(self.examples)), key=lambda row: -self._lengths[row])[: self.batch_size]
        micro_batches = self.micro_batches([self._drawn(0, row) for row in rows])
        return max(micro_batches, key=lambda batch: batch.inputs["input_ids"].numel())

    def few(self, count: int) -> list[Batch]:
        """Return the first rows in one batch, and then each alone.

        count: how many at most; a micro-batch may have fewer.
        """
        rows = range(min(count, self.micro_batch_size, len(self.examples)))
        examples = [self._drawn(0, row) for row in rows]
        groups = [examples, *([example] for example in examples)]
        if self.batches.packs:
            return [self.batches.packed([[example] for example in group]) for group in groups]
        return [self.batches.padded(group) for group in groups]

    def _drawn(self, epoch: int, row: int) -> Example:
        """Return an example with the noise of this epoch."""
        return self.batches.draw(self.examples[row], self.seed, epoch, _NOISE, row)

    def micro_batches(self, examples: list[Example]) -> list[Batch]:
        """Return the micro-batches of a step on these examples."""
        # Longest first: the rows of a micro-batch have similar lengths, and too large a step fails at once.
        sizes = self.batches.sizes(examples)
        order = sorted(range(len(examples)), key=lambda i: -sizes[i])
        examples, sizes = [examples[i] for i in order], [sizes[i] for i in order]
        size = self.micro_batch_size
        if not self.batches.packs:
            return [self.batches.padded(examples[at : at + size]) for at in range(0, len(examples), size)]
        groups = best_fit(sizes, self.batches.max_length)
        rows = [[examples[i] for i in group] for group in groups]
        return [self.batches.packed(rows[at : at + size]) for at in range(0, len(rows), size)]

    def _order(self, epoch: int) -> list[int]:
        """Return the indices of the examples in the order in which this epoch sees them."""
        if self._permuted is None or self._permuted[0] != epoch:
            rows = noise.shuffled(len(self.examples), self.seed, epoch, _ORDER).tolist()
            self._permuted = epoch, self._bucketed(rows, epoch) if self.by_length else rows
        return self._permuted[1]

    def _bucketed(self, rows: list[int], epoch: int) -> list[int]:
        """Return the rows in steps of similar lengths, in random order; an incomplete step stays last."""
        size, lengths = self.batch_size, self._lengths
        whole = rows[: len(rows) - len(rows) % size]
        batches: list[list[int]] = []
        for at in range(0, len(whole), SORTED_TOGETHER * size):
            longest_first = sorted(whole[at : at + SORTED_TOGETHER * size], key=lambda row: -lengths[row])
            batches += [longest_first[b : b + size] for b in range(0, len(longest_first), size)]
        order = noise.shuffled(len(batches), self.seed, epoch, _BATCHES).tolist()
        return [row for b in order for row in batches[b]] + rows[len(whole) :]

    @cached_property
    def _lengths(self) -> list[int]:
        return self.batches.sizes(self.examples)
