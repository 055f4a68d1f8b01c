"""Reward functions that many people need: `rewards: graft.data.reward_functions:exact_number` in a recipe.

They take lists by keyword, as TRL's do: completions are texts, or lists of messages; every other list is a
column of the rows. They return 1, 0, or None where they do not apply.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

# 1,234.50 or 12 or .5; a minus behind a digit, a letter or a bracket subtracts.
NUMBER = re.compile(r"(?:(?<![\w)\]])[-\u2212])?\$?(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
FINAL = "####"  # what GSM8K writes before the result
THOUGHT = re.compile(r"\s*<think>((?!</?think>).)*</think>(?=.*\S)((?!</?think>).)*", re.DOTALL)


def exact_number(completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return 1 where the number that a completion ends with equals that of the column `answer`, else 0.

    It is the first behind `####` if there is one, as in GSM8K, and else the last. Blanks, `$` and commas
    between thousands do not matter, nor does 42 or 42.00. None where the answer has no number.

    >>> exact_number(["It costs 3 x 14 = $42.00.", "41"], ["3 x 14 = 42\\n#### 42", 42])
    [1.0, 0.0]
    """
    pairs = zip(map(_text, completions), map(_number, map(str, answer)), strict=True)
    return [None if wanted is None else float(_number(text) == wanted) for text, wanted in pairs]


def think_format(completions: Sequence[Any], **columns: Any) -> list[float]:
    """Return 1 where a completion is `<think>...</think>`, once, and then an answer; else 0.

    >>> think_format(["<think>2 + 2</think> 4", "4", "<think>2 + 2</think>"])
    [1.0, 0.0, 0.0]
    """
    return [float(THOUGHT.fullmatch(_text(completion)) is not None) for completion in completions]


def _text(completion: Any) -> str:
    """Return a completion as text: that of its last message, if it is messages."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def _number(text: str) -> Decimal | None:
    """Return the number that a text ends with, None if it has none."""
    _, final, rest = text.rpartition(FINAL)
    found = list(NUMBER.finditer(rest))
    if not found:
        return None
    match = found[0] if final else found[-1]
    value = Decimal(match[1].replace(",", ""))
    return -value if match[0][0] in "-\u2212" else value
