"""Long pieces of prompts, read by the model's own forward into the cache of the native decoder.

The decoder reads few tokens at a time, as texts are written. The products of a forward, which training uses
too, take many tokens several times as fast, and attention in one pass.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from graft.kernels.decoder import Decoder

Routed = Callable[[Sequence[str | None]], AbstractContextManager[Any]]


class LongPrompts:
    """Reads many tokens of one text at a time.  routed: of the base, whose adapters change the forward."""

    def __init__(self, model: Any, decoder: Decoder, routed: Routed) -> None:
        self._model, self.decoder, self._routed = model, decoder, routed
        self._cache: Any = DynamicCache()
        self._cache.layers = [Layer(self, place) for place in range(len(decoder.model.layers))]
        self.row = self.first = 0  # of the cache: where the forward appends

    def read(self, row: int, first: int, tokens: Sequence[int], adapter: str | None) -> None:
        """Read tokens from position `first` on into a row of the cache."""
        self.row, self.first = row, first
        end = first + len(tokens)
        with self._routed([adapter]):
            self._model.base_model(
                input_ids=torch.tensor([list(tokens)]),
                attention_mask=torch.ones(1, end, dtype=torch.long),
                position_ids=torch.arange(first, end)[None],
                past_key_values=self._cache,
                use_cache=True,
            )


class Layer(DynamicLayer):
    """The keys and values of one layer, which lie in the decoder's cache."""

    def __init__(self, reader: LongPrompts, place: int) -> None:
        super().__init__()
        # A cycle would keep the decoder's cache until the collector, which counts objects, comes round.
        self._reader, self._place = weakref.proxy(reader), place
        self.is_sliding = reader.decoder.model.layers[place].window > 0
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Append to the row that is read, and return all of it."""
        reader = self._reader
        end, width = reader.first + key_states.shape[2], key_states.shape[3]
        seen = []
        for cache, new in ((reader.decoder.keys, key_states), (reader.decoder.values, value_states)):
            row = cache[self._place, reader.row, :, :end, :width]
            row[:, reader.first :] = new[0]
            seen.append(row[None])
        return seen

    def get_seq_length(self) -> int:
        return self._reader.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._reader.first + query_length, 0
