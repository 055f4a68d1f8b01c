"""The generic stepper: any causal model of transformers whose cache is keys and values in order.

A forward sees rows of the table that lie side by side, padded on the left where they are shorter, with a
mask of two dimensions and positions that count live tokens. Virtual tokens enter with the first tokens of a
text and then lie in its row like any others; keys and values that adapters add to attention are never in it.
"""

import inspect
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any, Protocol

import torch

from graft.core.positions import first_position
from graft.generate.slots import Batch, Slot, Slots
from graft.generate.table import Window

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


class CachedStepper:
    """Steps of a base's model, over slots in one table."""

    def __init__(self, base: Host) -> None:
        self._base, self._model = base, base.model
        self._slots = Slots(base.model.config, base.device, base.together)
        self.table = self._slots.table
        self._takes = inspect.signature(base.model.forward).parameters
        self._origin = first_position(base.model.config)

    def positions(self, adapter: str | None) -> int:
        return self._base.seats(adapter)

    def open(self, slot: int, adapter: str | None) -> None:
        self._slots.open(slot, Slot(adapter, self._base.seats(adapter)))

    def free(self, slot: int) -> None:
        self._slots.free(slot)

    def truncate(self, slot: int, length: int) -> None:
        self._slots.truncate(slot, length)

    def copy_prefix(self, source: int, slot: int, length: int) -> None:
        self._slots.copy_prefix(source, slot, length)

    def reserve(self, slots: int, length: int) -> None:
        self._slots.resize(slots, length)

    def prefill(
        self, pieces: Sequence[tuple[int, Sequence[int]]], unfinished: Collection[int] = ()
    ) -> torch.Tensor:
        answers: dict[int, torch.Tensor] = {}
        for group in self._groups(pieces):
            for (slot, _), logits in zip(group, self._read(group), strict=True):
                answers[slot] = logits
        asked = [answers[slot] for slot, _ in pieces if slot not in unfinished]
        return torch.stack(asked) if asked else torch.empty(0)

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
        if seated:
            group = [(slot, self._lengthened(slot, tokens, width)) for slot, tokens in group]
        row = self._slots.gather([slot for slot, _ in group])
        seen = max(held.length for held in slots) if seated else 0
        for held in slots if seated else ():
            if held.length:
                self._slots.move(held, seen)
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
        self._slots.truncate(slot, kept)
        return [*again, *tokens]

    def decode(self, slots: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        batch, ids = self._slots.align(slots), tokens.to(self._base.device)[:, None]
        answers = [self._column(batch, rows, names, ids[rows]) for rows, names in batch.parts]
        self._slots.append()
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _column(self, batch: Batch, rows: slice, names: list[str | None], ids: torch.Tensor) -> torch.Tensor:
        """Append one token to these rows; returns their logits (n, V)."""
        starts, last = batch.starts[rows], self._slots.last
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
