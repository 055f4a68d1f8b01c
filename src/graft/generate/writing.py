"""The keywords of `Base.generate` and `Base.complete`, as type checkers and editors know them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

# Prompts, or one alone: a text, a conversation (turns, or {"messages": ..., "tools": ...}), ids of a text.
Asked = str | Mapping[str, Any] | Sequence[Any]


class Writing(TypedDict, total=False):
    """How texts are written: in batches, and by the settings of `Sampling`, where each is explained."""

    batch_size: int
    max_cache_tokens: int | None
    exact: bool
    on_text: Callable[[int, str], None] | None
    progress: Callable[[int, int], None] | None
    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    seed: int | None
    logprobs: int | None
