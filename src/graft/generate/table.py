"""The table of keys and values: one row for each text, in transformers' own form of a cache.

    row i:   [ free or stale | its keys and values | free ]        columns first .. last of each row

Texts that are decoded together end at one column, as if padded on the left. Then a step appends one column to
all of them, distances along a row are those in the text, as sliding windows count them, and a mask of two
dimensions says all that a model must know. Rows come and go by moving what they hold along their row. All
memory is here, and `Table.size` is all of it.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


@dataclass
class Window:
    """The part of the table that a forward sees, before it appends to it.

    rows: of the table.  first, last: columns; what is appended begins at `last`.
    """

    rows: slice
    first: int
    last: int


class Layer(DynamicLayer):
    """The keys and values of one layer, (rows, heads, columns, width) each, made when the first come in.

    A layer with a sliding window keeps all of them as well: rows of different length have different windows.
    """

    def __init__(self, table: "Table", *, sliding: bool) -> None:
        super().__init__()
        # A cycle would keep all memory until the collector, which counts objects, comes round.
        self._table, self.is_sliding = weakref.proxy(table), sliding

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Append to the window of the forward that runs, and return all of it."""
        table, window = self._table, self._table.window
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = table.empty(key_states), table.empty(value_states)
            self.is_initialized = True
        end = window.last + key_states.shape[2]
        kept = []
        tables: Any = (self.keys, self.values)
        for held, new in zip(tables, (key_states, value_states), strict=True):
            seen = held[window.rows, :, window.first : end]
            seen[:, :, window.last - window.first :] = new
            kept.append(seen)
        return kept

    def get_seq_length(self) -> int:
        return self._table.window.last - self._table.window.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class Table:
    """Rows of columns for every layer of a model.  config: the model's."""

    def __init__(self, config: Any) -> None:
        self.cache: Any = DynamicCache(config=config)
        kinds = [type(layer) for layer in self.cache.layers]
        self.usable = bool(kinds) and set(kinds) <= {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
        self.cache.layers = [
            layer  # a dummy holds nothing: its keys and values are those of another layer
            if kind is DummyLayer
            else Layer(self, sliding=kind is DynamicSlidingWindowLayer)
            for kind, layer in zip(kinds, self.cache.layers, strict=True)
        ]
        self.layers = [layer for layer in self.cache.layers if isinstance(layer, Layer)]
        self.rows = self.columns = 0
        self.window = Window(slice(0, 0), 0, 0)

    @property
    def size(self) -> int:
        """Positions for which there is memory, in every layer."""
        return self.rows * self.columns

    def empty(self, like: torch.Tensor) -> torch.Tensor:
        """Return the memory of one layer for states like these (n, heads, T, width).

        Zeros, and not what happens to lie there: a masked value that is not finite would still spoil a sum.
        """
        return like.new_zeros(self.rows, like.shape[1], self.columns, like.shape[3])

    def _held(self) -> list[tuple[Layer, str, torch.Tensor]]:
        return [
            (layer, name, getattr(layer, name))
            for layer in self.layers
            if layer.is_initialized
            for name in ("keys", "values")
        ]

    def resize(self, rows: int, columns: int) -> None:
        """Change the size. What lies in the rows and columns that remain is kept."""
        kept = slice(0, min(rows, self.rows)), slice(None), slice(0, min(columns, self.columns))
        self.rows, self.columns = rows, columns
        for layer, name, held in self._held():
            made = self.empty(held)
            made[kept] = held[kept]
            setattr(layer, name, made)  # one layer after the other: no second table at any time

    def permute(self, new: Sequence[int], old: Sequence[int], last: int) -> None:
        """Let rows `new` hold what rows `old` held in the columns before `last`."""
        if not new:
            return
        for _, _, held in self._held():
            held[new, :, :last] = held[old, :, :last]  # the right side is a copy

    def shift(self, rows: slice, first: int, last: int, by: int) -> None:
        """Move columns first .. last of some rows by so many columns, to the right if it is positive."""
        if not by or last <= first:
            return
        for _, _, held in self._held():
            held[rows, :, first + by : last + by] = held[rows, :, first:last].clone()

    def clear(self, rows: slice, first: int, last: int) -> None:
        """Put zeros in the place of what an earlier text has left."""
        for _, _, held in self._held():
            held[rows, :, first:last] = 0

    def copy(self, source: int, row: int, first: int, last: int, to: int) -> None:
        """Copy columns first .. last of a row to another row, from column `to` on."""
        for _, _, held in self._held():
            held[row, :, to : to + last - first] = held[source, :, first:last]
