"""The generic stepper: any causal model of transformers whose cache is keys and values in order.

A forward sees rows of the table that lie side by side, padded on the left where they are shorter, with a
mask of two dimensions and positions that count live tokens. Virtual tokens enter with the first tokens of a
text and then lie in its row like any others; keys and values that adapters add to attention are never in it.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch

from graft.core.positions import first_position
from graft.core.route import spans
from graft.generate.table import Table, Window

SHORT = 64  # pieces up to this length are read together, at the price of some padding


class Host(Protocol):
    """What the stepper needs of a base; see `generate.Writer`."""

    model: Any

    @property
    def device(self) -> torch.device: ...

    def routed(
        self, rows: Sequence[str | None], *, seated: bool = False
    ) -> AbstractContextManager[list[int]]: ...

    def seats(self, name: str | None) -> int: ...

    def together(self, names: Sequence[str | None]) -> bool: ...


@dataclass
class Slot:
    """One text in the table.  row, first, last: where its positions lie.  virtual: those without a token."""

    adapter: str | None
    virtual: int
    row: int = -1
    first: int = 0
    last: int = 0
    ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.last - self.first


@dataclass
class Batch:
    """Slots that lie in the first rows, in this order, and end at one column.

    parts: rows of one forward each, and their adapters.  starts (n, 1): the first column of each slot.
    first: the first column of all.  padded: whether some begin later.
    """

    slots: list[int]
    parts: list[tuple[slice, list[str | None]]]
    starts: torch.Tensor
    first: int
    padded: bool


class CachedStepper:
    """Steps of a base's model, over slots in one table."""

    def __init__(self, base: Host) -> None:
        self._base, self._model = base, base.model
        self.table = Table(base.model.config)
        self._slots: dict[int, Slot] = {}
        self._rows: list[int | None] = []  # the slot in each row
        self._aligned: list[int] = []  # slots that are decoded together, and end at column `_last`
        self._last = 0
        self._batch: Batch | None = None  # of them, if they lie in the first rows
        self._takes = inspect.signature(base.model.forward).parameters
        self._origin = first_position(base.model.config)

    # Slots

    def positions(self, adapter: str | None) -> int:
        return self._base.seats(adapter)

    def open(self, slot: int, adapter: str | None) -> None:
        self._slots[slot] = Slot(adapter, self._base.seats(adapter))
        row = len(self._rows) - 1 - self._rows[::-1].index(None)  # the first ones are for what is decoded
        self._rows[row], self._slots[slot].row = slot, row

    def free(self, slot: int) -> None:
        self._leave(slot)
        self._rows[self._slots.pop(slot).row] = None

    def truncate(self, slot: int, length: int) -> None:
        self._leave(slot)
        held = self._slots[slot]
        held.ids = held.ids[:length]
        held.last = held.first + (held.virtual + length if length else 0)

    def copy_prefix(self, source: int, slot: int, length: int) -> None:
        self._settle()
        giver, taker = self._slots[source], self._slots[slot]
        wide = giver.virtual + length
        taker.ids, taker.first, taker.last = giver.ids[:length], 0, wide
        self.table.copy(giver.row, taker.row, giver.first, giver.first + wide, 0)

    def reserve(self, slots: int, length: int) -> None:
        table = self.table
        if (slots, length) == (table.rows, table.columns):
            return
        self._settle()
        if length < table.columns:
            for held in self._slots.values():
                self._move(held, held.length)
            self._aligned = []
        if slots < table.rows:
            self._place([slot for slot in self._rows if slot is not None])
        table.resize(slots, length)
        self._rows = [*self._rows[:slots], *[None] * (slots - len(self._rows))]

    def _move(self, held: Slot, last: int) -> None:
        """Let a slot end at a column."""
        by = last - held.last
        self.table.shift(slice(held.row, held.row + 1), held.first, held.last, by)
        held.first, held.last = held.first + by, last

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

    # Reading

    def prefill(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> torch.Tensor:
        answers: dict[int, torch.Tensor] = {}
        for group in self._groups(pieces):
            for (slot, _), logits in zip(group, self._read(group), strict=True):
                answers[slot] = logits
        return torch.stack([answers[slot] for slot, _ in pieces])

    def _groups(self, pieces: Sequence[tuple[int, Sequence[int]]]) -> list[list[tuple[int, Sequence[int]]]]:
        """Return the pieces that are read in one forward each.

        Those of new slots are padded on the left. A row may have no gap, so pieces of other slots are made
        one length: what came just before a shorter one is read again.
        """

        def key(piece: tuple[int, Sequence[int]]) -> tuple[Any, ...]:
            slot, tokens = piece
            held = self._slots[slot]
            lone = slot if len(tokens) > SHORT else -1
            same = len(tokens) if held.ids and held.virtual else 0  # virtual tokens cannot be read again
            return (bool(held.ids), 0 if held.ids else held.virtual, same, lone)

        def by_name(piece: tuple[int, Sequence[int]]) -> tuple[bool, str]:
            adapter = self._slots[piece[0]].adapter
            return (adapter is not None, adapter or "")

        groups = []
        for _, found in groupby(sorted(pieces, key=key), key=key):
            group = sorted(found, key=by_name)
            if self._base.together([self._slots[slot].adapter for slot, _ in group]):
                groups.append(group)
            else:
                groups += [list(part) for _, part in groupby(group, key=by_name)]
        return groups

    def _read(self, group: list[tuple[int, Sequence[int]]]) -> torch.Tensor:
        """Read pieces in one forward; returns the logits (n, V) after the last token of each."""
        slots = [self._slots[slot] for slot, _ in group]
        seated = bool(slots[0].ids)
        width = max(len(tokens) for _, tokens in group)
        self._settle()
        if seated:
            group = [(slot, self._lengthened(slot, tokens, width)) for slot, tokens in group]
        self._place([*self._aligned, *(slot for slot, _ in group)])
        row = slots[0].row
        seen = max(held.length for held in slots) if seated else 0
        for held in slots if seated else ():
            if held.length:
                self._move(held, seen)
        front = 0 if seated else slots[0].virtual
        ids = torch.zeros(len(group), width, dtype=torch.long)
        firsts = []
        for place, (held, (_, tokens)) in enumerate(zip(slots, group, strict=True)):
            ids[place, width - len(tokens) :] = torch.tensor(tokens)
            firsts.append(held.first if held.length else seen + width - len(tokens))
        names = [held.adapter for held in slots]
        window = Window(slice(row, row + len(group)), 0, seen)
        starts = torch.tensor(firsts)[:, None]
        live = torch.arange(seen + width) >= starts
        positions = (torch.arange(seen, seen + width) - starts).clamp(min=0) + self._origin
        device = self._base.device
        logits = self._forward(
            window, names, ids.to(device), live.long().to(device), positions.to(device), seated=seated
        )
        for held, first, (_, tokens) in zip(slots, firsts, group, strict=True):
            held.first, held.last = first, front + seen + width
            held.ids.extend(tokens)
        return logits

    def _lengthened(self, slot: int, tokens: Sequence[int], width: int) -> Sequence[int]:
        """Return a piece with what was read before it, `width` tokens if there are; the slot loses those."""
        held = self._slots[slot]
        if len(tokens) == width:
            return tokens
        kept = max(0, len(held.ids) + len(tokens) - width)
        again = held.ids[kept:]
        self.truncate(slot, kept)
        return [*again, *tokens]

    def decode(self, slots: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        batch = self._batch
        if batch is None or batch.slots != slots:
            batch = self._align(list(slots))
        if self._last == self.table.columns:
            batch = self._slide(batch)
        ids, last = tokens.to(self._base.device)[:, None], self._last
        answers = [self._column(batch, rows, names, ids[rows]) for rows, names in batch.parts]
        self._last = last + 1
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _column(self, batch: Batch, rows: slice, names: list[str | None], ids: torch.Tensor) -> torch.Tensor:
        """Append one token to these rows; returns their logits (n, V)."""
        starts, last = batch.starts[rows], self._last
        live = None
        if batch.padded:
            live = (torch.arange(batch.first, last + 1, device=ids.device) >= starts).long()
        window = Window(rows, batch.first, last)
        return self._forward(window, names, ids, live, (last + self._origin) - starts, seated=True)

    def _forward(
        self,
        window: Window,
        names: list[str | None],
        ids: torch.Tensor,
        live: torch.Tensor | None,
        positions: torch.Tensor,
        *,
        seated: bool,
    ) -> torch.Tensor:
        self.table.window = window
        given: dict[str, Any] = {"attention_mask": live}
        if "position_ids" in self._takes:
            given["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        with self._base.routed(names, seated=seated):
            output = self._model(input_ids=ids, past_key_values=self.table.cache, use_cache=True, **given)
        logits: torch.Tensor = output.logits[:, -1]
        return logits.float()

    # Alignment

    def _leave(self, slot: int) -> None:
        if slot in self._aligned:
            self._settle()
            self._aligned = [other for other in self._aligned if other != slot]

    def _settle(self) -> None:
        """Write down where the aligned slots end, which a step does not; the batch is made anew."""
        for slot in self._aligned:
            self._slots[slot].last = self._last
        self._batch = None

    def _align(self, slots: list[int]) -> Batch:
        """Let these slots lie in the first rows, in this order, and end at one column."""
        self._settle()
        self._place(slots)
        held = [self._slots[slot] for slot in slots]
        old = [slot for slot in self._aligned if slot in set(slots)]
        if not old:
            self._last = max(slot.last for slot in held)
        self._last = max(self._last, *(slot.length for slot in held))
        for number, slot in zip(slots, held, strict=True):
            if slot.last != self._last:
                self._move(slot, self._last)
            if number not in old:
                self.table.clear(slice(slot.row, slot.row + 1), 0, slot.first)
        self._aligned = slots
        return self._batched(slots)

    def _batched(self, slots: list[int]) -> Batch:
        held = [self._slots[slot] for slot in slots]
        names, firsts = [slot.adapter for slot in held], [slot.first for slot in held]
        whole = self._base.together(names)
        groups = [(0, len(slots))] if whole else [(a, b) for _, a, b in spans(names)[1]]
        parts = [(slice(a, b), names[a:b]) for a, b in groups]
        starts = torch.tensor(firsts, device=self._base.device)[:, None]
        self._batch = Batch(slots, parts, starts, min(firsts), len(set(firsts)) > 1)
        return self._batch

    def _slide(self, batch: Batch) -> Batch:
        """Move the batch to the left, so that it begins at the first column."""
        self._settle()
        self.table.shift(slice(0, len(batch.slots)), batch.first, self._last, -batch.first)
        self._last -= batch.first
        for held in (self._slots[slot] for slot in batch.slots):
            held.first, held.last = held.first - batch.first, self._last
        return self._batched(batch.slots)
