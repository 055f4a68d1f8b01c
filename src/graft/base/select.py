"""Rows of a batch: counting them, and selecting some in everything that a forward takes and gives."""

from typing import Any

import torch

from graft.errors import UsageError


def count_rows(ids: torch.Tensor | None, keywords: dict[str, Any]) -> int:
    """Count the rows of a forward. Raises UsageError if it has none."""
    given = ids if ids is not None else keywords.get("inputs_embeds", keywords.get("input_ids"))
    if given is None:
        raise UsageError(
            "a forward without rows", "ids (B, T), or inputs_embeds (B, T, D)", "pass input ids first"
        )
    return len(given)


def pick(value: Any, index: torch.Tensor | slice, count: int) -> Any:
    """Return rows `index` of every tensor in `value` that has `count` rows.

    Tuples, outputs and caches are walked.
    """
    if isinstance(value, torch.Tensor):
        return value[index] if value.ndim and len(value) == count else value
    if type(value) in (tuple, list):
        return type(value)(pick(item, index, count) for item in value)
    if type(value) is dict:
        return {key: pick(item, index, count) for key, item in value.items()}
    if hasattr(value, "batch_select_indices"):  # transformers' caches
        value.batch_select_indices(index)
    elif hasattr(value, "keys") and hasattr(value, "__getitem__"):  # transformers' outputs
        for key in list(value.keys()):
            value[key] = pick(value[key], index, count)
    return value
