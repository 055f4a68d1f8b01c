"""Slots: which row of the table each text lies in, and in which of its columns.

Texts that are decoded together are aligned: they lie in the first rows, in the order in which they are given,
and end at one column. The others lie behind them, wherever they were read. Moving is left to the last moment,
and only what must move does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from graft.core.route import spans
from graft.generate.table import Table


@dataclass
class Slot:
    """One text in the table.  row, first, last: where its positions lie.  virtual: those without a token.

    ids: the tokens that it was given by its prompt.
    """

    adapter: str | None
    virtual: int
    row: int = -1
    first: int = 0
    last: int = 0
    ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """How many positions it takes."""
        return self.last - self.first


@dataclass
class Batch:
    """Aligned slots.

    parts: rows of one forward each, and their adapters.  starts (n, 1): the first column of each slot.
    first: the first column of all.  padded: whether some begin later.
    """

    slots: list[int]
    parts: list[tuple[slice, list[str | None]]]
    starts: torch.Tensor
    first: int
    padded: bool


class Slots:
    """The slots of one table.  together: whether rows of these adapters can share a forward."""

    def __init__(
        self, config: Any, device: torch.device, together: Callable[[list[str | None]], bool]
    ) -> None:
        self.table, self._device, self._together = Table(config), device, together
        self._slots: dict[int, Slot] = {}
        self._rows: list[int | None] = []  # the slot in each row
        self._aligned: list[int] = []  # they end at column `last`
        self.last = 0
        self._batch: Batch | None = None  # of them, if they lie in the first rows

    def __getitem__(self, slot: int) -> Slot:
        return self._slots[slot]

    def open(self, slot: int, held: Slot) -> None:
        """Give a slot a row."""
        row = len(self._rows) - 1 - self._rows[::-1].index(None)  # the first ones are for what is decoded
        self._rows[row], self._slots[slot], held.row = slot, held, row

    def free(self, slot: int) -> None:
        """Take a slot out."""
        self._leave(slot)
        self._rows[self._slots.pop(slot).row] = None

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a slot."""
        self._leave(slot)
        held = self._slots[slot]
        held.ids = held.ids[:length]
        held.last = held.first + (held.virtual + length if length else 0)

    def copy_prefix(self, source: int, slot: int, length: int) -> None:
        """Let an empty slot have the first `length` tokens of another one."""
        self._settle()
        giver, taker = self._slots[source], self._slots[slot]
        wide = giver.virtual + length
        taker.ids, taker.first, taker.last = giver.ids[:length], 0, wide
        self.table.copy(giver.row, taker.row, giver.first, giver.first + wide, 0)

    def resize(self, slots: int, length: int) -> None:
        """Make the table one of so many rows and columns; all that is open must fit in."""
        table = self.table
        if (slots, length) == (table.rows, table.columns):
            return
        self._settle()
        if length < table.columns:
            for held in self._slots.values():
                self.move(held, held.length)
            self._aligned = []
        if slots < table.rows:
            self._place([slot for slot in self._rows if slot is not None])
        table.resize(slots, length)
        self._rows = [*self._rows[:slots], *[None] * (slots - len(self._rows))]

    def gather(self, slots: Sequence[int]) -> int:
        """Let slots that are read together lie side by side, behind aligned ones; return the first row."""
        self._settle()
        self._place([*self._aligned, *slots])
        return self._slots[slots[0]].row

    def move(self, held: Slot, last: int) -> None:
        """Let a slot end at a column."""
        by = last - held.last
        self.table.shift(slice(held.row, held.row + 1), held.first, held.last, by)
        held.first, held.last = held.first + by, last

    def align(self, slots: Sequence[int]) -> Batch:
        """Align these slots, with room for one more column."""
        batch = self._batch
        if batch is None or batch.slots != slots:
            batch = self._align(list(slots))
        return self._slide(batch) if self.last == self.table.columns else batch

    def append(self) -> None:
        """Note that every aligned slot is one position longer."""
        self.last += 1

    def _leave(self, slot: int) -> None:
        if slot in self._aligned:
            self._settle()
            self._aligned = [other for other in self._aligned if other != slot]

    def _settle(self) -> None:
        """Write down where the aligned slots end, which a step does not; the batch is made anew."""
        for slot in self._aligned:
            self._slots[slot].last = self.last
        self._batch = None

    def _place(self, order: Sequence[int]) -> None:
        """Put these slots into the first rows, in this order, and the others behind them."""
        listed = set(order)
        others = [slot for slot in self._rows if slot is not None and slot not in listed]
        moved = [
            (row, self._slots[slot])
            for row, slot in enumerate([*order, *others])
            if self._slots[slot].row != row
        ]
        filled = [(row, held) for row, held in moved if held.length]
        self.table.permute(
            [row for row, _ in filled],
            [held.row for _, held in filled],
            max((held.last for _, held in filled), default=0),
        )
        for row, held in moved:
            held.row = row
        self._rows = [*order, *others, *[None] * (len(self._rows) - len(order) - len(others))]

    def _align(self, slots: list[int]) -> Batch:
        """Let these slots lie in the first rows, in this order, and end at one column."""
        self._settle()
        self._place(slots)
        held = [self._slots[slot] for slot in slots]
        old = [slot for slot in self._aligned if slot in set(slots)]
        if not old:
            self.last = max(slot.last for slot in held)
        self.last = max(self.last, *(slot.length for slot in held))
        for number, slot in zip(slots, held, strict=True):
            if slot.last != self.last:
                self.move(slot, self.last)
            if number not in old:
                self.table.clear(slice(slot.row, slot.row + 1), 0, slot.first)
        self._aligned = slots
        return self._batched(slots)

    def _batched(self, slots: list[int]) -> Batch:
        held = [self._slots[slot] for slot in slots]
        names, firsts = [slot.adapter for slot in held], [slot.first for slot in held]
        whole = self._together(names)
        groups = [(0, len(slots))] if whole else [(a, b) for _, a, b in spans(names)[1]]
        parts = [(slice(a, b), names[a:b]) for a, b in groups]
        starts = torch.tensor(firsts, device=self._device)[:, None]
        self._batch = Batch(slots, parts, starts, min(firsts), len(set(firsts)) > 1)
        return self._batch

    def _slide(self, batch: Batch) -> Batch:
        """Move the batch to the left, so that it begins at the first column."""
        self._settle()
        self.table.shift(slice(0, len(batch.slots)), batch.first, self.last, -batch.first)
        self.last -= batch.first
        for held in (self._slots[slot] for slot in batch.slots):
            held.first, held.last = held.first - batch.first, self.last
        return self._batched(batch.slots)
