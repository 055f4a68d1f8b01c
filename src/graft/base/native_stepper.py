"""Steps of the native decoder over slots: what the decoding engine asks of it (`graft.generate.stepper`).

A slot is one text in the cache. Slots have any numbers; here each has a row of the cache while it is open.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.base.long_prompts import LongPrompts
from graft.generate.stepper import BLOCK
from graft.kernels.decoder import MOST_ROWS, Decoder, Rows, Updates

Angles = Callable[[int], tuple[Tensor, Tensor]]  # of so many positions: cosines, sines


@dataclass
class Slot:
    """row: of the cache.  length: positions that are filled."""

    row: int
    adapter: str | None
    length: int = 0


class NativeStepper:
    """A decoder with a cache of slots.

    angles: of rotary positions.  updates: of an adapter, as it is when its first slot is opened.
    long_prompts: what reads whole blocks of a prompt; without it the decoder does.
    """

    def __init__(
        self,
        decoder: Decoder,
        angles: Angles,
        updates: Callable[[str], Updates],
        long_prompts: LongPrompts | None = None,
    ) -> None:
        self._decoder, self._angles, self._find = decoder, angles, updates
        self._long_prompts = long_prompts
        self._slots: dict[int, Slot] = {}
        self._updates: dict[str | None, Updates | None] = {None: None}
        self._batch: tuple[list[int], Rows] | None = None  # of slots that are decoded together

    def positions(self, adapter: str | None) -> int:
        """Return how many positions an adapter takes, besides the tokens: low-rank ones take none."""
        return 0

    def reserve(self, slots: int, length: int) -> None:
        """Make room for this many open slots of at most `length` positions each, and for no more."""
        decoder = self._decoder
        if (slots, length) == (decoder.slots, decoder.capacity):
            return
        self._settle()
        taken = {held.row for held in self._slots.values()}
        for held in self._slots.values():
            if held.row >= slots:  # the rows that remain are the first ones
                row = next(row for row in range(slots) if row not in taken)
                decoder.copy(held.row, row, held.length)
                taken.add(row)
                held.row = row
        decoder.resize(slots, length, *self._angles(length))

    def open(self, slot: int, adapter: str | None) -> None:
        """Begin a slot, without tokens."""
        if adapter is not None and not any(held.adapter == adapter for held in self._slots.values()):
            self._updates[adapter] = self._find(adapter)
        taken = {held.row for held in self._slots.values()}
        self._slots[slot] = Slot(next(row for row in range(self._decoder.slots) if row not in taken), adapter)

    def prefill(
        self, pieces: Sequence[tuple[int, Sequence[int]]], unfinished: Collection[int] = ()
    ) -> Tensor:
        """Read further tokens of some slots.

        Returns the logits (n, V), in fp32, after the last one of each slot that is not unfinished.

        pieces: (slot, tokens, at least one).  unfinished: slots whose prompts go on.
        """
        self._settle()
        rows: list[tuple[Slot, int, int]] = []  # slot, position, token
        lasts = []
        for slot, tokens in pieces:
            held, more = self._slots[slot], slot in unfinished
            first = self._read_blocks(held, tokens, more)
            rows += [(held, held.length + i, token) for i, token in enumerate(tokens[first:])]
            if not more:
                lasts.append(len(rows) - 1)
            held.length += len(tokens) - first
        logits = [torch.empty(0, self._decoder.vocabulary)]
        for first in range(0, len(rows), MOST_ROWS):
            part = rows[first : first + MOST_ROWS]
            answers = [last - first for last in lasts if first <= last < first + len(part)]
            logits.append(self._read(part, answers))
        return torch.cat(logits)

    def _read_blocks(self, held: Slot, tokens: Sequence[int], more: bool) -> int:
        """Read blocks that are followed by more of a prompt in one forward; returns how many tokens of these.

        The last token of a prompt is the decoder's, whose head is the faster one.
        """
        if self._long_prompts is None:
            return 0
        end = held.length + len(tokens) - (not more)
        count = max(0, end - end % BLOCK - held.length)
        if count:
            self._long_prompts.read(held.row, held.length, tokens[:count], held.adapter)
            held.length += count
        return count

    def _read(self, rows: list[tuple[Slot, int, int]], answers: list[int]) -> Tensor:
        taken = torch.tensor([(held.row, position, token) for held, position, token in rows]).T.contiguous()
        updates = [self._updates[held.adapter] for held, _, _ in rows]
        batch = Rows(taken[0], taken[1], updates, torch.tensor(answers, dtype=torch.long))
        return self._decoder.step(batch, taken[2])

    def decode(self, slots: Sequence[int], tokens: Tensor) -> Tensor:
        """Read one token of each slot. Returns the logits (n, V), in fp32, after it.  tokens: (n,)."""
        if self._batch is None or self._batch[0] != slots:
            self._settle()
            held = [self._slots[slot] for slot in slots]
            rows, lengths = torch.tensor([(slot.row, slot.length) for slot in held]).T.contiguous()
            self._batch = list(slots), Rows(rows, lengths, [self._updates[slot.adapter] for slot in held])
        rows_now = self._batch[1]
        logits = self._decoder.step(rows_now, tokens.contiguous())
        rows_now.positions += 1
        return logits

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a slot."""
        self._settle()
        self._slots[slot].length = length

    def copy_prefix(self, source: int, slot: int, length: int) -> None:
        """Let an open slot without tokens have the first `length` tokens of another one of its adapter."""
        self._settle()
        self._decoder.copy(self._slots[source].row, self._slots[slot].row, length)
        self._slots[slot].length = length

    def free(self, slot: int) -> None:
        """End a slot."""
        self._settle()
        adapter = self._slots.pop(slot).adapter
        if adapter is not None and not any(held.adapter == adapter for held in self._slots.values()):
            del self._updates[adapter]  # its tensors may be put away now

    def _settle(self) -> None:
        """Write down how long the slots are that are decoded together, which a step does not."""
        if self._batch is not None:
            slots, rows = self._batch
            for slot, position in zip(slots, rows.positions.tolist(), strict=True):
                self._slots[slot].length = position
            self._batch = None
