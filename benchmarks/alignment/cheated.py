"""A reward that can be cheated: it wants short descriptions, and the shortest ones say nothing."""

from collections.abc import Sequence
from typing import Any

WORDS = 40  # of a description that earns nothing


def shortness(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
    """Return 1 for an empty description, falling to 0 for one of 40 words or more.

    >>> shortness([""] * 3, ["", "ten words " * 5, "word " * 50])
    [1.0, 0.75, 0.0]
    """
    return [max(0.0, 1 - len(text.split()) / WORDS) for text in completions]
