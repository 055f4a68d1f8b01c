"""The grid of a sweep as words: values between commas, and the name of a run, made of what is its own."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from graft.errors import UsageError
from graft.recipe.text import inline, value

LONGEST = 48  # letters of one setting in a run's name


def values_in(text: str) -> list[Any]:
    """Return the values in the text behind a key: parts between commas outside of quotes and brackets.

    Raises UsageError for a text that is no value.

    >>> values_in("lora,ia3"), values_in("1e-4,3e-4"), values_in("[0.9, 0.99],[0.8, 0.9]"), values_in("'a,b'")
    (['lora', 'ia3'], [0.0001, 0.0003], [[0.9, 0.99], [0.8, 0.9]], ['a,b'])
    """
    parts, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (depth or not text[start:at].strip()):  # inside of a word: an apostrophe
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    try:
        return [value(part) for part in [*parts, text[start:]]]
    except Exception as error:  # yaml's, of several kinds
        raise UsageError(
            f"{text!r} is no list of values: {str(error).splitlines()[0]}",
            "values between commas, in YAML",
            "close brackets and quotes; put a value with a comma into quotes",
        ) from None


def name_of(chosen: Mapping[str, Any]) -> str:
    """Return a run's name, which is made of what is its own.

    >>> name_of({"method": "lora", "train.seed": 0, "train.lr": 1e-4})
    'lora-seed0-lr0.0001'
    """
    words = []
    for key, setting in chosen.items():
        leaf = key.rpartition(".")[2]
        told = inline(setting) if not isinstance(setting, str) else setting
        plain = re.sub(r"[^\w.+-]+", "_", told).strip("_.") or "none"
        if len(plain) > LONGEST or plain != told.strip():  # two values may look alike by now
            plain = f"{plain[:LONGEST]}_{hashlib.sha256(told.encode()).hexdigest()[:6]}"
        words.append(plain if key in ("method", "method.name", "stage", "model") else f"{leaf}{plain}")
    return "-".join(words)
