"""Text between a prompt and a suffix, for models that were taught the places of both by tokens of their own.

    PREFIX prompt SUFFIX suffix MIDDLE  ->  what stands between them

Bavarian et al. 2022, arXiv 2207.14255: prefix, suffix, middle.
"""

from typing import Any

from graft.data.templates import affixes, prompt_ids
from graft.serve.failures import ApiError

# Of Qwen and its like, StarCoder, SantaCoder, CodeLlama, DeepSeek.
MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def between(tokenizer: Any, prompt: str | list[int], suffix: str) -> list[int]:
    """Return the ids that ask for the text between two others. Raises ApiError for a model without marks."""
    known = tokenizer.get_vocab()
    marks = next((marks for marks in MARKS if all(mark in known for mark in marks)), None)
    if marks is None:
        raise ApiError(
            400, "this model has no tokens that mark a text in the middle: leave suffix out", param="suffix"
        )
    start, _ = affixes(tokenizer)
    before = prompt if isinstance(prompt, list) else prompt_ids(prompt, tokenizer)
    before = before[len(start) :] if start and before[: len(start)] == start else before
    after = tokenizer(suffix, add_special_tokens=False)["input_ids"]
    first, second, third = (known[mark] for mark in marks)
    return [*start, first, *before, second, *after, third]
