"""Packing: several documents in one row of the batch, none of which sees another.

    allowed(i, j) = document(i) = document(j)  and  (j <= i for causal models)

Positions restart at every document, and its first token is no target. Positions alone would leak: the mask is what
separates. Which documents share a row: best fit, longest first (Johnson 1973).
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

GRAIN = 16  # lengths are rounded up to a multiple of this
# Encoders whose first position is padding_idx + 1, in transformers' create_position_ids_from_input_ids.
AFTER_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
# No positions to restart (ALiBi counts along the whole row), or a state that runs through the row.
UNPACKABLE = {
    "bloom",
    "mpt",
    "falcon",
    "mamba",
    "mamba2",
    "falcon_mamba",
    "rwkv",
    "recurrent_gemma",
    "jamba",
    "zamba",
    "bamba",
}


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of `lengths` in as few groups of at most `size` in all as best fit decreasing finds.

    >>> best_fit([3, 7, 5, 2], 10)
    [[1, 0], [2, 3]]
    """
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, group), ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[i], -1))
        if at == len(rooms):
            room, group = max(size, lengths[i]), len(groups)
            groups.append([])
        else:
            room, group = rooms.pop(at)
        groups[group].append(i)
        insort(rooms, (room - lengths[i], group))
    return groups


def packed(
    groups: Sequence[Sequence[tuple[list[int], list[int]]]],
    *,
    pad: int,
    causal: bool,
    first_position: int = 0,
    limit: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of (ids, labels) documents as model inputs and labels.

    limit: T is rounded up as far as this (see `rounded`).

    Returns input_ids (B, T), attention_mask (B, 1, T, T) bool, position_ids (B, T); labels (B, T), IGNORED on padding
    and, for causal models, on each document's first token. Padding sees padding only: no row of the mask is empty.
    """
    width = rounded(max(sum(len(ids) for ids, _ in group) for group in groups), limit)
    ids = torch.full((len(groups), width), pad)
    labels = torch.full((len(groups), width), -100)
    positions = torch.full((len(groups), width), first_position)
    document = torch.zeros(len(groups), width, dtype=torch.int32)
    for row, group in enumerate(groups):
        at = 0
        for number, (tokens, targets) in enumerate(group, 1):
            end = at + len(tokens)
            ids[row, at:end], labels[row, at:end] = torch.tensor(tokens), torch.tensor(targets)
            if causal:
                labels[row, at] = -100
            positions[row, at:end] = torch.arange(first_position, first_position + len(tokens))
            document[row, at:end] = number
            at = end
    allowed = document[:, None, :, None] == document[:, None, None, :]
    inputs = {"input_ids": ids, "attention_mask": allowed.tril() if causal else allowed, "position_ids": positions}
    return inputs, labels


def rounded(width: int, limit: int) -> int:
    """A length rounded up to a multiple of GRAIN, where `limit` allows it.

    Every new shape costs a compiled kernel that is then kept: with lengths as they come, a run of short rows spent
    half its time on them and grew by two MiB a step.

    >>> rounded(33, 512), rounded(33, 40), rounded(33, 0)
    (48, 40, 33)
    """
    return max(width, min(-(-width // GRAIN) * GRAIN, limit))


def first_position(config: Any) -> int:
    """Where this model (a transformers config) begins to count its positions."""
    return config.pad_token_id + 1 if config.model_type in AFTER_PADDING else 0


def obstacle(config: Any, max_length: int) -> str | None:
    """Why rows of this model cannot be packed, or None.

    An explicit mask replaces the model's own: a sliding window shorter than a row would be lost. Only sdpa obeys a mask
    of truth values; eager attention would add it to the scores, and the documents would see each other.
    """
    text = config.get_text_config()
    attention = getattr(config, "_attn_implementation", None) or "sdpa"
    if not attention.endswith("sdpa"):
        return f"its attention is {attention}, which takes no block mask"
    if getattr(text, "is_encoder_decoder", False):
        return "an encoder-decoder"
    if (
        text.model_type in UNPACKABLE
        or getattr(text, "alibi", False)
        or getattr(text, "position_embedding_type", "") == "alibi"
    ):
        return f"{text.model_type} does not count positions by document"
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    if window and window < max_length and getattr(text, "use_sliding_window", True):
        return f"its attention window of {window} is shorter than max_length {max_length}"
    return None
