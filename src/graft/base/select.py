"""Count the rows of a batch, and select some of them in everything that a forward takes and returns."""

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

    value: a tensor, or a tuple, list, dict, output or cache of tensors; a cache and an output are changed in
    place.
    """
    if isinstance(value, torch.Tensor):
        return value[index] if value.ndim and len(value) == count else value
    if type(value) in (tuple, list):
        return type(value)(pick(item, index, count) for item in value)
    if type(value) is dict:
        return {key: pick(item, index, count) for key, item in value.items()}
    if hasattr(value, "batch_select_indices"):  # transformers' caches
        try:
            value.batch_select_indices(index)
        except (AttributeError, IndexError, NotImplementedError) as error:
            raise UsageError(
                f"a {type(value).__name__} with rows out of order",
                "rows sorted by adapter: the states in this cache cannot be put in another order",
                "pass use_cache=False, or sort the rows",
            ) from error
    elif hasattr(value, "keys") and hasattr(value, "__getitem__"):  # transformers' outputs
        for key in list(value.keys()):
            value[key] = pick(value[key], index, count)
    return value
