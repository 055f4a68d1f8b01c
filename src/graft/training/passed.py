"""Count what passes through the model in a step, for its speed: tokens without padding, and rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Passed:
    """What a step has put through the model.

    tokens: that it read, and that a decoder wrote; of every answer that is compared.
    rows: of the file; those of compared answers count once.
    """

    tokens: int = 0
    rows: int = 0


def passed(batches: Iterable[Any]) -> Passed:
    """Return what these micro-batches put through the model once."""
    tokens = rows = 0
    for batch in batches:
        tokens += sum(_live(batch.inputs, ids, mask) for ids, mask in IDS.items() if ids in batch.inputs)
        rows += len(batch.sources)
    return Passed(tokens, rows)


# Where token ids are, and the mask that says which of them are padding.
IDS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def _live(inputs: dict[str, Tensor], ids: str, mask: str) -> int:
    """Return how many of the ids are no padding.

    A mask of documents that share rows has the shape (B, 1, T, T). What is padding there fills the end of a
    row up, and counts: it is little, and only looking at the ids would tell it.
    """
    live = inputs.get(mask)
    return int(live.sum()) if live is not None and live.ndim == 2 else inputs[ids].numel()
