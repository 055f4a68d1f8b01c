"""Examples become the tensors of a micro-batch: padded to one length, or packed into shared rows."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from graft.data.encode import IGNORED, Example
from graft.data.pack import packed, rounded


@dataclass
class Batch:
    """A micro-batch.

    inputs: arguments of the model by name: input_ids (B, T), attention_mask, ... The mask is (B, T); if
    documents share rows it is (B, 1, T, T) bool, and position_ids (B, T) are given too.
    labels: (B, T), not shifted, IGNORED where nothing is learnt; the decoder's, if there is one; or (B,).
    tokens: how many labels count, as the loss is divided by it.  sources: `file:line` of every example.
    supervised: (N,) indices of the labels that count, after flattening; None: all that are not IGNORED.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    tokens: int
    sources: list[str]
    supervised: Tensor | None = None

    def to(self, device: Any) -> "Batch":
        """Return the batch on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `change` applied to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = change(value)
            elif isinstance(value, dict):
                values[name] = {key: change(tensor) for key, tensor in value.items()}
        return type(self)(**values)


class Batches(ABC):
    """Turn the examples of a stage into tensors.

    packs: whether several examples share a row.  max_length: tokens of a row.
    pad: the id that fills rows up.
    """

    packs = False

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        # Any id would do: masks are computed from lengths, never from ids.
        candidates = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        self.pad = next((i for i in candidates if i is not None), 0)

    def draw(self, example: Example, *address: int) -> Example:
        """Return the example as it is seen this time; stages that add noise override this.

        address: the numbers that seed every random choice (see `data.noise`).
        """
        return example

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """Return how many tokens each example takes in a batch."""
        lengths = getattr(examples, "lengths", None)
        return lengths() if lengths else [len(example.ids) for example in examples]

    @abstractmethod
    def padded(self, examples: Sequence[Example]) -> Batch:
        """Build a batch with one example per row, padded to one length."""

    def packed(self, groups: Sequence[Sequence[Example]]) -> Batch:
        """Build a batch with one group of examples per row; only called if `packs` is true."""
        raise TypeError(f"{type(self).__name__} does not pack")

    @abstractmethod
    def full(self, rows: int, length: int) -> Batch:
        """Build a batch of the shape (rows, length), for memory planning.

        No tensor's value is read: fake tensors have none.
        """

    def rectangle(self, rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
        """Fill rows up on the right to one length T.

        Returns the values (B, T), and a mask (B, T) int64 with 1 for values and 0 for filling.
        """
        width = rounded(max(map(len, rows)), self.max_length)
        values = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
        return values, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])

    def inputs(self, examples: Sequence[Example]) -> tuple[dict[str, Tensor], list[str]]:
        """Return input_ids with their attention_mask, and the examples' sources."""
        ids, live = self.rectangle([example.ids for example in examples], self.pad)
        return {"input_ids": ids, "attention_mask": live}, [example.source for example in examples]

    def full_inputs(self, rows: int, length: int) -> dict[str, Tensor]:
        """Return the inputs of `full`. One position is padding: transformers drops a mask without any."""
        live = torch.ones(rows, length, dtype=torch.long)
        live[0, -1] = 0
        return {"input_ids": torch.zeros(rows, length, dtype=torch.long), "attention_mask": live}


class TokenBatches(Batches):
    """Every supervised position predicts one token: the next one (causal), or its own (masked).

    first_position: position id of a document's first token, for packed rows.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, *, causal: bool, pack: bool = False, first_position: int = 0
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.causal = causal
        self.packs = pack
        self.first_position = first_position

    def padded(self, examples: Sequence[Example]) -> Batch:
        inputs, sources = self.inputs(examples)
        labels, _ = self.rectangle([example.labels for example in examples], IGNORED)
        return self._counted(inputs, labels, sources)

    def packed(self, groups: Sequence[Sequence[Example]]) -> Batch:
        pairs = [[(example.ids, example.labels) for example in group] for group in groups]
        inputs, labels = packed(
            pairs,
            pad=self.pad,
            causal=self.causal,
            first_position=self.first_position,
            limit=self.max_length,
        )
        return self._counted(inputs, labels, [example.source for group in groups for example in group])

    def full(self, rows: int, length: int) -> Batch:
        inputs = self.full_inputs(rows, length)
        if self.packs:
            inputs["attention_mask"] = torch.ones(rows, 1, length, length, dtype=torch.bool)
            inputs["position_ids"] = torch.arange(length).expand(rows, length)
        positions = torch.arange(rows * length).view(rows, length)[:, int(self.causal) :].flatten()
        return Batch(inputs, inputs["input_ids"], len(positions), [], positions)

    def _counted(self, inputs: dict[str, Tensor], labels: Tensor, sources: list[str]) -> Batch:
        positions = supervised_positions(labels, causal=self.causal)
        return Batch(inputs, labels, len(positions), sources, positions)


class WrittenBatches(Batches):
    """An encoder reads the ids, a decoder writes the part "written".

    decoder_start: the first id that the decoder reads; None: the padding id.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, decoder_start: int | None = None) -> None:
        super().__init__(tokenizer, max_length)
        self.decoder_start = self.pad if decoder_start is None else decoder_start

    def padded(self, examples: Sequence[Example]) -> Batch:
        inputs, sources = self.inputs(examples)
        labels, _ = self.rectangle([example.parts["written"] for example in examples], IGNORED)
        shifted = torch.cat([torch.full_like(labels[:, :1], self.decoder_start), labels[:, :-1]], 1)
        inputs["decoder_input_ids"] = shifted.masked_fill(shifted == IGNORED, self.pad)
        positions = supervised_positions(labels, causal=False)
        return Batch(inputs, labels, len(positions), sources, positions)

    def full(self, rows: int, length: int) -> Batch:
        inputs = self.full_inputs(rows, length)
        inputs["decoder_input_ids"] = inputs["input_ids"]
        return Batch(inputs, inputs["input_ids"], rows * length, [], torch.arange(rows * length))


def supervised_positions(labels: Tensor, *, causal: bool) -> Tensor:
    """Return the (N,) indices, after flattening, of the labels that are learnt.

    A causal model predicts the next token, so nothing predicts column 0.

    >>> supervised_positions(torch.tensor([[7, -100, 8], [9, 9, -100]]), causal=True)
    tensor([2, 4])
    """
    live = labels != IGNORED
    if causal:
        live[:, 0] = False
    return live.flatten().nonzero()[:, 0]
